"""UCF Sports: its layout in the wild, its numbers, and every refusal."""

import functools
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
from typing import ClassVar
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import gaze_dataset
from tests import clip_folders
from ucf_sports import ucf_sports_dataset_builder

ROOT = pathlib.Path(__file__).parents[2]
DUMMY_DATA = ROOT / "data" / "ucf_sports" / "dummy_data"
PARTS = ("images", "maps", "fixation")


class UcfSportsTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = ucf_sports_dataset_builder.Builder
    SPLITS: ClassVar = {"train": 2, "test": 1}


def write_clip(root, name, frames=3, split="training", **kwargs):
    stem = f"{name[:-4]}_{name[-3:]}"
    return clip_folders.write_clip(
        root / split / name,
        [f"{stem}_{index + 1:03d}" for index in range(frames)],
        **kwargs,
    )


def build(manual_dir, data_dir):
    return clip_folders.build(
        ucf_sports_dataset_builder.Builder, manual_dir, data_dir
    )


@pytest.fixture
def clip(manual):
    return write_clip(manual, "Diving-Side-005")


@pytest.fixture
def refused(refused_by):
    return functools.partial(refused_by, ucf_sports_dataset_builder.Builder)


# === The contract ===


def test_features_are_the_contract_and_the_name():
    info = ucf_sports_dataset_builder.Builder(data_dir="unused").info
    assert set(info.features) == {
        *("video", "fps", "num_frames", "frames", "maps", "fixations"),
        "name",
    }
    assert info.features["frames"].shape == (None, None, None, 3)
    assert info.features["maps"].shape == (None, None, None, 1)
    assert "UCF Sports" in info.description
    assert "Actions in the Eye" in info.citation


def test_numbers_follow_from_the_names():
    numbers = ucf_sports_dataset_builder.NUMBERS
    training = [name for name, number in numbers.items() if number < 601]
    testing = [name for name, number in numbers.items() if number >= 601]
    # As the release has them, in the order of names.
    assert (len(training), len(testing)) == (103, 47)
    assert sorted(training) == training
    assert sorted(testing) == testing
    assert [numbers[name] for name in training] == list(range(1, 104))
    assert [numbers[name] for name in testing] == list(range(601, 648))
    for name, number in {
        "Diving-Side-005": 1,
        "Golf-Swing-Side-001": 18,
        "Kicking-Side-010": 36,
        "Walk-Front-022": 103,
        "Diving-Side-001": 601,
        "Golf-Swing-Front-001": 610,
        "Lifting-001": 617,
        "Walk-Front-007": 647,
    }.items():
        assert numbers[name] == number


def test_an_example_holds_the_clip(clip, manual, tmp_path):
    write_clip(manual, "Diving-Side-004", split="testing")
    (clip / "images" / "Diving-Side_005_002.png").rename(tmp_path / "2.png")
    frame = cv2.imread(str(tmp_path / "2.png"))
    cv2.imwrite(str(clip / "images" / "Diving-Side_005_002.jpg"), frame)
    builder = build(manual, tmp_path / "tfds")
    assert set(builder.info.splits) == {"train", "test"}
    assert list(clip_folders.examples(builder, "test")) == [604]
    (example,) = clip_folders.examples(builder, "train").values()
    assert int(example["video"]) == 1
    assert example["name"].numpy() == b"Diving-Side-005"
    assert int(example["num_frames"]) == 3
    for index, image in enumerate(example["frames"].numpy()):
        frame = tf.io.decode_image(image).numpy()
        assert frame.shape == (36, 64, 3)
        corner = frame[-8:, -8:].mean(axis=(0, 1))
        np.testing.assert_allclose(corner, (100 + 10 * index, 40, 20), atol=4)
    for feature, part in (("maps", "maps"), ("fixations", "fixation")):
        assert list(example[feature].numpy()) == [
            (clip / part / f"Diving-Side_005_00{k}.png").read_bytes()
            for k in (1, 2, 3)
        ]


def test_sizes_and_lengths_vary_between_clips(clip, manual, tmp_path):
    write_clip(manual, "Kicking-Front-007", frames=1, size=(40, 48))
    builder = build(manual, tmp_path / "tfds")
    # Decoded whole.
    found = {
        int(example["video"]): [
            example[name].shape for name in ("frames", "maps", "fixations")
        ]
        for example in builder.as_dataset(split="train")
    }
    assert found == {
        1: [(3, 36, 64, 3), (3, 36, 64, 1), (3, 36, 64, 1)],
        23: [(1, 40, 48, 3), (1, 40, 48, 1), (1, 40, 48, 1)],
    }


# === Layout ===


def test_one_level_down_and_strays(manual, tmp_path):
    clip = write_clip(manual / "UCF", "Diving-Side-005")
    (manual / "UCF" / "training" / ".DS_Store").touch()
    (manual / "UCF" / "training" / "list.txt").touch()
    (manual / "another_dataset").mkdir()
    (clip / "fixation" / "maps").mkdir()
    (clip / "fixation" / "maps" / "Diving-Side_005_001.mat").touch()
    for name in ("Thumbs.db", "._Diving-Side_005_001.png", "overview.png"):
        (clip / "maps" / name).touch()
    builder = build(manual, tmp_path / "tfds")
    assert list(clip_folders.examples(builder, "train")) == [1]
    assert list(builder.info.splits) == ["train"]


@pytest.mark.parametrize("parts", [("maps",), ("maps", "fixation"), PARTS])
def test_numbered_names(clip, manual, tmp_path, parts):
    for part in parts:
        for path in (clip / part).glob("*.png"):
            path.rename(path.with_name(f"0{path.name[-7:]}"))
    (clip / "fixation").rename(clip / "fixations")
    builder = build(manual, tmp_path / "tfds")
    (example,) = clip_folders.examples(builder, "train").values()
    first = sorted((clip / "fixations").glob("*.png"))[0]
    assert example["fixations"].numpy()[0] == first.read_bytes()


def test_frames_are_in_the_order_of_their_numbers(manual, tmp_path):
    clip = clip_folders.write_clip(
        manual / "training" / "Lifting-003", [str(k) for k in range(8, 12)]
    )
    builder = build(manual, tmp_path / "tfds")
    (example,) = clip_folders.examples(builder, "train").values()
    assert list(example["maps"].numpy()) == [
        (clip / "maps" / f"{k}.png").read_bytes() for k in range(8, 12)
    ]


@pytest.mark.parametrize("kind", ["one bit", "three channels", "palette"])
def test_maps_of_other_kinds_become_grey(clip, manual, tmp_path, kind):
    path = clip / "fixation" / "Diving-Side_005_002.png"
    fixated = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if kind == "one bit":
        clip_folders.write_png(path, fixated, cv2.IMWRITE_PNG_BILEVEL, 1)
    elif kind == "three channels":
        clip_folders.write_png(path, np.dstack([fixated] * 3))
    else:
        path.write_bytes(palette_png(fixated))
    assert not gaze_dataset.png_header(path.read_bytes()).grey
    builder = build(manual, tmp_path / "tfds")
    (example,) = clip_folders.examples(builder, "train").values()
    data = example["fixations"].numpy()[1]
    assert gaze_dataset.png_header(data).grey
    np.testing.assert_array_equal(tf.io.decode_png(data)[..., 0], fixated)


def palette_png(image):
    """A PNG of two colours, black and white, by hand: OpenCV writes none."""
    height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = [b"\0" + (row > 0).tobytes() for row in image]
    chunks = {
        b"IHDR": header,
        b"PLTE": bytes([0, 0, 0, 255, 255, 255]),
        b"IDAT": zlib.compress(b"".join(rows)),
        b"IEND": b"",
    }
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks.items():
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    return data


# === Refusals ===


def test_no_data(manual, refused):
    (manual / "something else").mkdir()
    refused("`training/` or `testing/`", re.escape(str(manual)), "none")


def test_no_clip(manual, refused):
    (manual / "training").mkdir()
    refused("at least one clip", "Diving-Side-005")


def test_two_sets(manual, refused):
    for name in ("a", "b"):
        (manual / name / "testing").mkdir(parents=True)
    refused("exactly one folder", "a/testing", "b/testing")


@pytest.mark.parametrize("name", ["Diving-Side-015", "Diving", "0001"])
def test_other_names(manual, refused, name):
    (manual / "training" / name).mkdir(parents=True)
    refused("named as in the distribution", f"training/{name}")


def test_a_clip_in_both_splits(clip, manual, refused):
    write_clip(manual, "Diving-Side-005", split="testing")
    refused("Clip Diving-Side-005 ", "training/", "testing/")


@pytest.mark.parametrize("part", PARTS)
def test_counts_disagree(clip, refused, part):
    (clip / part / "Diving-Side_005_003.png").unlink()
    counts = [
        f"{3 - (part == name)} {told}"
        for name, told in zip(
            PARTS, ("images", "maps", "fixation maps"), strict=True
        )
    ]
    refused("Clip Diving-Side-005 ", *counts)


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_is_missing(clip, refused, part):
    shutil.rmtree(clip / part)
    refused("Clip Diving-Side-005 ", r"\b0 ")


def test_an_empty_clip(manual, refused):
    (manual / "training" / "Diving-Side-005").mkdir(parents=True)
    refused("Clip Diving-Side-005 ", "0 images, 0 maps, 0 fixation maps")


def test_a_gap(clip, refused):
    path = clip / "maps" / "Diving-Side_005_002.png"
    path.rename(path.with_name("Diving-Side_005_004.png"))
    refused(
        "maps of clip Diving-Side-005 ", "3 images", "from 1 to 4", "them 2"
    )


def test_numbers_that_do_not_fit(clip, refused):
    for path in sorted((clip / "fixation").glob("*.png"), reverse=True):
        number = int(path.stem[-3:]) + 1
        path.rename(path.with_name(f"Diving-Side_005_{number:03d}.png"))
    refused("fixation maps of clip Diving-Side-005 ", "from 1,", "from 2,")


def test_a_number_twice(clip, refused):
    path = clip / "images" / "Diving-Side_005_002.png"
    shutil.copy(path, path.with_suffix(".jpg"))
    refused("Clip Diving-Side-005 ", "_002.jpg and .*_002.png")


@pytest.mark.parametrize("part", PARTS)
def test_another_size_within_a_clip(clip, refused, part):
    path = clip / part / "Diving-Side_005_003.png"
    clip_folders.write_png(path, np.zeros((36, 65), np.uint8))
    refused("Clip Diving-Side-005: ", "64x36", "65x36", f"{part}/Diving")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((36, 64), np.uint16), "64x36, grey, 16 bits"),
        (np.arange(36 * 64 * 3, dtype=np.uint8).reshape(36, 64, 3), "RGB"),
    ],
)
def test_maps_that_are_not_grey(clip, refused, image, problem):
    path = clip / "maps" / "Diving-Side_005_002.png"
    clip_folders.write_png(path, image)
    refused("Clip Diving-Side-005:", problem, re.escape(str(path)))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"no picture",
        lambda data: data[: len(data) // 2],
    ],
    ids=["empty", "text", "truncated"],
)
def test_damaged_pictures(clip, refused, part, spoil):
    path = clip / part / "Diving-Side_005_003.png"
    path.write_bytes(spoil(path.read_bytes()))
    refused("Clip Diving-Side-005:", re.escape(str(path)))


# === The command ===


def test_tfds_build_in_the_root(tmp_path):
    # In data/ it finds its builder as DHF1K's does.
    subprocess.run(
        [
            pathlib.Path(sys.executable).parent / "tfds",
            *("build", "ucf_sports", f"--manual_dir={DUMMY_DATA}"),
            f"--data_dir={tmp_path / 'tfds'}",
            '--download_config={"try_download_gcs": false}',
        ],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=300,
    )
    builder = tfds.builder_from_directory(tmp_path / "tfds/ucf_sports/1.0.0")
    assert list(clip_folders.examples(builder, "train")) == [1, 23]
    assert list(clip_folders.examples(builder, "test")) == [601]


def test_dummy_data_is_small():
    sizes = [p.stat().st_size for p in DUMMY_DATA.rglob("*") if p.is_file()]
    assert sum(sizes) < 150_000
