"""A front end that this file alone defines goes the whole way."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest

from lsts_tf import evaluate, extract, parts
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import front_end
from lsts_tf.training import loop
from tests import folders, run_folder


class Toy(front_end.FrontEnd):
    """Means of the first and the second half of a window, on a coarse grid."""

    def __init__(self, streams, *, window, size, name, **_):
        super().__init__(
            streams, window=window, size=size, name=name, flow="dis"
        )

    def part_shapes(self, stream):
        return {stream: (2, 4, 4, 2)}

    def describe(self):
        return {
            "front_end": self.name,
            "window": self.window,
            "streams": {s: {"rule": "mean of halves"} for s in self.streams},
        }

    def encode_parts(self, stream, clip):
        half = self.window // 2
        few = keras.ops.image.resize(
            keras.ops.cast(clip[..., :2], "float32"),
            (4, 4),
            data_format="channels_last",
        )
        halves = (few[:half], few[half:])
        means = [keras.ops.mean(frames, axis=0) for frames in halves]
        return {stream: keras.ops.stack(means) / 255.0}


@pytest.fixture
def settings(small_settings, monkeypatch):
    monkeypatch.setitem(parts.FRONT_ENDS, "toy", f"{__name__}:Toy")
    return dataclasses.replace(small_settings, front_end="toy")


def test_a_toy_front_end_stores_trains_and_predicts(settings):
    extract.extract(settings, ["train"])
    root = pathlib.Path(settings.store_dir) / "dhf1k-1.0.0"
    store = root / "rgb-toy16-stride2-first1"
    assert folders.numbers(store) == [1, 2]
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["details"]["rule"] == "mean of halves"
    assert loop.run(settings) == 0
    folder = pathlib.Path(settings.run_dir)
    described = json.loads((folder / "front_end.json").read_text())
    assert described["front_end"] == "toy"
    assert evaluate.evaluate(settings)[0]["frames"] == 20
    predictor = predictor_lib.Predictor.load(folder)
    assert isinstance(predictor.extractor, Toy)
    frames = run_folder.assert_straight_is_scored(settings, predictor)
    live = list(predictor.stream(frames, chunk=1))
    np.testing.assert_allclose(np.stack(live), predictor(frames), atol=1e-4)


def test_another_front_end_than_it_was_trained_on_is_refused(settings):
    folder = pathlib.Path(settings.run_dir)
    folder.mkdir(parents=True)
    described = {"front_end": "toy", "window": 79}
    (folder / front_end.DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(ValueError, match="window: 79 then, 16 now"):
        loop.run(settings)


def test_what_is_no_frame_is_refused():
    toy = Toy(("rgb",), window=4, size=(32, 32), name="toy")
    for shape, dtype in (
        ((8, 8, 3), np.float32),
        ((8, 8), np.uint8),
        ((8, 8, 4), np.uint8),
        ((0, 8, 3), np.uint8),
        ((1, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match=r"RGB \[H, W, 3\]. Received"):
            toy.prepare(np.zeros(shape, dtype))
