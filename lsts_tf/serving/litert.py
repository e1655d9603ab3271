"""A model in LiteRT's format, of operations that LiteRT has built in.

LiteRT has no pooling over time, so that of I3D is written as maxima and means
of slices, which gives the same numbers.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
import pathlib
import tempfile
from typing import Any
import warnings

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import parts
from lsts_tf.features import preprocess
from lsts_tf.networks import i3d
from lsts_tf.serving import graph as graph_lib


def window(graph: graph_lib.Graph) -> tuple[Any, list[Any]]:
    """One window of the networks' signals to its map, traced.

    Takes {"rgb": uint8 [1, 79, 224, 224, 3], "flow": float32 [1, 79, 112, 112,
    2]}, squeezed frames and pixels a frame.

    Returns:
        The function, and the variables that it reads.
    """
    extractor, length = graph.extractor, graph.geometry.length
    networks = {
        stream: _without_pooling_in_time(network, length)
        for stream, network in extractor.networks.items()
    }
    half = parts.half(extractor.size)
    specs = {
        "rgb": tf.TensorSpec((1, length, *extractor.size, 3), tf.uint8),
        "flow": tf.TensorSpec((1, length, *half, 2), tf.float32),
    }

    def call(**signals: tf.Tensor) -> dict[str, tf.Tensor]:
        features = {}
        for stream, signal in signals.items():
            if stream == "rgb":
                ready = preprocess.rgb(signal[0])
            else:
                ready = preprocess.flow(signal[0], extractor.size)
            features[stream] = _pool(networks[stream](ready[None]))
        return graph.decode(**features)

    function = graph_lib.trace(call, **{s: specs[s] for s in networks})
    return function, graph_lib.values(graph.model, *networks.values())


def convert(
    function: Any, variables: Sequence[Any], path: pathlib.Path
) -> None:
    """Writes a traced function as a LiteRT file."""
    with tempfile.TemporaryDirectory() as folder:
        graph_lib.save({"serving_default": function}, variables, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        path.write_bytes(converter.convert())


def run(path: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Answers of a LiteRT file, [N, 360, 640], to inputs of N, one by one."""
    with deprecated_interpreter():
        interpreter = tf.lite.Interpreter(str(path))
    call = interpreter.get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    found = [
        call(**{name: array[k : k + 1] for name, array in inputs.items()})
        for k in range(count)
    ]
    return np.concatenate([answer["saliency"] for answer in found])


@contextlib.contextmanager
def deprecated_interpreter() -> Iterator[None]:
    """TensorFlow 2.21 still brings the interpreter, and warns of its end.

    Its successor, ai_edge_litert, reads the same files; it would be another
    dependency for one check.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite")
        yield


# === Pooling over time without operations of three dimensions ===


def _without_pooling_in_time(network: keras.Model, frames: int) -> keras.Model:
    """A copy of I3D for so many frames."""

    def copied(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.MaxPooling3D):
            return _MaxPooling(
                layer.pool_size,
                layer.strides,
                name=layer.name,
                dtype=layer.dtype_policy,
            )
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(
        network,
        input_tensors=keras.Input((frames, *network.input_shape[2:])),
        clone_function=copied,
    )
    copy.set_weights(network.get_weights())
    return copy


class _MaxPooling(keras.layers.Layer):
    """I3D's max pooling, SAME, of values that are not negative."""

    def __init__(
        self, kernel: i3d.Triple, stride: i3d.Triple, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self._kernel, self._stride = kernel, stride

    def call(self, x: Any) -> Any:
        size = self._kernel[0], self._stride[0]
        x = _in_space(
            lambda images: keras.ops.max_pool(
                images, self._kernel[1:], self._stride[1:], padding="same"
            ),
            x,
        )
        steps = x.shape[1]
        out = -(-steps // size[1])
        total = max((out - 1) * size[1] + size[0] - steps, 0)
        before = total // 2
        # Behind a ReLU, zeros are as good as nothing.
        x = keras.ops.pad(
            x, ((0, 0), (before, total - before), (0, 0), (0, 0), (0, 0))
        )
        return functools.reduce(keras.ops.maximum, _slices(x, out, *size))


def _pool(mixed: Any) -> Any:
    """As `i3d.pool`."""
    _, steps, rows, columns, _ = mixed.shape
    kernel = i3d.pooling_kernel(steps, rows, columns)
    x = _in_space(
        lambda images: keras.ops.average_pool(
            images, kernel[1:], 1, padding="valid"
        ),
        mixed,
    )
    return sum(_slices(x, steps - kernel[0] + 1, kernel[0], 1)) / kernel[0]


def _in_space(call: Callable[[Any], Any], x: Any) -> Any:
    steps = x.shape[1]
    found = call(keras.ops.reshape(x, (-1, *x.shape[2:])))
    return keras.ops.reshape(found, (-1, steps, *found.shape[1:]))


def _slices(x: Any, out: int, kernel: int, stride: int) -> list[Any]:
    return [
        x[:, tap : tap + (out - 1) * stride + 1 : stride]
        for tap in range(kernel)
    ]
