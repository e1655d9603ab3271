"""The sample dataset: its files, its determinism, and what is in it."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from lsts_tf import sample
from lsts_tf.media import video
from lsts_tf.scoring import density
from tests import folders, pages

FRAMES = 6
ONE_EACH = dict.fromkeys(sample.KINDS, 1) | {"frames": FRAMES}
NUMBERS = (1, 501, 601, 701)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    return sample.write(folder / "nested" / "set", **ONE_EACH)


def files(root):
    there = folders.contents(root).items()
    return {str(place): data for place, data in there if data is not False}


def correlation(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


# === Files ===


def test_layout_is_dhf1ks(written):
    expected = {"sample.json", *(f"video/{n:03d}.AVI" for n in NUMBERS)}
    expected |= {
        f"annotation/{number:04d}/{name}/{index:04d}.png"
        for number in NUMBERS[:3]
        for name in ("maps", "fixation")
        for index in range(1, FRAMES + 1)
    }
    assert set(files(written)) == expected


@pytest.mark.parametrize("number", NUMBERS)
def test_videos(written, number):
    film = video.Video(written / "video" / f"{number:03d}.AVI")
    assert (film.fps, film.num_frames, film.size) == (30, FRAMES, (640, 360))
    pictures, _ = sample.make_clip(number, frames=FRAMES, seed=0)
    for picture, frame in zip(pictures, film, strict=True):
        # Compression loses some, another frame or channel order is far off.
        assert np.abs(frame.astype(int) - picture).mean() < 3


def test_annotation(written):
    folder = written / "annotation" / "0601"
    _, fixations = sample.make_clip(601, frames=FRAMES, seed=0)
    for index, fixated in enumerate(fixations, 1):
        found, map_ = (
            cv2.imread(str(folder / name / f"{index:04d}.png"), -1)
            for name in ("fixation", "maps")
        )
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, 255 * fixated)
        np.testing.assert_array_equal(map_, density.density_map(found > 0))


def test_a_clip_depends_on_its_number_and_the_seed_alone(written, tmp_path):
    more = {**ONE_EACH, "train": 2, "validation": 0, "unannotated": 0}
    first = files(written)
    second = files(sample.write(tmp_path / "more", **more))
    third = files(sample.write(tmp_path / "other", **ONE_EACH, seed=1))
    common = (set(first) & set(second)) - {"sample.json"}
    assert {"video/001.AVI", "video/601.AVI"} <= common
    for name in common:
        assert first[name] == second[name], name
    assert first["video/001.AVI"] != third["video/001.AVI"]
    assert second["video/001.AVI"] != second["video/002.AVI"]


def test_a_failing_clip_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(sample.density, "density_map", full)
    with pytest.raises(OSError, match="No space left"):
        sample.write(tmp_path / "set", **ONE_EACH)
    assert not list(tmp_path.iterdir())


def test_a_dataset_is_written_once(written):
    before = files(written)
    written_at = (written / "video" / "001.AVI").stat().st_mtime_ns
    assert sample.write(written, **ONE_EACH) == written
    assert (written / "video" / "001.AVI").stat().st_mtime_ns == written_at
    for change in ({"seed": 1}, {"frames": 7}, {"train": 2}):
        with pytest.raises(FileExistsError, match="already exists"):
            sample.write(written, **{**ONE_EACH, **change})
    assert files(written) == before


def test_the_program_needs_no_tensorflow(written, tmp_path):
    # A module of this name in front of the installed one fails at its import.
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    arguments = [f"--{name}={count}" for name, count in ONE_EACH.items()]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*more):
        program = [sys.executable, "-m", "lsts_tf.sample", *arguments, *more]
        how = {"capture_output": True, "text": True, "timeout": 120}
        return subprocess.run(
            program, cwd=pages.ROOT, env=env, check=False, **how
        )

    result = run(f"--output={tmp_path / 'set'}")
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "set") == files(written)
    result = run(f"--output={tmp_path / 'new'}", "--train=501")
    assert result.returncode == 1
    assert "--train=501: 501 is not an integer in the" in result.stderr
    assert not (tmp_path / "new").exists()


# === Content ===


def test_the_centre_is_a_poor_guess_and_the_bright_disc_a_good_one():
    y, x = np.mgrid[0:360, 0:640]
    prior = np.exp(-(((x - 320) / 160) ** 2 + ((y - 180) / 90) ** 2) / 2)
    found = []
    for number in range(1, 21):
        pictures, fixations = sample.make_clip(number, frames=30, seed=0)
        assert 10 <= fixations[-1].sum() <= sample.OBSERVERS
        truth = density.density_map(fixations[-1])
        bright = (pictures[-1].min(-1) > 180).astype(float)
        found.append([correlation(bright, truth), correlation(prior, truth)])
    disc, centre = np.mean(found, axis=0)
    assert disc > 0.6
    assert centre < 0.3
