"""The Python interface: arrays, clips, and frames that are still being made."""

import doctest
import functools
import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import lsts_tf
from lsts_tf import predictor as predictor_lib
from lsts_tf.media import video
from lsts_tf.media import writer as writer_lib
from tests import fake_front_end, pages, tiny_run

WINDOW = 9
FRAMES = 31


class Model:
    """In the place of the decoder."""

    output_shape = (None, 2, 3, 1)

    def __call__(self, features, *, training):
        assert not training
        maps = sum(f[:, -1, :, :, :3] for f in features.values())
        return tf.transpose(maps, (0, 1, 3, 2))[..., :1]


def cheap(streams=("rgb",)):
    extractor = fake_front_end.Extractor(streams, window=WINDOW, size=(64, 96))
    return predictor_lib.Predictor(Model(), extractor)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(
        0, 256, (FRAMES, 16, 24, 3), np.uint8
    )


@pytest.mark.parametrize(
    ("streams", "chunk"),
    [
        (("rgb",), 1),
        (("flow",), 3),
        (("rgb", "flow"), 1),
        (("rgb", "flow"), 8),
        (("rgb", "flow"), 50),
    ],
)
def test_maps_of_a_stream_come_in_time(frames, streams, chunk):
    predictor = cheap(streams)
    taken, maps, delays = [], [], []

    def camera():
        for frame in frames:
            taken.append(1)
            yield frame

    for n, saliency in enumerate(predictor.stream(camera(), chunk=chunk)):
        delays.append(len(taken) - 1 - n)
        maps.append(saliency)
    assert predictor.delay(chunk) == chunk - 1
    assert max(delays) == min(chunk, FRAMES) - 1
    want = list(predictor.maps(frames))
    assert len(maps) == len(want) == FRAMES
    np.testing.assert_allclose(maps, want, rtol=1e-5)


def test_a_run_is_served_with_less_lookahead(tmp_path):
    for front_end in ("window", "continuous"):
        tiny_run.make(tmp_path / front_end, front_end=front_end)
    load = predictor_lib.Predictor.load
    assert load(tmp_path / "continuous").delay(1) == 51
    live = load(tmp_path / "continuous", lookahead=3)
    assert (live.delay(1), live.delay(8)) == (3, 17)
    with pytest.raises(ValueError, match="lookahead=3, front_end='window'"):
        load(tmp_path / "window", lookahead=3)
    described = tmp_path / "window" / "front_end.json"
    text = described.read_text()
    described.write_text(text.replace('"window": 9', '"window": 79'))
    message = r"/window was .*one: window: 79 then, 9 now\. Use the flagfile"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "window")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_run_is_served_in_fewer_bits(tmp_path, dtype):
    tiny_run.make(tmp_path / "run", front_end="continuous")
    exact, coarse = (
        predictor_lib.Predictor.load(tmp_path / "run", dtype=chosen)
        for chosen in (None, dtype)
    )
    assert exact.extractor.describe()["dtype"] == "float32"
    assert coarse.extractor.describe()["dtype"] == dtype
    clip = tiny_run.frames(20, 90, 160)
    want, found = exact(clip), coarse(clip)
    assert 0 < np.abs(found - want).mean() < 0.01
    each = np.stack(list(coarse.stream(iter(clip), chunk=1)))
    assert 0 < np.abs(each - want).mean() < 0.01


def test_windows_alone_are_not_computed_in_eight_bits(tmp_path):
    tiny_run.make(tmp_path / "run")
    with pytest.raises(ValueError, match=r"Only --front_end=continuous .*int8"):
        predictor_lib.Predictor.load(tmp_path / "run", dtype="int8")


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_streams_shorter_than_a_window(frames, count):
    predictor = cheap()
    maps = list(predictor.stream(frames[:count]))
    assert len(maps) == count
    np.testing.assert_allclose(
        maps, list(predictor.maps(frames[:count])), rtol=1e-5
    )
    with pytest.raises(ValueError, match="first_frames=mirror"):
        predictor(frames[:count], first_frames="copy")


def test_a_stream_ends_with_the_error_of_its_frames(frames):
    def broken():
        yield from frames[:3]
        raise OSError("the camera is gone")

    maps = cheap(("flow",)).stream(broken(), chunk=1)
    assert len(list(itertools.islice(maps, 3))) == 3
    with pytest.raises(OSError, match="the camera is gone"):
        next(maps)


def test_a_chunk_has_a_frame(frames):
    with pytest.raises(ValueError, match="chunk=0"):
        cheap().stream(frames, chunk=0)


def test_arrays_in_arrays_out(frames):
    predictor = cheap(("rgb", "flow"))
    maps = predictor(frames)
    assert maps.shape == (FRAMES, 2, 3)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, list(predictor.maps(frames)))
    copied = predictor(frames, first_frames="copy")
    alone = predictor(frames, first_frames="skip")
    np.testing.assert_array_equal(alone, copied[predictor.first_map :])
    np.testing.assert_array_equal(copied[0], copied[9])
    assert predictor(frames[:0]).shape == (0, 2, 3)


def test_importing_the_package_is_quick():
    code = (
        "import sys, lsts_tf\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'cv2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pages.ROOT)
    assert lsts_tf.Predictor is predictor_lib.Predictor
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        _ = lsts_tf.predict_all


def test_the_examples_in_the_documentation(tmp_path, monkeypatch):
    """On a run with windows of nine frames, whose other numbers are equal."""
    monkeypatch.chdir(tmp_path)
    # One model for all pages.
    load = functools.cache(predictor_lib.Predictor.load)
    monkeypatch.setattr(
        predictor_lib.Predictor,
        "load",
        # The starter has windows of 79 frames, which take minutes.
        lambda run="workspace/runs/rgb": load(os.path.realpath(run)),
    )
    tiny_run.make(pathlib.Path("workspace/runs/rgb"))
    clip = tiny_run.frames(3, 90, 160)
    with writer_lib.Writer("in.mp4", fps=25, size=(160, 90)) as writer:
        for frame in clip:
            writer.write(frame)
    options = doctest.NORMALIZE_WHITESPACE
    page = doctest.testfile(
        str(pages.ROOT / "docs" / "api.md"),
        module_relative=False,
        optionflags=options,
    )
    strings = doctest.testmod(predictor_lib, optionflags=options)
    assert page.failed == strings.failed == 0
    assert page.attempted > 10
    assert strings.attempted > 3
    assert np.load("out/maps.npy").shape == (3, 90, 160)
    assert video.Video("out/overlay.mp4").num_frames == 3
    few = clip[:2]
    (found,) = pages.run_python("README.md", frames=few, camera=iter(few))
    assert found["maps"].shape == (2, 360, 640)
    # The last one; a stream cannot be mirrored before it has come.
    want = found["predictor"](few, first_frames="repeat")[-1]
    np.testing.assert_allclose(found["saliency"], want, atol=1e-4)
