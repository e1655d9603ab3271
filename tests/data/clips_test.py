"""UCF Sports and Hollywood-2: layout in the wild, numbers, every refusal."""

import re
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest

from hollywood2 import hollywood2_dataset_builder
from tests import clip_folders
from ucf_sports import ucf_sports_dataset_builder

DATASET = "ucf_sports"
PARTS = ("images", "maps", "fixation")
NAME = "Diving-Side-005"


def write_clip(root, name=NAME, frames=3, split="training", **kwargs):
    stem = f"{name[:-4]}_{name[-3:]}"
    return clip_folders.write_clip(
        root / split / name,
        [f"{stem}_{index + 1:03d}" for index in range(frames)],
        **kwargs,
    )


def write_shot(root, video, shot, frames, *, kind="train", **kwargs):
    """A shot of Hollywood-2."""
    stem = f"actionclip{kind}{video:05d}"
    return clip_folders.write_clip(
        root / f"{kind}ing" / f"{stem}_{shot}",
        [f"{stem}_{frame:05d}" for frame in frames],
        **kwargs,
    )


@pytest.fixture
def clip(manual):
    return write_clip(manual)


# === Numbers ===


def test_numbers_follow_from_the_names():
    numbers = ucf_sports_dataset_builder.NUMBERS
    # As the release has them, in the order of names.
    for some in (range(1, 104), range(601, 648)):
        names = sorted(name for name in numbers if numbers[name] in some)
        assert [numbers[name] for name in names] == list(some)
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


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("actioncliptrain00001_1", 101),
        ("actioncliptrain00131_44", 13144),
        ("actioncliptest00884_3", 188_403),
        ("actioncliptrain00001", None),
        ("actioncliptrain00000_1", None),
        ("actioncliptrain00001_0", None),
        ("actioncliptrain0001_1", None),
        ("actioncliptrain00001_100", None),
        ("actionclipval00001_1", None),
        ("Diving-Side-001", None),
    ],
)
def test_numbers_of_shots(name, number):
    assert hollywood2_dataset_builder.number_of(name) == number


# === Layout ===


def test_an_example_holds_the_clip(clip, manual, build):
    write_clip(manual, "Diving-Side-004", split="testing")
    # Sizes, lengths and types of file vary between clips.
    write_clip(manual, "Kicking-Front-007", frames=1, size=(40, 48))
    path = clip / "images" / "Diving-Side_005_002.png"
    cv2.imwrite(str(path.with_suffix(".jpg")), cv2.imread(str(path)))
    path.unlink()
    found = build()
    assert list(found["test"]) == [604]
    example, other = found["train"].values()
    assert int(example["video"]) == 1
    assert int(other["video"]) == 23
    assert example["name"].numpy() == b"Diving-Side-005"
    assert int(example["num_frames"]) == 3
    for index, frame in enumerate(clip_folders.pictures(example, "frames")):
        assert frame.shape == (36, 64, 3)
        corner = frame[-8:, -8:].mean(axis=(0, 1))
        np.testing.assert_allclose(corner, (100 + 10 * index, 40, 20), atol=4)
    for feature, part in (("maps", "maps"), ("fixations", "fixation")):
        assert list(example[feature].numpy()) == [
            path.read_bytes() for path in sorted((clip / part).iterdir())
        ]
        (picture,) = clip_folders.pictures(other, feature)
        assert picture.shape == (40, 48)


def test_frames_run_on_from_shot_to_shot(manual, build):
    # Shots of one frame exist; some shots do not; sizes differ.
    write_shot(manual, 9, 2, [1])
    write_shot(manual, 9, 10, [99, 100, 101], size=(30, 70))
    write_shot(manual, 7, 1, [3, 4], kind="test")
    found = {
        (split, number, int(example["num_frames"]))
        for split, of in build("hollywood2").items()
        for number, example in of.items()
    }
    assert found == {("train", 902, 1), ("train", 910, 3), ("test", 100_701, 2)}


def test_one_level_down_among_strays(manual, build):
    clip = write_clip(manual / "UCF")
    (manual / "another_dataset").mkdir()
    (clip / "fixation" / "maps").mkdir()
    for name in (
        "../.DS_Store",
        "../list.txt",
        "fixation/maps/Diving-Side_005_001.mat",
        "maps/Thumbs.db",
        "maps/._Diving-Side_005_001.png",
        "maps/overview.png",
    ):
        (clip / name).touch()
    assert {split: list(n) for split, n in build().items()} == {"train": [1]}


@pytest.mark.parametrize(
    ("images", "maps"),
    [
        # The numbers of the images, which need not begin with 1, or from 1.
        (range(8, 12), range(8, 12)),
        (range(44, 47), range(1, 4)),
    ],
)
def test_pictures_belong_together_by_their_numbers(manual, build, images, maps):
    clip = clip_folders.write_clip(
        manual / "training" / "Lifting-003", [str(k) for k in images]
    )
    for part in ("maps", "fixation"):
        for old, new in zip(images, maps, strict=True):
            path = clip / part / f"{old}.png"
            path.rename(path.with_name(f"a{new}.png"))
    (clip / "fixation").rename(clip / "fixations")
    (example,) = build()["train"].values()
    for feature in ("maps", "fixations"):
        assert list(example[feature].numpy()) == [
            (clip / feature / f"a{k}.png").read_bytes() for k in maps
        ]


@pytest.mark.parametrize("mode", ["1", "RGB", "P"])
def test_maps_of_other_kinds_become_grey(clip, build, mode):
    path = clip / "fixation" / "Diving-Side_005_002.png"
    fixated = PIL.Image.open(path)
    fixated.convert(mode).save(path)
    (example,) = build()["train"].values()
    data = example["fixations"].numpy()[1]
    # Bits and colour in the header.
    assert path.read_bytes()[24:26] != data[24:26] == b"\x08\0"
    found = clip_folders.pictures(example, "fixations")[1]
    np.testing.assert_array_equal(found, fixated)


# === Refusals ===


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["something else"], ["`training/` or `testing/`", "none"]),
        (["a/testing", "b/testing"], ["exactly one folder", "b/testing"]),
        (["training"], ["at least one clip", NAME]),
        (["training/Diving-Side-015"], ["as in the distribution", "-015"]),
        ([f"training/{NAME}"], [f"Clip {NAME} ", "0 images, 0 maps"]),
    ],
)
def test_other_folders(manual, refused, folders, words):
    for name in folders:
        (manual / name).mkdir(parents=True)
    refused(*words, re.escape(str(manual)))


def test_a_clip_in_both_splits(clip, manual, refused):
    write_clip(manual, split="testing")
    refused("Clip Diving-Side-005 ", "training/", "testing/")


def test_one_shot_by_two_names(manual, refused):
    shot = write_shot(manual, 3, 2, [1])
    write_shot(manual, 3, "02", [1])
    refused(re.escape(str(shot)), name="hollywood2")


@pytest.mark.parametrize(
    ("part", "renamed", "told"),
    [
        *((part, {3: None}, f"2 {part} from 1 to 2") for part in PARTS),
        ("maps", {1: None, 2: None, 3: None}, r"\b0 maps"),
        ("maps", {2: 4}, "3 images from 1 to 3, 3 maps from 1 to 4"),
        ("fixation", {3: 4, 2: 3, 1: 2}, "3 fixation from 2 to 4"),
    ],
)
def test_pictures_that_do_not_belong_together(
    clip, refused, part, renamed, told
):
    for old, new in renamed.items():
        path = clip / part / f"Diving-Side_005_{old:03d}.png"
        if new:
            path.rename(path.with_name(f"Diving-Side_005_{new:03d}.png"))
        else:
            path.unlink()
    refused("Clip Diving-Side-005 ", told)


def test_a_number_twice(clip, refused):
    path = clip / "images" / "Diving-Side_005_002.png"
    shutil.copy(path, path.with_suffix(".jpg"))
    refused("Clip Diving-Side-005 ", "_002.jpg and .*_002.png")


WIDER = (np.zeros((36, 65), np.uint8), "must be 64x36. Received: 65x36")


@pytest.mark.parametrize(
    ("part", "image", "problem"),
    [
        *((part, *WIDER) for part in PARTS),
        ("maps", np.zeros((36, 64), np.uint16), r"uint16 \[36, 64\]"),
        ("maps", np.arange(6912, dtype="u1").reshape(36, 64, 3), "64, 3]"),
    ],
)
def test_pictures_that_do_not_fit(clip, refused, part, image, problem):
    path = clip / part / "Diving-Side_005_003.png"
    clip_folders.write_picture(path, image)
    refused("Clip Diving-Side-005:", problem, re.escape(str(path)))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda data: b"JFIF" + data[4:],
        lambda data: data[: len(data) // 2],
        lambda data: data[:60] + b"\0\1\2" + data[63:],
    ],
    ids=["empty", "text", "truncated", "damaged"],
)
def test_damaged_pictures(clip, refused, part, spoil):
    path = clip / part / "Diving-Side_005_003.png"
    path.write_bytes(spoil(path.read_bytes()))
    refused("Clip Diving-Side-005:", re.escape(str(path)))
