"""The sample dataset: its files, its determinism, and what is in it."""

import json
import os
import pathlib
import re
import subprocess
import sys
from unittest import mock

import cv2
import numpy as np
import pytest

from lsts_tf import sample
from lsts_tf.scoring import density

FRAMES = 6
ONE_EACH = {
    "train": 1,
    "validation": 1,
    "test": 1,
    "unannotated": 1,
    "frames": FRAMES,
}
NUMBERS = (1, 501, 601, 701)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return sample.write(
        tmp_path_factory.mktemp("sample") / "nested" / "set", **ONE_EACH
    )


def files(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        readable, frame = capture.read()
        if not readable:
            return frames
        frames.append(frame)


def read_png(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def correlation(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


# === Files ===


def test_layout_is_dhf1ks(written):
    expected = {"sample.json"}
    expected |= {f"video/{number:03d}.AVI" for number in NUMBERS}
    expected |= {
        f"annotation/{number:04d}/{name}/{index:04d}.png"
        for number in NUMBERS[:3]
        for name in ("maps", "fixation")
        for index in range(1, FRAMES + 1)
    }
    assert set(files(written)) == expected


@pytest.mark.parametrize("number", NUMBERS)
def test_videos(written, number):
    path = written / "video" / f"{number:03d}.AVI"
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == 30
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES
    frames = frames_of(path)
    assert len(frames) == FRAMES
    scene = sample.make_clip(number, frames=FRAMES, seed=0).scene
    for index, frame in enumerate(frames):
        assert frame.shape == (360, 640, 3)
        # Compression loses some, another frame or channel order is far off.
        difference = np.abs(frame.astype(int) - scene.render(index))
        assert difference.mean() < 4


def test_annotation(written):
    folder = written / "annotation" / "0601"
    clip = sample.make_clip(601, frames=FRAMES, seed=0)
    for index in range(FRAMES):
        fixation = read_png(folder / "fixation" / f"{index + 1:04d}.png")
        assert fixation.shape == (360, 640)
        assert fixation.dtype == np.uint8
        assert set(np.unique(fixation)) == {0, 255}
        np.testing.assert_array_equal(fixation > 0, clip.fixations[index])
        np.testing.assert_array_equal(
            read_png(folder / "maps" / f"{index + 1:04d}.png"),
            density.density_map(fixation),
        )


def test_a_clip_depends_on_its_number_and_the_seed_alone(written, tmp_path):
    more = sample.write(
        tmp_path / "more",
        train=2,
        test=1,
        validation=0,
        unannotated=0,
        frames=FRAMES,
        workers=1,
    )
    other = sample.write(
        tmp_path / "other",
        train=1,
        test=0,
        validation=0,
        unannotated=0,
        frames=FRAMES,
        seed=1,
    )
    first, second, third = files(written), files(more), files(other)
    common = (set(first) & set(second)) - {"sample.json"}
    assert {"video/001.AVI", "video/601.AVI"} <= common
    for name in common:
        assert first[name] == second[name], name
    assert first["video/001.AVI"] != third["video/001.AVI"]
    assert second["video/001.AVI"] != second["video/002.AVI"]


def test_finished_clips_are_not_written_again(tmp_path):
    root = sample.write(tmp_path, **ONE_EACH)
    before = files(root)
    # As if killed between the two moves of clip 501, and within clip 601.
    (root / "video" / "501.AVI").unlink()
    (root / "annotation" / "0501" / "maps" / "0001.png").write_bytes(b"")
    (root / "video" / "601.AVI").unlink()
    (root / ".writing" / "0601").mkdir(parents=True)
    (root / ".writing" / "0601" / "clip.avi").write_bytes(b"half")
    kept = root / "video" / "001.AVI"
    written_at = kept.stat().st_mtime_ns
    sample.write(tmp_path, **ONE_EACH)
    assert kept.stat().st_mtime_ns == written_at
    assert files(root) == before


def test_a_failing_clip_leaves_nothing(tmp_path, monkeypatch):
    # What OpenCV's writer does on a full disk: nothing.
    monkeypatch.setattr(sample.cv2, "VideoWriter", mock.MagicMock())
    with pytest.raises(OSError, match=rf"all {FRAMES} frames.*Received: 0"):
        sample.write(tmp_path, **ONE_EACH)
    assert not (tmp_path / "video").exists()
    assert not (tmp_path / "annotation").exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"frames": 7}, {"train": 2}])
def test_another_dataset_in_the_folder_is_refused(written, change):
    before = files(written)
    with pytest.raises(ValueError, match=r"one sample dataset\. Received"):
        sample.write(written, **{**ONE_EACH, **change})
    assert files(written) == before


def test_real_data_is_not_overwritten(tmp_path):
    (tmp_path / "video").mkdir()
    with pytest.raises(ValueError, match="not written over other data"):
        sample.write(tmp_path, **ONE_EACH)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 501}, "`train` must be between 0 and 500"),
        ({"unannotated": -1}, "`unannotated` must be .* Received: -1"),
        ({"frames": 0}, "at least one frame"),
        ({"seed": -1}, "seed=-1"),
        (
            dict.fromkeys(("train", "validation", "test", "unannotated"), 0),
            "at least one clip",
        ),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample.write(tmp_path / "set", **{**ONE_EACH, **arguments})
    assert not (tmp_path / "set").exists()


def test_program(written, tmp_path):
    arguments = [f"--{name}={count}" for name, count in ONE_EACH.items()]
    program = [sys.executable, "-m", "lsts_tf.sample", *arguments]
    result = subprocess.run(
        [*program, f"--output={tmp_path / 'set'}"],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"4 of 4; 0 s left", result.stderr)
    assert files(tmp_path / "set") == files(written)
    manifest = json.loads((tmp_path / "set" / "sample.json").read_text())
    assert manifest == {**ONE_EACH, "seed": 0}


def test_does_not_start_tensorflow():
    code = "import lsts_tf.sample, sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ,
        check=True,
        timeout=60,
    )


# === Content ===


@pytest.fixture(scope="module")
def gazes():
    """Radii, paths and fixations of many clips, without their pictures.

    Fixations are kept of the first, a middle and the last frame.
    """
    found = []
    for number in range(40):
        rng = np.random.default_rng(number)
        radii, paths = sample.move(rng, 84)
        fixations = sample.look(rng, radii, paths)
        assert fixations.shape == (84, 360, 640)
        assert fixations.dtype == bool
        found.append((radii, paths, fixations[[0, 50, 83]]))
    return found


def test_things_stay_in_the_frame_and_move_smoothly(gazes):
    for radii, paths, _ in gazes:
        assert 1 <= len(radii) <= 3
        assert paths.shape == (len(radii), 84, 2)
        assert radii[0] == radii.max()
        for radius, path in zip(radii, paths, strict=True):
            assert (path >= radius - 1e-9).all()
            assert (path <= np.array([640, 360]) - radius + 1e-9).all()
            speed = np.linalg.norm(np.diff(path, axis=0), axis=1)
            assert 0.1 < speed.mean() < 5
            assert speed.max() < 5
            # No jerks: the direction turns over several frames.
            assert np.abs(np.diff(path, n=2, axis=0)).max() < 1.5


def test_things_are_everywhere(gazes):
    ends = np.array([paths[0, -1] for _, paths, _ in gazes])
    thirds = np.floor(ends / (640 / 3, 360 / 3)).astype(int)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, tuple(thirds.T), 1)
    assert (counts > 0).sum() >= 8
    assert counts.max() <= 12


def test_gaze_begins_at_the_centre_and_ends_on_the_first_thing(gazes):
    distances = []
    for radii, paths, fixations in gazes:
        y, x = np.argwhere(fixations[0]).mean(axis=0)
        assert np.hypot(x - 320, y - 180) < 45
        y, x = np.median(np.argwhere(fixations[-1]), axis=0)
        distances.append(np.hypot(*(paths[0, -1] - (x, y))) / radii[0])
    assert np.mean(np.array(distances) < 1) > 0.85


def test_as_many_fixated_pixels_as_in_dhf1k(gazes):
    counts = [fixations[1:].sum(axis=(1, 2)) for *_, fixations in gazes]
    assert 100 < np.mean(counts) < 400
    assert np.min(counts) > 0


def test_the_centre_is_a_poor_guess_and_the_thing_a_good_one(gazes):
    truths = [density.density_map(fixations[-1]) for *_, fixations in gazes]
    y, x = np.mgrid[0:360, 0:640]
    prior, known = [], []
    for index, (_, paths, _) in enumerate(gazes):
        others = truths[:index] + truths[index + 1 :]
        prior.append(correlation(np.mean(others, axis=0), truths[index]))
        left, top = paths[0, -4]  # About as late as observers are.
        blob = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * 20**2))
        known.append(correlation(blob, truths[index]))
    assert np.mean(prior) < 0.25
    assert np.mean(known) > 0.7


def test_the_first_thing_stands_out():
    clip = sample.make_clip(3, frames=4, seed=0)
    frame = clip.scene.render(3)
    saturation = cv2.cvtColor(frame, cv2.COLOR_BGR2HSV)[..., 1].astype(float)
    x, y = np.rint(clip.scene.things[-1].path[3]).astype(int)
    inside = saturation[y - 15 : y + 15, x - 15 : x + 15]
    assert inside.mean() > saturation.mean() + 60


def test_the_backdrop_is_textured_and_moves_with_the_camera():
    scene = sample.make_clip(1, frames=30, seed=0).scene
    grey = cv2.cvtColor(scene.backdrop, cv2.COLOR_BGR2GRAY).astype(float)
    assert grey.std() > 8
    assert np.abs(np.diff(grey, axis=1)).mean() > 0.5
    assert np.abs(np.diff(scene.pan, axis=0)).max() > 0.05
    assert (scene.pan >= 0).all()
    assert (scene.pan <= 2 * sample.MARGIN).all()
