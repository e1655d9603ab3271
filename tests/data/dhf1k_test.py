"""The DHF1K builder: films, layout, and every refusal."""

import numpy as np
import pytest

from dhf1k import dhf1k_dataset_builder
from lsts_tf.media import video
from tests import clip_folders

DATASET = "dhf1k"
BLACK = np.zeros((360, 640), np.uint8)


def write_video(root, number, *, frames=3, size=(360, 640)):
    """Writes plain frames of growing brightness, redder than blue."""
    colours = [(100 + 10 * (index % 3), 40, 20) for index in range(frames)]
    return clip_folders.write_film(
        root / "video" / f"{number:03d}.AVI",
        clip_folders.plain(size, *colours),
        *("mpeg4", "yuv420p", 30),
    )


def write_annotation(root, number, maps=(1, 2, 3), fixations=(1, 2, 3)):
    folder = root / "annotation" / f"{number:04d}"
    for name, numbers in (("maps", maps), ("fixation", fixations)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in numbers:
            image = BLACK.copy()
            image[10 * index : 10 * index + 5] = 255
            clip_folders.write_picture(
                folder / name / f"{index:04d}.png", image
            )
    return folder


def write_clip(root, number, **kwargs):
    write_video(root, number, **kwargs)
    return write_annotation(root, number)


# === Films ===


def test_an_example_holds_the_video(manual, build):
    folder = write_clip(manual, 5)
    (example,) = build()["train"].values()
    assert int(example["video"]) == 5
    assert float(example["fps"]) == 30
    assert int(example["num_frames"]) == 3
    frames = np.stack(clip_folders.pictures(example, "frames"))
    assert frames.shape == (3, 360, 640, 3)
    want = [(100 + 10 * index, 40, 20) for index in range(3)]
    np.testing.assert_allclose(frames.mean(axis=(1, 2)), want, atol=4)
    assert frames.std(axis=(1, 2)).max() < 3
    for feature, name in (("maps", "maps"), ("fixations", "fixation")):
        assert list(example[feature].numpy()) == [
            path.read_bytes() for path in sorted((folder / name).iterdir())
        ]


def test_real_clips(shared, manual, build):
    source = shared / "real_clips"
    for name in ("video/601.AVI", "video/701.AVI", "annotation/0601"):
        target = manual / name
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(source / name)
    found = build()
    annotated, test = found["validation"][601], found["test"][701]
    for name in ("frames", "maps", "fixations"):
        assert annotated[name].shape == (180,)
    first = next(video.frames(source / "video/601.AVI"))
    # JPEG of quality 95 stays within a few grey levels.
    (frame,) = clip_folders.pictures(annotated, "frames", 1)
    difference = frame - first.astype(int)
    assert np.abs(difference).mean() < 2
    assert int(test["num_frames"]) == 540
    assert test["maps"].shape == (0,)


# === Layout ===


def test_splits_follow_the_numbers(manual, build):
    for number in (1, 600, 601, 700):
        write_clip(manual, number)
    for number in (701, 1000):
        path = write_video(manual, number)
    path.with_name("001.AVI").rename(path.with_name("0001.avi"))
    for stray in (".DS_Store", "x.txt"):
        path.with_name(stray).touch()
    write_annotation(manual, 2)  # Of a video not downloaded.
    found = build()
    assert {split: list(numbers) for split, numbers in found.items()} == {
        "train": [1, 600],
        "validation": [601, 700],
        "test": [701, 1000],
    }
    for example in found["test"].values():
        assert example["frames"].shape == (3,)
        assert example["maps"].shape == example["fixations"].shape == (0,)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1001.AVI"], "Received: .*/1001.AVI"),
        (["000.AVI"], "Received: .*/000.AVI"),
        (["12.AVI"], "Received: .*/12.AVI"),
        (["x.AVI"], "Received: .*/x.AVI"),
        (["007.AVI", "0007.avi"], "Video 7 .* 0007.avi and 007.AVI"),
        ([], "at least one video.* none in"),
    ],
)
def test_other_video_names_are_refused(manual, refused, names, message):
    (manual / "video").mkdir()
    for name in names:
        (manual / "video" / name).touch()
    refused(message)


# === Refusals ===


def test_no_manual_folder_tells_where_to_get_the_data(tmp_path):
    with pytest.raises(AssertionError, match="wenguanwang/DHF1K"):
        clip_folders.build(
            dhf1k_dataset_builder.Builder, tmp_path / "nowhere", tmp_path
        )


def test_annotation_that_is_missing_or_withheld(manual, refused):
    write_clip(manual, 1)
    path = write_video(manual, 600)
    refused("Video 600", "annotation/0600")
    path.unlink()
    write_clip(manual, 701)
    refused("Video 701", "annotation/0701")


@pytest.mark.parametrize(
    ("maps", "fixations", "told"),
    [
        (range(1, 3), range(1, 4), "2 maps from 1 to 2, 3 fixation from"),
        (range(1, 4), (), "3 maps from 1 to 3, 0 fixation"),
        ((), (), "0 maps, 0 fixation"),
        (range(3), range(1, 4), "3 maps from 0 to 2"),
        (range(1, 4), (1, 3, 4), "3 fixation from 1 to 4"),
        (range(1, 3), range(1, 3), "3 frames decoded.* 2 maps"),
        (range(1, 5), range(1, 5), "3 frames decoded.* 4 maps"),
    ],
)
def test_maps_that_do_not_fit(manual, refused, maps, fixations, told):
    write_video(manual, 4)
    write_annotation(manual, 4, maps, fixations)
    refused("Video 4 ", told)


@pytest.mark.parametrize("number", [8, 808])
def test_truncated_video(manual, refused, number):
    path = write_video(manual, number, frames=20)
    if number <= 700:
        write_annotation(manual, number, range(1, 21), range(1, 21))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(f"Video {number} ", r"\b1?\d frames decoded", "20")


def test_other_videos(manual, refused):
    write_clip(manual, 8, size=(240, 320))
    refused("Video 8 ", "320x240")
    (manual / "video" / "008.AVI").write_bytes(b"no video" * 100)
    refused("Video 8 ", "008.AVI")


def test_maps_of_another_size(manual, refused):
    folder = write_clip(manual, 8)
    clip_folders.write_picture(
        folder / "fixation" / "0002.png", BLACK[::2, ::2]
    )
    refused("Video 8:", "must be 640x360. Received: 320x180", "0002.png")
