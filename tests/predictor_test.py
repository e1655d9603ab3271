"""The Python interface: arrays, clips, and frames that are still being made."""

import doctest
import functools
import itertools
import os
import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tensorflow as tf

import lsts_tf
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import flow
from lsts_tf.media import video
from lsts_tf.media import writer as writer_lib
from tests import pages
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[1]
WINDOW = 9
FRAMES = 31


class Sliding:
    """In the place of SlidingI3D: a sum that knows the order of a window.

    Features come `delay` elements late, as those of the continuous one.
    """

    costs = {}  # noqa: RUF012

    def __init__(self, delay=0):
        self.delay = delay
        self.reset()

    def reset(self):
        self.seen = []
        self.given = 0

    def stand_still(self, element):
        self.reset()
        self.seen = [float(element.mean())] * (WINDOW - 1)

    def push_parts(self, elements, *, wait=False):
        del wait
        self.seen += [float(e.mean()) for e in elements]
        return {"Mixed_5c": self._upto(len(self.seen) - self.delay)}

    def finish_parts(self):
        return {"Mixed_5c": self._upto(len(self.seen))}

    def _upto(self, count):
        found = []
        while self.given + WINDOW <= count:
            some = self.seen[self.given : self.given + WINDOW]
            found.append(np.float32(np.dot(some, np.arange(WINDOW))))
            self.given += 1
        return found


class Extractor(extractor_lib.Extractor):
    """Everything but I3D."""

    note = ""

    def __init__(self, streams, *, delay=0):
        self.streams = streams
        self.window = WINDOW
        self.name = "continuous" if delay else "window"
        self.dtype = "float32"
        self.size = (224, 224)
        self.skips = ()
        self.end_point = "Mixed_5c"
        self.flow = flow.Flow("dis", workers=2)
        self._sliding = {(stream, 1): Sliding(delay) for stream in streams}
        self._turns = {}

    def of_still(self, stream, element):
        (found,) = self.features(stream, [element] * WINDOW)
        return found


class Model:
    """In the place of the decoder."""

    output_shape = (None, 2, 3, 1)

    def __call__(self, features, *, training):
        assert not training
        total = sum(features.values())
        return tf.reshape(total, (-1, 1, 1, 1)) * tf.ones((1, 2, 3, 1))


def cheap(streams=("rgb",), **keywords):
    return predictor_lib.Predictor(Model(), Extractor(streams, **keywords))


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(
        0, 256, (FRAMES, 16, 24, 3), np.uint8
    )


@pytest.mark.parametrize(
    ("streams", "chunk", "first_frames"),
    [
        (("rgb",), 1, "repeat"),
        (("rgb",), 3, "mirror"),
        (("rgb",), 8, "copy"),
        (("flow",), 1, "copy"),
        (("flow",), 3, "repeat"),
        (("flow",), 8, "mirror"),
        (("rgb", "flow"), 1, "mirror"),
        (("rgb", "flow"), 3, "copy"),
        (("rgb", "flow"), 8, "repeat"),
        (("rgb", "flow"), 9, "mirror"),
        (("rgb", "flow"), 50, "repeat"),
    ],
)
def test_maps_of_a_stream_come_in_time(frames, streams, chunk, first_frames):
    predictor = cheap(streams)
    taken = []

    def camera():
        for frame in frames:
            taken.append(1)
            yield frame

    # Those that need frame 8 (9) come when its map would.
    start = 0 if first_frames == "repeat" else predictor.geometry.first_target
    maps, delays = [], []
    for n, saliency in enumerate(
        predictor.stream(camera(), first_frames=first_frames, chunk=chunk)
    ):
        delays.append(len(taken) - 1 - max(n, start))
        maps.append(saliency)
    assert predictor.delay(chunk) == chunk - 1
    whole = chunk < FRAMES - start
    assert max(delays) == (chunk - 1 if whole else FRAMES - 1 - start)
    want = list(predictor.maps(frames, first_frames=first_frames))
    assert len(maps) == len(want) == FRAMES
    np.testing.assert_allclose(maps, want, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 8])
def test_the_continuous_front_end_says_how_far_it_looks_ahead(frames, chunk):
    predictor = cheap(("rgb", "flow"), delay=5)
    taken, delays, maps = [], [], []

    def camera():
        for frame in frames:
            taken.append(1)
            yield frame

    for n, saliency in enumerate(predictor.stream(camera(), chunk=chunk)):
        delays.append(len(taken) - 1 - n)
        maps.append(saliency)
    assert max(delays) <= predictor.delay(chunk)
    assert predictor.delay(chunk) == 5 + 2 * (chunk - 1)
    np.testing.assert_allclose(
        maps, list(predictor.maps(frames, first_frames="repeat")), rtol=1e-6
    )


def test_a_run_is_served_with_less_lookahead(tmp_path):
    for front_end in ("window", "continuous"):
        tiny_run.make(tmp_path / front_end, front_end=front_end)
    load = predictor_lib.Predictor.load
    assert load(tmp_path / "continuous").delay(1) == 51
    live = load(tmp_path / "continuous", lookahead=3)
    assert (live.delay(1), live.delay(8)) == (3, 17)
    with pytest.raises(ValueError, match="lookahead=3, front_end='window'"):
        load(tmp_path / "window", lookahead=3)


@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_streams_shorter_than_a_window(frames, count):
    predictor = cheap()
    for mode in ("repeat", "mirror"):
        maps = list(predictor.stream(frames[:count], first_frames=mode))
        want = list(predictor.maps(frames[:count], first_frames=mode))
        assert len(maps) == count
        np.testing.assert_allclose(maps, want, rtol=1e-6)
    with pytest.raises(ValueError, match="first_frames=mirror"):
        list(predictor.stream(frames[:count], first_frames="copy"))


def test_a_second_clip_does_not_spoil_the_first_unnoticed(frames):
    predictor = cheap()
    first = predictor.stream(frames, chunk=1)
    next(first)
    second = predictor.stream(frames, chunk=1)
    next(second)
    with pytest.raises(RuntimeError, match="Another clip was begun"):
        next(first)
    assert len(list(second)) == FRAMES - 1


def test_a_stream_ends_with_the_error_of_its_frames(frames):
    def broken():
        yield from frames[:3]
        raise OSError("the camera is gone")

    maps = cheap().stream(broken(), chunk=1)
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
    np.testing.assert_array_equal(copied[0], copied[9])
    assert predictor(frames[:0]).shape == (0, 2, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 4, 5, 3), np.float32),
        np.zeros((2, 4, 5, 4), np.uint8),
        np.zeros((2, 4, 5), np.uint8),
        np.zeros((2, 0, 5, 3), np.uint8),
        np.zeros((1, 2, 4, 5, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused(wrong):
    with pytest.raises(ValueError, match=r"uint8 RGB \[H, W, 3\]. Received"):
        cheap()(wrong)


def test_importing_the_package_is_quick():
    code = (
        "import sys, lsts_tf\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'cv2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert lsts_tf.Predictor is predictor_lib.Predictor
    with pytest.raises(AttributeError, match="no attribute 'predict_all'"):
        _ = lsts_tf.predict_all


def test_another_front_end_is_refused_with_what_differs(tmp_path):
    there = {"window": 79, "streams": {"rgb": {"weights": "a"}}}
    now = {"window": 16, "streams": {"rgb": {"weights": "a"}}}
    predictor_lib._check_front_end(tmp_path, there, there)
    with pytest.raises(ValueError, match="window: 79 then, 16 now") as error:
        predictor_lib._check_front_end(tmp_path, there, now)
    assert str(tmp_path) in str(error.value)
    assert "weights" not in str(error.value)


def test_the_same_weights_from_elsewhere_are_the_same_front_end(tmp_path):
    there = {"streams": {"rgb": {"weights": "a", "weights_sha256": "1"}}}
    now = {"streams": {"rgb": {"weights": "b", "weights_sha256": "1"}}}
    predictor_lib._check_front_end(tmp_path, there, now)
    now["streams"]["rgb"]["weights_sha256"] = "2"
    with pytest.raises(ValueError, match="weights_sha256: '1' then, '2' now"):
        predictor_lib._check_front_end(tmp_path, there, now)


def test_the_version_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lsts_tf.__version__ == project["version"]


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
        str(ROOT / "docs" / "api.md"),
        module_relative=False,
        optionflags=options,
    )
    strings = doctest.testmod(predictor_lib, optionflags=options)
    assert page.failed == strings.failed == 0
    assert page.attempted > 10
    assert strings.attempted > 3
    pathlib.Path("workspace/sample").mkdir()
    pathlib.Path("workspace/sample/run").symlink_to("../runs/rgb")
    (found,) = pages.run_python("predict.md")
    assert found["damage"] == ""
    assert np.load("out/maps.npy").shape == (3, 360, 640)
    assert video.Video("out/overlay.mp4").num_frames == 3
    few = clip[:2]
    (found,) = pages.run_python("README.md", frames=few, camera=iter(few))
    assert found["maps"].shape == (2, 360, 640)
    # The last one; a stream cannot be mirrored before it has come.
    want = found["predictor"](few, first_frames="repeat")[-1]
    np.testing.assert_allclose(found["saliency"], want, atol=1e-4)
