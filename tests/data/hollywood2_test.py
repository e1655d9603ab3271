"""Hollywood-2: names of shots, their numbers, and what is refused.

What it has in common with UCF Sports is tested there.
"""

import pathlib
import re
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds

from hollywood2 import hollywood2_dataset_builder
from tests import clip_folders

ROOT = pathlib.Path(__file__).parents[2]
DUMMY_DATA = ROOT / "data" / "hollywood2" / "dummy_data"


class Hollywood2Test(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = hollywood2_dataset_builder.Builder
    SPLITS: ClassVar = {"train": 2, "test": 1}


def write_shot(root, video, shot, frames, *, kind="train", **kwargs):
    stem = f"actionclip{kind}{video:05d}"
    return clip_folders.write_clip(
        root / f"{kind}ing" / f"{stem}_{shot}",
        [f"{stem}_{frame:05d}" for frame in frames],
        **kwargs,
    )


def build(manual_dir, data_dir):
    return clip_folders.build(
        hollywood2_dataset_builder.Builder, manual_dir, data_dir
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("actioncliptrain00001_1", 101),
        ("actioncliptrain00131_44", 13144),
        ("actioncliptrain00823_10", 82310),
        ("actioncliptest00001_1", 100_101),
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


def test_no_two_shots_share_a_number():
    names = [
        f"actionclip{kind}{video:05d}_{shot}"
        for kind in ("train", "test")
        for video in (1, 9, 10, 99, 100, 884)
        for shot in range(1, 100)
    ]
    numbers = {hollywood2_dataset_builder.number_of(name) for name in names}
    assert len(numbers) == len(names)


def test_frames_run_on_from_shot_to_shot(tmp_path):
    manual = tmp_path / "manual"
    # Shots of one frame exist; some shots do not; sizes differ.
    write_shot(manual, 9, 2, [1])
    late = write_shot(manual, 9, 10, [99, 100, 101], size=(30, 70))
    write_shot(manual, 7, 1, [3, 4], kind="test")
    builder = build(manual, tmp_path / "tfds")
    train = clip_folders.examples(builder, "train")
    assert {n: int(e["num_frames"]) for n, e in train.items()} == {
        902: 1,
        910: 3,
    }
    assert train[910]["name"].numpy() == b"actioncliptrain00009_10"
    assert list(train[910]["maps"].numpy()) == [
        path.read_bytes() for path in sorted((late / "maps").iterdir())
    ]
    assert list(clip_folders.examples(builder, "test")) == [100_701]


def test_maps_numbered_from_1_beside_images_that_are_not(tmp_path):
    manual = tmp_path / "manual"
    shot = write_shot(manual, 3, 2, [44, 45])
    for part in ("maps", "fixation"):
        for path in (shot / part).iterdir():
            number = int(path.stem[-5:]) - 43
            path.rename(path.with_name(f"{number:04d}.png"))
    builder = build(manual, tmp_path / "tfds")
    (example,) = clip_folders.examples(builder, "train").values()
    second = (shot / "maps" / "0002.png").read_bytes()
    assert example["maps"].numpy()[1] == second


def test_a_mismatch_names_the_shot_and_the_counts(tmp_path):
    manual = tmp_path / "manual"
    shot = write_shot(manual, 3, 2, [44, 45])
    next((shot / "maps").iterdir()).unlink()
    words = "actioncliptrain00003_2 .*2 images, 1 maps, 2 fixation maps"
    with pytest.raises(ValueError, match=words):
        build(manual, tmp_path / "tfds")


def test_one_shot_by_two_names(tmp_path):
    manual = tmp_path / "manual"
    shot = write_shot(manual, 3, 2, [1])
    write_shot(manual, 3, "02", [1])
    with pytest.raises(ValueError, match=re.escape(str(shot))):
        build(manual, tmp_path / "tfds")


def test_another_name_is_refused(tmp_path):
    manual = tmp_path / "manual"
    write_shot(manual, 3, 2, [1])
    (manual / "training" / "extras").mkdir()
    with pytest.raises(ValueError, match=r"train00001_1.*extras"):
        build(manual, tmp_path / "tfds")


def test_dummy_data_is_small():
    sizes = [p.stat().st_size for p in DUMMY_DATA.rglob("*") if p.is_file()]
    assert sum(sizes) < 150_000
