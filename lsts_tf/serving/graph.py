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

from lsts_tf import predictor as predictor_lib
from lsts_tf.features import tvl1
from lsts_tf.serving import resize

FEATURES = "features"
FRAMES = "serving_default"
LAST = "last"


class Graph:
    """The functions of a model.

    Attributes:
        part_shapes: {name of a part: its shape} of all features.
        stops: Why frames cannot be taken, or "" where they can.
    """

    def __init__(self, predictor: predictor_lib.Predictor) -> None:
        self.predictor = predictor
        self.extractor = predictor.extractor
        self.part_shapes = {
            part: shape
            for stream in self.extractor.streams
            for part, shape in self.extractor.part_shapes(stream).items()
        }
        self.stops = _what_stops(predictor)
        self._map_shape = predictor.model.output_shape[-3:-1]
        # As the front end's encoders, so that signatures share one tracing.
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
        shapes = self.part_shapes.items()
        specs = {part: tf.TensorSpec((batch, *shape)) for part, shape in shapes}
        return trace(self.decode, **specs)

    def decode(self, **features: tf.Tensor) -> dict[str, tf.Tensor]:
        """The map of features, [B, 360, 640]."""
        maps = self.predictor.model(features, training=False)
        return {"saliency": maps[..., 0]}

    def window(self) -> Any:
        """One window of signals to its map, traced.

        It takes {"rgb": uint8 [1, 79, 224, 224, 3], "flow": float32 [1, 79,
        112, 112, 2]}, squeezed frames and pixels a frame.
        """
        specs = {}
        for stream in self.extractor.streams:
            spec = self.extractor.signal_spec(stream)
            # Clients have no half precision.
            dtype = tf.float32 if spec.dtype.is_floating else spec.dtype
            shape = (1, self.extractor.window, *spec.shape)
            specs[stream] = tf.TensorSpec(shape, dtype)
        return trace(lambda **x: self.decode(**self.encode(**x)), **specs)

    def encode(self, **signals: tf.Tensor) -> dict[str, tf.Tensor]:
        """Features of one window of each stream's signal, [1, ...] both."""
        features: dict[str, tf.Tensor] = {}
        for stream, signal in signals.items():
            found = self.extractor.encoders[stream](signal[0])
            features |= {part: array[None] for part, array in found.items()}
        return features

    def _maps(self, *, only_last: bool) -> Callable:
        """Clips to maps, [B, T, 360, 640], or to those of the last frames."""
        of_clip = functools.partial(self._of_clip, only_last=only_last)
        spec = tf.TensorSpec((None, *self._map_shape), tf.float32)

        def call(*, frames: tf.Tensor) -> dict[str, tf.Tensor]:
            maps = _each(of_clip, frames, spec)
            return {"saliency": maps[:, 0] if only_last else maps}

        return call

    def _of_clip(self, frames: tf.Tensor, *, only_last: bool) -> tf.Tensor:
        """Maps of the frames of one clip, [T, H, W, 3], or of its last one."""
        geometry = self.predictor.geometry
        count = tf.shape(frames)[0]
        first = count - 1 if only_last else 0
        played = tf.range(first - geometry.first_target, count)
        places = tf.maximum(played, 0)
        signals = {
            stream: self._signal(stream, frames, places)
            for stream in self.extractor.streams
        }

        def window(index: tf.Tensor) -> tf.Tensor:
            clips = {}
            for stream, signal in signals.items():
                # Signal k of "flow" is the motion to frame k + 1 already.
                is_behind = stream == "rgb" and geometry.first
                start = index + 1 if is_behind else index
                clip = signal[None, start : start + geometry.length]
                clips[stream] = tf.ensure_shape(
                    clip, (1, geometry.length, *signal.shape[1:])
                )
            return self.decode(**self.encode(**clips))["saliency"][0]

        spec = tf.TensorSpec(self._map_shape, tf.float32)
        return _each(window, tf.range(count - first), spec)

    def _signal(
        self, stream: str, frames: tf.Tensor, places: tf.Tensor
    ) -> tf.Tensor:
        """What windows are cut from: squeezed frames, or flows."""
        spec = self.extractor.signal_spec(stream)
        size = tuple(spec.shape[:2])
        if stream == "rgb":
            shrink = functools.partial(resize.squeeze, size=size)
            return tf.gather(_each(shrink, frames, spec), places)
        shrink = functools.partial(resize.gray, size=size)
        grays = _each(shrink, frames, tf.TensorSpec(size, tf.uint8))
        grays = tf.gather(grays, places)
        return tf.map_fn(
            lambda k: self._motion(grays[k], grays[k + 1]),
            tf.range(tf.shape(places)[0] - 1),
            fn_output_signature=spec,
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
