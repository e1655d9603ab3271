"""A trained model as one TensorFlow graph, from frames to maps.

`Graph` has a function for each way of asking, in plain TensorFlow operations:
neither OpenCV nor this package is needed where they run. Frames are uint8 RGB
[B, T, H, W, 3], of B clips of T frames; a map is float32 [360, 640] in [0, 1].
Before a clip its first frame is held, as in `Predictor.maps`.

Each window is computed alone: a graph that anybody calls has no past to share
work with. For long clips `Predictor` needs about a fifth of the arithmetic.
"""

from collections.abc import Callable
import functools
from typing import Any

import tensorflow as tf

from lsts_tf import parts
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import tvl1
from lsts_tf.serving import resize

FEATURES = "features"
FRAMES = "serving_default"
LAST = "last"


class Graph:
    """The functions of a model.

    Args:
        predictor: The model.

    Attributes:
        stops: Why frames cannot be taken, or "" where they can.
    """

    def __init__(self, predictor: predictor_lib.Predictor) -> None:
        self.extractor = predictor.extractor
        self.geometry = predictor.geometry
        self.stops = _what_stops(predictor)
        self._model = predictor.model
        self._map_shape = self._model.output_shape[-3:-1]
        # Functions, so that all signatures share one tracing of each.
        self._encode = {
            stream: tf.function(
                functools.partial(self.extractor.encode_parts, stream),
                autograph=False,
            )
            for stream in self.extractor.streams
        }
        self._motion = tf.function(_motion, autograph=False)

    def functions(self) -> dict[str, Any]:
        """Traced functions by name, for any number of clips.

        Returns:
            "features": {stream: float32 [B, 5, 5, 5, 1024]} to maps, [B, 360,
            640]; and where frames can be taken "serving_default", uint8
            frames [B, T, H, W, 3] to a map of each, [B, T, 360, 640], and
            "last", the same frames to the map of the last one, [B, 360, 640].
            What is returned is named "saliency".
        """
        found = {FEATURES: self.features()}
        if not self.stops:
            frames = tf.TensorSpec([None, None, None, None, 3], tf.uint8)
            for name in (FRAMES, LAST):
                call = self._maps(only_last=name == LAST)
                found[name] = trace(call, frames=frames)
        return found

    def features(self, batch: int | None = None) -> Any:
        """The decoder alone, traced; see `functions`."""
        return trace(
            self.decode,
            **{
                part: tf.TensorSpec((batch, *shape))
                for stream in self.extractor.streams
                for part, shape in self.extractor.part_shapes(stream).items()
            },
        )

    def decode(self, **features: tf.Tensor) -> dict[str, tf.Tensor]:
        """The map of features, [B, 360, 640]."""
        return {"saliency": self._model(features, training=False)[..., 0]}

    def _maps(self, *, only_last: bool) -> Callable:
        """Clips to maps, [B, T, 360, 640], or to those of the last frames."""

        def of_clip(clip: tf.Tensor) -> tf.Tensor:
            found = self._of_clip(clip, only_last=only_last)
            return found[0] if only_last else found

        shape = self._map_shape if only_last else (None, *self._map_shape)
        spec = tf.TensorSpec(shape, tf.float32)
        return lambda *, frames: {"saliency": _each(of_clip, frames, spec)}

    def _of_clip(self, frames: tf.Tensor, *, only_last: bool) -> tf.Tensor:
        """Maps of the frames of one clip, [T, H, W, 3], or of its last one."""
        count = tf.shape(frames)[0]
        first = count - 1 if only_last else 0
        played = tf.range(first - self.geometry.first_target, count)
        places = tf.maximum(played, 0)
        signals = {
            stream: self._signal(stream, frames, places)
            for stream in self.extractor.streams
        }

        def window(index: tf.Tensor) -> tf.Tensor:
            features = {}
            for stream, signal in signals.items():
                # Signal k of "flow" is the motion to frame k + 1 already.
                is_behind = stream == "rgb" and self.geometry.first
                start = index + 1 if is_behind else index
                clip = signal[start : start + self.geometry.length]
                clip = tf.ensure_shape(
                    clip, (self.geometry.length, *signal.shape[1:])
                )
                for part, found in self._encode[stream](clip).items():
                    features[part] = found[None]
            return self.decode(**features)["saliency"][0]

        spec = tf.TensorSpec(self._map_shape, tf.float32)
        return _each(window, tf.range(count - first), spec)

    def _signal(
        self, stream: str, frames: tf.Tensor, places: tf.Tensor
    ) -> tf.Tensor:
        """What windows are cut from: squeezed frames, or flows."""
        size = self.extractor.size
        if stream == "rgb":
            spec = tf.TensorSpec((*size, 3), tf.uint8)
            shrink = functools.partial(resize.squeeze, size=size)
            return tf.gather(_each(shrink, frames, spec), places)
        half = parts.half(size)
        shrink = functools.partial(resize.gray, size=half)
        grays = _each(shrink, frames, tf.TensorSpec(half, tf.uint8))
        grays = tf.gather(grays, places)
        return tf.map_fn(
            lambda k: self._motion(grays[k], grays[k + 1]),
            tf.range(tf.shape(places)[0] - 1),
            fn_output_signature=tf.TensorSpec((*half, 2), tf.float16),
        )


def _motion(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Flow of one pair of grey frames, in half precision as it is stored."""
    flows = tvl1.flow(first[None], second[None])
    return tf.cast(flows[0], tf.float16)


def save(functions: dict[str, Any], path: str) -> None:
    """Write traced functions as the signatures of a SavedModel."""
    module = tf.Module()
    module.variables_read = [v for f in functions.values() for v in f.variables]
    tf.saved_model.save(module, path, signatures=functions)


def trace(call: Callable, **specs: tf.TensorSpec) -> Any:
    """A function of inputs with these names, traced."""
    named = {
        name: tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for name, spec in specs.items()
    }
    return tf.function(call, autograph=False).get_concrete_function(**named)


def _each(
    call: Callable[[tf.Tensor], tf.Tensor],
    elements: tf.Tensor,
    spec: tf.TensorSpec,
) -> tf.Tensor:
    """One after the other, so that memory holds one window's activations."""
    return tf.map_fn(
        call, elements, fn_output_signature=spec, parallel_iterations=1
    )


def _what_stops(predictor: predictor_lib.Predictor) -> str:
    extractor = predictor.extractor
    if predictor.hop > 1:
        return f"the model makes {predictor.hop} maps per window"
    if extractor.delay:
        return (
            f"the front end {extractor.name!r} sees {extractor.delay} frames "
            "beyond a window, and a graph computes each window alone"
        )
    dtype = extractor.describe().get("dtype", "float32")
    if dtype != "float32":
        return f"the front end computes in {dtype}, and a graph in float32"
    if "flow" in extractor.streams and extractor.flow.name != "tvl1":
        return (
            f"the flow method {extractor.flow.name!r} is OpenCV's compiled "
            "code; only 'tvl1' is made of operations that a graph can hold"
        )
    return ""
