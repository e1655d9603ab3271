import itertools

import cv2
import numpy as np
import pytest

from lsts_tf.media import draw, files, video
from lsts_tf.outputs import pictures
from tests import folders
from tests.outputs import clips

SIZE = (32, 18)
FRAME = np.full((18, 32, 3), 90, np.uint8)


def maps_of(count, seed=0):
    """Smooth maps in [0, 1], as a network makes them."""
    rng = np.random.default_rng(seed)
    small = rng.random((count, 5, 8), np.float32)
    return [cv2.resize(m, (640, 360)) for m in small]


def made(kind, path, **kwargs):
    return kind(path=path, fps=25.0, size=SIZE, **kwargs)


# === Maps ===


def arrays(folder, maps, **options):
    path, clip = folder / "maps.npy", ((FRAME, map_) for map_ in maps)
    clips.written(pictures.Array, path, clip, size=SIZE, **options)
    return np.load(path)


def test_normalisations(tmp_path):
    found = maps_of(3)
    same = arrays(tmp_path, found, map_size="model")
    np.testing.assert_array_equal(same, found)
    small = np.stack([cv2.resize(map_, SIZE) for map_ in found])
    np.testing.assert_array_equal(arrays(tmp_path, found), small)
    frame = arrays(tmp_path, found, normalize="frame")
    assert (frame.min((1, 2)) == 0).all() and (frame.max((1, 2)) == 1).all()
    clip = arrays(tmp_path, found, normalize="clip", map_size="model")
    want = (same - same.min()) / (same.max() - same.min())
    np.testing.assert_allclose(clip, want, atol=1e-6)
    total = arrays(tmp_path, found, normalize="sum")
    want = small / small.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(total, want, rtol=1e-4)
    flat = np.zeros((360, 640), np.float32)
    for how in ("frame", "sum", "clip"):
        zeros = arrays(tmp_path, [flat], normalize=how)
        np.testing.assert_array_equal(zeros, 0)
    constant = arrays(tmp_path, [flat + 0.7], normalize="frame")
    np.testing.assert_array_equal(constant, 0)


def test_grey_videos_of_the_models_size(tmp_path):
    with pytest.raises(ValueError, match="millionths"):
        made(pictures.Saliency, tmp_path / "a.mp4", normalize="sum")
    found, how = maps_of(6), {"size": SIZE, "map_size": "model"}
    clip = ((FRAME, map_) for map_ in found)
    path = clips.written(pictures.Saliency, tmp_path / "a.mp4", clip, **how)
    eight = np.stack([f[..., 0] for f in video.frames(path)])
    difference = np.abs(eight - np.stack(found) * 255)
    assert difference.mean() < 1 and difference.max() < 8


# === Films to watch ===


def test_pictures_to_watch(tmp_path):
    """A frame and its overlay beside it; random weights are announced."""
    frame = np.full((180, 320, 3), 90, np.uint8)
    weak = np.linspace(0, 0.01, 640 * 360, dtype=np.float32).reshape(360, 640)
    shown = {}
    for beside, note in itertools.product((False, True), ("", "random I3D")):
        how = {"note": note, "view": "fog", "beside": beside}
        how |= {"size": (320, 180), "path": tmp_path / "a.mp4"}
        path = clips.written(pictures.Overlay, clip=3 * [(frame, weak)], **how)
        _, middle, _ = video.frames(path)
        shown[beside, bool(note)] = middle.astype(int)
    plain, both = shown[False, False], shown[True, False]
    assert plain.shape == (180, 320, 3) and both.shape == (180, 644, 3)
    want = draw.over(frame, weak, view="fog", alpha=0.6)
    np.testing.assert_allclose(plain, want, atol=8)
    np.testing.assert_allclose(both[:, :316], 90, atol=4)
    np.testing.assert_allclose(both[:, 328:], want[:, 4:], atol=8)
    for beside in (False, True):
        corner = np.abs(shown[beside, True] - shown[beside, False])
        assert corner[-15:, :100].max() > 100


# === Whole or not at all ===


@pytest.mark.parametrize("job", ["", "a job"])
def test_what_comes_into_a_folder_while_maps_are_made_stays(tmp_path, job):
    path = tmp_path / "maps"
    path.mkdir()
    output = made(pictures.Pictures, path, job=job)
    refusal = pytest.raises(
        files.FileError, match=r"'a.txt', which is not a map"
    )
    with refusal, output:
        output.write(FRAME, maps_of(1)[0], 0.0)
        (path / "a.txt").write_text("a letter")
    assert (path / "a.txt").read_text() == "a letter"
    kept = [".maps.part"] if job else []
    assert folders.listed(tmp_path) == [*kept, "maps"]


# === Going on ===


def test_a_picture_that_was_cut_off(tmp_path):
    path, found = tmp_path / "maps", maps_of(3)
    with (
        pytest.raises(KeyboardInterrupt),
        made(pictures.Pictures, path, job="one") as output,
    ):
        for map_ in found:
            output.write(FRAME, map_, 0.0)
        raise KeyboardInterrupt
    part = tmp_path / ".maps.part" / "maps"
    (part / ".0004.123.png").write_bytes(b"half")
    (part / "0002.png").unlink()
    with made(pictures.Pictures, path, job="one") as output:
        assert output.count == 1
        for map_ in found[1:]:
            output.write(FRAME, map_, 0.0)
    assert folders.listed(path) == ["0001.png", "0002.png", "0003.png"]
