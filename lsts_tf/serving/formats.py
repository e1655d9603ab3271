"""The formats of exported models: what is written, and what it returns.

A format is a function that writes a model into a folder, loads it again, and
returns what it answers beside what the model answers.
"""

from collections.abc import Mapping
import pathlib
import shutil
from typing import Any, NamedTuple

from absl import logging
import cv2
import keras
import numpy as np
import tensorflow as tf

from lsts_tf.serving import graph as graph_lib
from lsts_tf.serving import litert

DECODER = "decoder.tflite"
WINDOW = "window.tflite"
# A file whose answers differ by more from the model's is not handed over: two
# and a half of 256 grey levels. Rounding alone stays below it.
_LIMIT = 0.01

_INPUTS = {
    "frames": "uint8 RGB, 0 … 255, any size, frame 0 first",
    "rgb": "features of frames, by this front end",
    "flow": "features of flow, by this front end",
}
_SIGNALS = {
    "rgb": "uint8 RGB, 0 … 255: whole frames squeezed to this size, bilinear, "
    "by area where both sides are at least twice as long",
    "flow": "TV-L1 flow at this size, (x, y) in pixels a frame, oldest first",
}


class Answer(NamedTuple):
    """What a traced function answers once written, beside what it should.

    Both are maps, float [..., 360, 640].
    """

    function: Any
    # Of its inputs.
    meanings: Mapping[str, str]
    got: np.ndarray
    want: np.ndarray

    def signature(self) -> dict[str, Any]:
        """Inputs and output, as `metadata.json` says them."""
        specs = self.function.structured_input_signature[1]
        output = self.function.structured_outputs["saliency"]
        return {
            "inputs": {
                name: {
                    "dtype": spec.dtype.name,
                    "shape": spec.shape.as_list(),
                    "meaning": self.meanings[name.partition("_")[0]],
                }
                for name, spec in specs.items()
            },
            "output": "saliency: float32, 0 … 1",
            "output_shape": output.shape.as_list(),
        }

    def parity(self, name: str) -> dict[str, float]:
        """How far both are apart.

        Raises:
            RuntimeError: Further than rounding explains.
        """
        found = compare(self.got, self.want)
        largest, shift = found.values()
        logging.info(
            "%s: largest difference %.2g, strongest point shifted by %.1f "
            "pixels",
            *(name, largest, shift),
        )
        if not largest <= _LIMIT:
            raise RuntimeError(
                f"What was written as {name!r} differs from the model by "
                f"{largest}, so nothing is kept."
            )
        return found


# What was written by name, and why something else was not.
Written = tuple[dict[str, Answer], dict[str, str]]


def saved_model(graph: graph_lib.Graph, folder: pathlib.Path) -> Written:
    """Writes a SavedModel, loads it again and asks it."""
    functions = graph.functions()
    graph_lib.save(functions, str(folder))
    loaded = tf.saved_model.load(str(folder))
    inputs = _features(graph)
    want = _maps(graph.predictor.model, inputs)
    asked: dict[str, Any] = {graph_lib.FEATURES: (inputs, want)}
    if not graph.stops:
        frames = _frames()
        inputs = {"frames": tf.constant(frames[None])}
        want = graph.predictor(frames)[None]
        asked[graph_lib.FRAMES] = inputs, want
        asked[graph_lib.LAST] = inputs, want[:, -1]
    answers = {}
    for name, (inputs, want) in asked.items():
        got = loaded.signatures[name](**inputs)["saliency"].numpy()
        answers[name] = Answer(functions[name], _INPUTS, got, want)
    return answers, {graph_lib.FRAMES: graph.stops} if graph.stops else {}


def tflite(graph: graph_lib.Graph, folder: pathlib.Path) -> Written:
    """Writes LiteRT files, loads them again and asks them."""

    def written(
        name: str,
        function: Any,
        meanings: Mapping[str, str],
        inputs: Mapping[str, np.ndarray],
        features: Mapping[str, Any],
    ) -> Answer:
        litert.convert(function, folder / name)
        got = litert.run(folder / name, inputs)
        return Answer(function, meanings, got, _maps(model, features))

    model, features = graph.predictor.model, _features(graph)
    decoder = graph.features(batch=1)
    answers = {DECODER: written(DECODER, decoder, _INPUTS, features, features)}
    if graph.stops:
        return answers, {WINDOW: graph.stops}
    signals = _signals(graph)
    features, window = graph.encode(**signals), graph.window()
    answers[WINDOW] = written(WINDOW, window, _SIGNALS, signals, features)
    return answers, {}


def hub(graph: graph_lib.Graph, folder: pathlib.Path) -> Written:
    """Writes the model as Keras does for hubs, loads it again and asks it."""
    model, features = graph.predictor.model, _features(graph)
    keras.saving.save_model(model, folder, zipped=False)
    # Hubs keep no empty folders; of a whole path Keras leaves this one.
    shutil.rmtree(folder / "assets", ignore_errors=True)
    again = keras.saving.load_model(folder, compile=False)
    got, want = (_maps(x, features) for x in (again, model))
    answer = Answer(graph.features(), _INPUTS, got, want)
    return {graph_lib.FEATURES: answer}, {}


# === What both are asked, and how far they are apart ===


def compare(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """Compares maps in 0 … 1, float [..., H, W].

    Returns:
        "largest_difference" of all pixels, and "peak_shift", the largest
        distance between the strongest points of a map, in pixels.

    Raises:
        ValueError: They have different shapes.
    """
    if got.shape != want.shape:
        raise ValueError(
            "Only maps of one shape can be compared. "
            f"Received: {got.shape} and {want.shape}"
        )
    size = want.shape[-2:]
    points = [
        np.stack(np.unravel_index(np.argmax(flat, axis=1), size))
        for flat in (m.reshape(-1, size[0] * size[1]) for m in (got, want))
    ]
    return {
        "largest_difference": float(np.abs(got - want).max()),
        "peak_shift": float(np.hypot(*(points[0] - points[1])).max()),
    }


def _features(graph: graph_lib.Graph) -> dict[str, np.ndarray]:
    """Two windows' features as ReLU leaves them: not negative, many zeros."""
    rng = np.random.default_rng(0)
    some = {
        part: rng.normal(-0.1, 0.5, (2, *shape)).astype(np.float32)
        for part, shape in graph.part_shapes.items()
    }
    return {part: np.maximum(array, 0) for part, array in some.items()}


def _maps(model: keras.Model, features: Mapping[str, Any]) -> np.ndarray:
    """Maps [N, 360, 640], or [N, hop, 360, 640] of several a window."""
    return model(features, training=False).numpy()[..., 0]


def _frames() -> np.ndarray:
    """Two frames of drifting blobs, uint8 [2, 180, 320, 3].

    Few: where motion is ambiguous, rounding alone may end TV-L1 elsewhere in
    single pixels, and the maps then say nothing of the graph. Two frames have
    one flow that is not zero, and on this it does not.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
    scene = cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_CUBIC)
    return np.stack([scene, np.roll(scene, 4, axis=1)])


def _signals(graph: graph_lib.Graph) -> dict[str, np.ndarray]:
    """One window of each stream: [1, window, h, w, channels]."""
    extractor, some = graph.extractor, _frames()
    found: dict[str, np.ndarray] = {}
    for stream in extractor.streams:
        if stream == "rgb":
            each = [extractor.prepare(frame)["rgb"] for frame in some]
        else:
            # There and back.
            back_and_forth = extractor.flows([*some, some[0]])
            each = [flow.astype(np.float32) for flow in back_and_forth]
        places = np.arange(extractor.window) % len(each)
        found[stream] = np.stack(each)[places][None]
    return found
