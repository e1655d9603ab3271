"""The formats of exported models: what is written, and what it answers.

A format is a function that writes a model into a folder, loads it again, and
returns what it answers beside what the model answers.
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

from absl import logging
import numpy as np
import tensorflow as tf

from lsts_tf import predictor as predictor_lib
from lsts_tf.serving import graph as graph_lib
from lsts_tf.serving import litert, parity

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
    """What a written function answers, beside what it should.

    Attributes:
        function: The function, traced.
        meanings: Of its inputs.
        got: Maps, float [..., 360, 640].
        want: The same by the model.
    """

    function: Any
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
        found = parity.compare(self.got, self.want)
        logging.info(
            "%s: largest difference %.2g, strongest point shifted by %.1f "
            "pixels",
            name,
            *found,
        )
        if not found.largest_difference <= _LIMIT:
            raise RuntimeError(
                f"What was written as {name!r} differs from the model by "
                f"{found.largest_difference}, so nothing is kept."
            )
        return found._asdict()


# What was written by name, and why something else was not.
Written = tuple[dict[str, Answer], dict[str, str]]


def saved_model(
    predictor: predictor_lib.Predictor,
    graph: graph_lib.Graph,
    folder: pathlib.Path,
) -> Written:
    """Writes a SavedModel, loads it again and asks it."""
    functions = graph.functions()
    graph_lib.save(functions, str(folder))
    loaded = tf.saved_model.load(str(folder))
    features = parity.features(predictor)
    asked: dict[str, dict[str, Any]] = {graph_lib.FEATURES: features}
    wanted = {graph_lib.FEATURES: parity.of_features(predictor, features)}
    if not graph.stops:
        frames = parity.frames()
        every = np.stack(list(predictor.maps(frames)))[None]
        wanted |= {graph_lib.LAST: every[:, -1], graph_lib.FRAMES: every}
        for name in (graph_lib.LAST, graph_lib.FRAMES):
            asked[name] = {"frames": tf.constant(frames[None])}
    answers = {
        name: Answer(
            function,
            _INPUTS,
            loaded.signatures[name](**asked[name])["saliency"].numpy(),
            wanted[name],
        )
        for name, function in functions.items()
    }
    return answers, {graph_lib.FRAMES: graph.stops} if graph.stops else {}


def tflite(
    predictor: predictor_lib.Predictor,
    graph: graph_lib.Graph,
    folder: pathlib.Path,
) -> Written:
    """Writes LiteRT files, loads them again and asks them."""
    decoder = graph.features(batch=1)
    litert.convert(decoder, folder / DECODER)
    features = parity.features(predictor)
    answers = {
        DECODER: Answer(
            decoder,
            _INPUTS,
            litert.run(folder / DECODER, features),
            parity.of_features(predictor, features),
        )
    }
    if reason := litert.stops_window(graph):
        return answers, {WINDOW: reason}
    window = litert.window(graph, folder / WINDOW)
    signals = parity.signals(predictor)
    encoded: dict[str, Any] = {}
    for stream, signal in signals.items():
        encoded |= graph.extractor.encode_parts(stream, signal[0])
    answers[WINDOW] = Answer(
        window,
        _SIGNALS,
        litert.run(folder / WINDOW, signals),
        np.stack(list(predictor.of_features([encoded]))),
    )
    return answers, {}
