"""The builders of AViMoS, NTIRE 2026 and CrowdSAL: one reader of films."""

import functools
import json
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from avimos import avimos_dataset_builder
from crowdsal import crowdsal_dataset_builder
from lsts_tf.features import dataset
from tests import clip_folders, msu_folders

ROOT = pathlib.Path(__file__).parents[2]
DATASET = "crowdsal"
AVIMOS = avimos_dataset_builder.Builder
CROWDSAL = crowdsal_dataset_builder.Builder


# === The contract ===


def test_an_example_holds_the_clip(manual, build):
    clip = pictures, _, points = msu_folders.clip(5, 4)
    msu_folders.crowdsal(manual, {7: clip})
    with av.open(str(manual / "Train" / "Saliency" / "0007.mp4")) as film:
        maps = [f.to_ndarray(format="gray16le") for f in film.decode(video=0)]
    (example,) = build()["train"].values()
    assert int(example["video"]) == 7
    assert example["name"].numpy() == b"0007"
    assert float(example["fps"]) == 30
    assert int(example["num_frames"]) == 4
    found = {
        name: clip_folders.pictures(example, name) for name in clip_folders.LAZY
    }
    for got, want in zip(found["frames"], pictures, strict=True):
        assert np.abs(got.astype(int) - want).mean() < 6
    for got, want in zip(found["maps"], maps, strict=True):
        assert got.dtype == np.uint8 and got.max() == 255
        stretched = 255.0 * (want - want.min()) / np.ptp(want)
        np.testing.assert_allclose(got, stretched, atol=0.51)
    for got, want in zip(found["fixations"], points, strict=True):
        # Three of the fifteen are there twice.
        assert got.sum() == 15 and got.max() >= 2
        for row, column in want:
            assert got[row, column] == want.count([row, column])


def test_films_shrink_with_their_gaze(manual, build):
    sizes = {1: (1920, 1080), 2: (540, 960), 3: (98, 54)}
    wanted = {1: (360, 640), 2: (360, 202), 3: (54, 98)}
    clips = {n: msu_folders.clip(n, 2, size) for n, size in sizes.items()}
    msu_folders.crowdsal(manual, clips)
    examples = build()["train"]
    for number, (_, maps, points) in clips.items():
        example = examples[number]
        found = {
            name: clip_folders.pictures(example, name)[1]
            for name in clip_folders.LAZY
        }
        for image in found.values():
            assert image.shape[:2] == wanted[number]
        # People look where the density is highest, at any size.
        assert found["fixations"].sum() == len(points[1])
        scale = np.array(wanted[number]) / maps[1].shape
        centre = np.mean(points[1], axis=0) * scale
        seen = np.argwhere(found["fixations"]).mean(axis=0)
        assert np.abs(seen - centre).max() < 2
        peak = np.argwhere(found["maps"] == 255).mean(axis=0)
        assert np.abs(peak - centre).max() < 6 * scale.min() + 2


def test_another_size(manual, tmp_path):
    msu_folders.crowdsal(manual, {1: msu_folders.clip(1, 2, (640, 360))})
    smaller = functools.partial(CROWDSAL, within=(320, 320))
    builder = clip_folders.build(smaller, manual, tmp_path / "tfds")
    (example,) = clip_folders.examples(builder, "train").values()
    assert clip_folders.pictures(example, "frames")[0].shape == (180, 320, 3)


def test_lists_of_names_and_archives(manual, tmp_path):
    """Numbers are places in the list, whatever else is there."""
    clips = {n: msu_folders.clip(k, 2) for k, n in enumerate(("b", "a", "d"))}
    splits = {"train": ["d.mp4", "c.mp4"], "public_test": ["b.mp4", "a.mp4"]}
    msu_folders.avimos(manual, clips, splits)
    found = {}
    for place in ("unpacked", "packed"):
        builder = clip_folders.build(AVIMOS, manual, tmp_path / place)
        found[place] = [
            (split, number, example["name"].numpy(), example["maps"].numpy())
            for split in builder.info.splits
            for number, example in clip_folders.examples(builder, split).items()
        ]
        msu_folders.pack(manual)
    assert {each[:3] for each in found["packed"]} == {
        ("train", 2, b"d"),
        ("public_test", 3, b"a"),
        ("public_test", 4, b"b"),
    }
    np.testing.assert_equal(found["packed"], found["unpacked"])


def test_lengths_are_known_without_reading(manual, tmp_path, monkeypatch):
    msu_folders.crowdsal(
        manual, {n: msu_folders.clip(n, 1 + n % 3) for n in (1, 2, 3001)}
    )
    clip_folders.build(CROWDSAL, manual, tmp_path / "tfds")
    data = dataset.Dataset("crowdsal", str(tmp_path / "tfds"))
    monkeypatch.setattr(data, "_examples", None)
    assert data.splits == {"train": {1: 2, 2: 3}, "test": {3001: 2}}


def test_gaze_that_is_withheld(manual, build):
    root = msu_folders.crowdsal(
        manual, {n: msu_folders.clip(n, 2) for n in (1, 3001)}
    )
    (root / "Test" / "Saliency" / "3001.mp4").unlink()
    (example,) = build()["test"].values()
    assert example["frames"].shape == (2,)
    assert example["maps"].shape == example["fixations"].shape == (0,)


# === Refusals ===


@pytest.fixture
def clips(manual):
    return msu_folders.crowdsal(
        manual, {n: msu_folders.clip(n, 3) for n in (1, 2)}
    )


def test_numbers_of_frames_differ(clips, refused):
    path = clips / "Train" / "Fixations" / "0002.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    refused("Video 0002:", "3 frames, 3 maps, fixations of 2 frames")


def test_a_film_without_its_gaze(clips, refused):
    (clips / "Train" / "Fixations" / "0002.json").unlink()
    refused("Video 0002 needs", "1 of 2 films of train have both")


def test_a_fixation_outside(clips, refused):
    path = clips / "Train" / "Fixations" / "0001.json"
    path.write_text(json.dumps([[[54, 0]]] * 3))
    refused("Video 0001: ", r"inside 96x54.*\[54  0\]")


def test_a_number_of_no_split(manual, refused):
    (manual / "Videos").mkdir()
    msu_folders.film(manual / "Videos" / "5001.mp4", msu_folders.clip(1, 2)[0])
    refused(r"a split \(train, test\)", r"without 5001\.")


def test_names_without_a_list(manual, refused):
    msu_folders.film(manual / "Videos" / "a.mp4", msu_folders.clip(1, 2)[0])
    refused(
        "must be listed in TrainTestSplit.json", r"without a\.", name="avimos"
    )


def test_a_cut_film(clips, tmp_path):
    path = clips / "Train" / "Videos" / "0001.mp4"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"Video 0001: .*0001\.mp4"):
        clip_folders.build(CROWDSAL, clips, tmp_path / "tfds")


# === Broken off and gone on ===


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path, kills):
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.film_builds", tmp_path, str(kills)],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT / "data")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{kills} kills" in done.stdout
