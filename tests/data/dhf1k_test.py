"""The DHF1K builder: its layout, its contract, and every refusal."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dhf1k import dhf1k_dataset_builder
from lsts_tf import sample
from tests import clip_folders

ROOT = pathlib.Path(__file__).parents[2]
DUMMY_DATA = ROOT / "data" / "dhf1k" / "dummy_data"


class Dhf1kTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = dhf1k_dataset_builder.Builder
    SPLITS: ClassVar = {"train": 1, "validation": 1, "test": 1}


# === Writing and building small sets ===


def write_video(root, number, *, frames=3, size=(640, 360), name=None):
    """Writes plain frames of growing brightness, redder than blue."""
    folder = root / "video"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{number:03d}.AVI")
    # OpenCV knows AVI by its lower-case name only.
    writer = cv2.VideoWriter(
        str(path.with_suffix(".avi")),
        cv2.VideoWriter.fourcc(*"XVID"),
        30,
        size,
    )
    assert writer.isOpened()
    for index in range(frames):
        frame = np.empty((size[1], size[0], 3), np.uint8)
        frame[:] = (20, 40, 100 + 10 * (index % 3))  # BGR
        writer.write(frame)
    writer.release()
    path.with_suffix(".avi").rename(path)
    return path


def write_annotation(root, number, *, maps=3, fixations=3):
    folder = root / "annotation" / f"{number:04d}"
    for name, count in (("maps", maps), ("fixation", fixations)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = np.zeros((360, 640), np.uint8)
            image[10 * index : 10 * index + 5] = 255
            write_png(folder / name / f"{index + 1:04d}.png", image)
    return folder


def write_png(path, image):
    assert cv2.imwrite(str(path), image)


def write_clip(root, number, **kwargs):
    write_video(root, number, **kwargs)
    return write_annotation(root, number)


def build(manual_dir, data_dir):
    return clip_folders.build(
        dhf1k_dataset_builder.Builder, manual_dir, data_dir
    )


def decoded(images):
    return np.stack([tf.io.decode_image(image).numpy() for image in images])


@pytest.fixture
def refused(refused_by):
    return functools.partial(refused_by, dhf1k_dataset_builder.Builder)


# === The contract ===


def test_features_are_the_contract():
    features = dhf1k_dataset_builder.Builder(data_dir="unused").info.features
    assert set(features) == {
        *("video", "fps", "num_frames", "frames", "maps", "fixations")
    }
    for name, dtype in (
        ("video", np.int64),
        ("fps", np.float32),
        ("num_frames", np.int64),
    ):
        assert features[name].shape == ()
        assert features[name].np_dtype == dtype
    assert features["frames"].shape == (None, 360, 640, 3)
    assert features["frames"].feature.encoding_format == "jpeg"
    for name in ("maps", "fixations"):
        assert features[name].shape == (None, 360, 640, 1)
        assert features[name].feature.encoding_format == "png"


def test_an_example_holds_the_video(manual, tmp_path):
    folder = write_clip(manual, 5)
    builder = build(manual, tmp_path / "tfds")
    (example,) = clip_folders.examples(builder, "train").values()
    assert int(example["video"]) == 5
    assert float(example["fps"]) == 30
    assert int(example["num_frames"]) == 3
    frames = decoded(example["frames"].numpy())
    assert frames.shape == (3, 360, 640, 3)
    for index in range(3):
        np.testing.assert_allclose(
            frames[index].mean(axis=(0, 1)), (100 + 10 * index, 40, 20), atol=4
        )
    for feature, name in (("maps", "maps"), ("fixations", "fixation")):
        files = [
            (folder / name / f"{index:04d}.png").read_bytes()
            for index in (1, 2, 3)
        ]
        assert list(example[feature].numpy()) == files


def test_decoded_whole_by_default(manual, tmp_path):
    write_clip(manual, 601)
    builder = build(manual, tmp_path / "tfds")
    (example,) = builder.as_dataset(split="validation")
    assert example["frames"].shape == (3, 360, 640, 3)
    assert example["maps"].shape == (3, 360, 640, 1)
    assert example["fixations"].numpy()[1, 12, 5, 0] == 255


def test_citation_licence_and_description():
    info = dhf1k_dataset_builder.Builder(data_dir="unused").info
    assert "CC BY 4.0" in info.redistribution_info.license
    assert "Revisiting Video Saliency" in info.citation
    assert "DHF1K" in info.description
    assert (
        "https://github.com/wenguanwang/DHF1K"
        in dhf1k_dataset_builder.Builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    )


def test_builders_do_not_know_the_package():
    """But for its files and films."""
    for path in (ROOT / "data").rglob("*.py"):
        found = re.findall(r"(?:from|import) (lsts_tf\S*)", path.read_text())
        assert set(found) <= {"lsts_tf.media"}, path


# === Layout ===


def test_splits_follow_the_numbers(manual, tmp_path):
    for number in (1, 600, 601, 700):
        write_clip(manual, number)
    for number in (701, 1000):
        write_video(manual, number)
    builder = build(manual, tmp_path / "tfds")
    assert list(clip_folders.examples(builder, "train")) == [1, 600]
    assert list(clip_folders.examples(builder, "validation")) == [601, 700]
    test = clip_folders.examples(builder, "test")
    assert list(test) == [701, 1000]
    assert (manual / "video" / "1000.AVI").exists()
    for example in test.values():
        assert example["frames"].shape == (3,)
        assert example["maps"].shape == example["fixations"].shape == (0,)


def test_numbers_are_parsed():
    names = ("999.AVI", "1000.AVI", "100.avi", "0007.AVI", ".DS_Store", "x.txt")
    assert list(find_videos(names)) == [7, 100, 999, 1000]


def find_videos(names):
    class Folder:
        def iterdir(self):
            return [pathlib.PurePosixPath("video", name) for name in names]

        def __fspath__(self):
            return "video"

    return dhf1k_dataset_builder._find_videos(Folder())


@pytest.mark.parametrize("name", ["1001.AVI", "000.AVI", "12.AVI", "x.AVI"])
def test_other_video_names_are_refused(name):
    with pytest.raises(ValueError, match=f"Received: video/{name}"):
        find_videos([name])


def test_a_video_twice_is_refused():
    with pytest.raises(ValueError, match=r"Video 7 .* 0007.avi and 007.AVI"):
        find_videos(["007.AVI", "0007.avi"])


def test_one_level_down_and_lower_case(manual, tmp_path):
    folder = manual / "DHF1K"
    write_clip(folder, 3, name="0003.avi")
    (manual / "another_dataset").mkdir()
    (manual / "a_file").touch()
    builder = build(manual, tmp_path / "tfds")
    assert list(clip_folders.examples(builder, "train")) == [3]


def test_strays_are_not_frames(manual, tmp_path):
    folder = write_clip(manual, 2)
    write_png(folder / "0003.png", np.zeros((360, 640, 3), np.uint8))
    (folder / "fixation" / "maps").mkdir()
    (folder / "fixation" / "maps" / "0001.mat").touch()
    (folder / "maps" / "Thumbs.db").touch()
    (folder / "maps" / "._0001.png").touch()
    (manual / "video" / "._002.AVI").touch()
    builder = build(manual, tmp_path / "tfds")
    assert int(clip_folders.examples(builder, "train")[2]["num_frames"]) == 3


def test_empty_splits_are_left_out(manual, tmp_path):
    write_clip(manual, 650)
    write_annotation(manual, 1)  # Annotation of a video not downloaded.
    builder = build(manual, tmp_path / "tfds")
    assert list(builder.info.splits) == ["validation"]


# === Refusals ===


def test_no_video_folder(manual, refused):
    (manual / "annotation").mkdir()
    refused("`video/`", re.escape(str(manual)), "none")


def test_no_video(manual, refused):
    (manual / "video").mkdir()
    refused("at least one video", re.escape(str(manual / "video")))


def test_two_sets(manual, refused):
    for name in ("a", "b"):
        (manual / name / "video").mkdir(parents=True)
    refused("exactly one folder", "a/video", "b/video")


def test_no_manual_folder_tells_where_to_get_the_data(tmp_path):
    with pytest.raises(AssertionError, match="wenguanwang/DHF1K"):
        build(tmp_path / "nowhere", tmp_path / "tfds")


def test_no_annotation(manual, refused):
    write_clip(manual, 1)
    write_video(manual, 600)
    refused("Video 600", "annotation/0600")


def test_annotated_test_video(manual, refused):
    write_clip(manual, 701)
    refused("Video 701", "annotation/0701")


@pytest.mark.parametrize(
    ("maps", "fixations"), [(2, 3), (3, 2), (3, 0), (0, 0)]
)
def test_maps_and_fixations_disagree(manual, refused, maps, fixations):
    write_video(manual, 4)
    write_annotation(manual, 4, maps=maps, fixations=fixations)
    refused("Video 4 ", f"{maps} maps", f"{fixations} fixation maps")


@pytest.mark.parametrize("annotated", [2, 4])
def test_frames_and_annotation_disagree(manual, refused, annotated):
    write_video(manual, 4)
    write_annotation(manual, 4, maps=annotated, fixations=annotated)
    refused("Video 4 ", "3 frames decoded", f"{annotated} maps")


def test_gap_in_the_numbering(manual, refused):
    folder = write_clip(manual, 9)
    (folder / "fixation" / "0002.png").unlink()
    write_png(folder / "fixation" / "0004.png", np.zeros((360, 640), np.uint8))
    refused("Video 9 ", "fixation", "none of them 0002.png")


def test_numbering_from_zero(manual, refused):
    folder = write_clip(manual, 9)
    (folder / "maps" / "0003.png").rename(folder / "maps" / "0000.png")
    refused("Video 9 ", "maps", "none of them 0003.png")


@pytest.mark.parametrize("number", [8, 808])
def test_truncated_video(manual, refused, number):
    path = write_video(manual, number, frames=20)
    if number <= 700:
        write_annotation(manual, number, maps=20, fixations=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(f"Video {number} ", r"\b\d frames decoded|1\d frames decoded", "20")


def test_not_a_video(manual, refused):
    write_clip(manual, 8)
    (manual / "video" / "008.AVI").write_bytes(b"no video" * 100)
    refused("Video 8 ", "008.AVI")


def test_video_of_another_size(manual, refused):
    write_clip(manual, 8, size=(320, 240))
    refused("Video 8 ", "320x240")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.tile(np.uint8([1, 2, 3]), (360, 640, 1)), "640x360, RGB, 8 bits"),
        (np.zeros((360, 640), np.uint16), "640x360, grey, 16 bits"),
        (np.zeros((180, 320), np.uint8), "must be 640x360. Received: 320x180"),
    ],
)
@pytest.mark.parametrize("name", ["maps", "fixation"])
def test_wrong_png(manual, refused, name, image, problem):
    folder = write_clip(manual, 8)
    write_png(folder / name / "0002.png", image)
    refused("Video 8:", problem, f"0008/{name}/0002.png")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda _: b"", "no PNG file"),
        (lambda data: b"JFIF" + data[4:], "no PNG file"),
        (lambda data: data[: len(data) // 2], "unreadable pixels"),
        (lambda data: data[:60] + b"\0\1\2" + data[63:], "unreadable pixels"),
    ],
)
def test_damaged_png(manual, refused, spoil, problem):
    folder = write_clip(manual, 8)
    path = folder / "maps" / "0003.png"
    path.write_bytes(spoil(path.read_bytes()))
    refused("Video 8:", problem, r"0008/maps/0003\.png")


class StutteringCapture:
    """Refuses frame 2 at first; reads on afterwards."""

    def __init__(self, answers):
        self.answers = list(answers)

    def read(self):
        if not self.answers:
            return False, None
        frame = self.answers.pop(0)
        return frame is not None, frame


def test_a_failed_read_is_retried():
    frames = list(
        dhf1k_dataset_builder._decode(
            StutteringCapture(["a", "b", None, None, "c"]), declared=3
        )
    )
    assert frames == ["a", "b", "c"]


def test_retries_end():
    capture = StutteringCapture(["a"] + [None] * 1000 + ["b"])
    assert list(dhf1k_dataset_builder._decode(capture, declared=2)) == ["a"]


# === The command, and real clips ===


@pytest.mark.parametrize("start", [".", "data"])
def test_tfds_build(start, tmp_path):
    data_dir = tmp_path / "tfds"
    arguments = [f"--data_dir={data_dir}"]
    if start == ".":
        # TFDS' own place for manual data.
        shutil.copytree(DUMMY_DATA, data_dir / "downloads" / "manual")
    else:
        arguments.append(f"--manual_dir={DUMMY_DATA}")
    subprocess.run(
        [
            pathlib.Path(sys.executable).parent / "tfds",
            *("build", "dhf1k", *arguments),
            '--download_config={"try_download_gcs": false}',
        ],
        cwd=ROOT / start,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=300,
    )
    builder = tfds.builder_from_directory(data_dir / "dhf1k" / "1.0.0")
    assert {
        name: split.num_examples for name, split in builder.info.splits.items()
    } == {"train": 1, "validation": 1, "test": 1}
    (example,) = clip_folders.examples(builder, "train").values()
    assert decoded(example["frames"].numpy()).shape == (3, 360, 640, 3)


def test_dummy_data_is_small():
    sizes = [p.stat().st_size for p in DUMMY_DATA.rglob("*") if p.is_file()]
    assert sum(sizes) < 150_000


def test_the_sample_dataset(tmp_path):
    root = sample.write(
        tmp_path / "sample",
        train=1,
        validation=1,
        test=1,
        unannotated=1,
        frames=4,
    )
    builder = build(root, tmp_path / "tfds")
    assert list(clip_folders.examples(builder, "train")) == [1, 501]
    assert list(clip_folders.examples(builder, "validation")) == [601]
    assert list(clip_folders.examples(builder, "test")) == [701]


def test_real_clips(shared, manual, tmp_path):
    source = shared / "real_clips"
    for name in ("video/601.AVI", "video/701.AVI", "annotation/0601"):
        target = manual / name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(source / name)
    builder = build(manual, tmp_path / "tfds")
    assert set(builder.info.splits) == {"validation", "test"}
    annotated = clip_folders.examples(builder, "validation")[601]
    assert int(annotated["num_frames"]) == 180
    for name in ("frames", "maps", "fixations"):
        assert annotated[name].shape == (180,)
    capture = cv2.VideoCapture(str(source / "video/601.AVI"))
    _, first = capture.read()
    stored = tf.io.decode_jpeg(annotated["frames"][0]).numpy()
    # JPEG of quality 95 stays within a few grey levels of what OpenCV reads.
    difference = stored.astype(int) - cv2.cvtColor(first, cv2.COLOR_BGR2RGB)
    assert np.abs(difference).mean() < 2
    test = clip_folders.examples(builder, "test")[701]
    assert int(test["num_frames"]) == 540
    assert test["maps"].shape == (0,)
