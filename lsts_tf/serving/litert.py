"""A model in LiteRT's format, of operations that LiteRT has built in.

LiteRT has no pooling over time, so that of I3D is written as maxima and means
of slices, which gives the same numbers.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import itertools
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

_POOLING = ("MaxPool3D", "AvgPool3D")


def window(graph: graph_lib.Graph, path: pathlib.Path) -> Any:
    """Writes one window of signals to its map; the function, traced.

    It takes {"rgb": uint8 [1, 79, 224, 224, 3], "flow": float32 [1, 79, 112,
    112, 2]}, squeezed frames and pixels a frame.
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

    def encode(stream: str, signal: tf.Tensor) -> dict[str, tf.Tensor]:
        if stream not in networks:
            found = extractor.encode_parts(stream, signal)
            return {name: part[None] for name, part in found.items()}
        if stream == "rgb":
            ready = preprocess.rgb(signal)
        else:
            ready = preprocess.flow(signal, extractor.size)
        return {stream: _pool(networks[stream](ready[None]))}

    def call(**signals: tf.Tensor) -> dict[str, tf.Tensor]:
        features: dict[str, tf.Tensor] = {}
        for stream, signal in signals.items():
            features |= encode(stream, signal[0])
        return graph.decode(**features)

    function = graph_lib.trace(call, **{s: specs[s] for s in extractor.streams})
    convert(function, path)
    return function


def stops_window(graph: graph_lib.Graph) -> str:
    """Why `window` cannot be had, or ""."""
    extractor = graph.extractor
    if any(len(extractor.part_shapes(s)) > 1 for s in extractor.networks):
        return "the decoder reads more of I3D than Mixed_5c, pooled"
    return graph.stops


def convert(function: Any, path: pathlib.Path) -> None:
    """Writes a traced function as a LiteRT file.

    Raises:
        ValueError: It pools over time.
    """
    graph = function.graph.as_graph_def()
    nodes = [graph.node, *(each.node_def for each in graph.library.function)]
    if any(n.op in _POOLING for n in itertools.chain.from_iterable(nodes)):
        raise ValueError(
            "LiteRT has no pooling over time, and the decoder of a finetuned "
            "model holds blocks of I3D that pool: export it by "
            f"--format=saved_model. Received: {path.name}"
        )
    with tempfile.TemporaryDirectory() as folder:
        graph_lib.save({"serving_default": function}, folder)
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
