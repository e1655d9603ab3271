"""A model in LiteRT's format, of operations that LiteRT has built in.

LiteRT has no pooling over time, so that of I3D is written as two poolings of
images, over space and over time, which gives the same numbers.
"""

from collections.abc import Callable, Mapping
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
        mixed = networks[stream](ready[None])
        kernel = i3d.pooling_kernel(*mixed.shape[1:4])
        pool = keras.ops.average_pool
        return {stream: _pooled(pool, mixed, kernel=kernel)}

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
            "model holds blocks of I3D that pool: export it with "
            f"--format=saved_model. Received: {path.name}"
        )
    with tempfile.TemporaryDirectory() as folder:
        graph_lib.save({"serving_default": function}, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        path.write_bytes(converter.convert())


def run(path: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Answers of a LiteRT file, [N, 360, 640], to inputs of N, one by one."""
    with warnings.catch_warnings():
        # TensorFlow 2.21 still brings it. Its successor, ai_edge_litert, reads
        # the same files, and would be another dependency for one check.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite")
        interpreter = tf.lite.Interpreter(str(path))
    call = interpreter.get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    found = [
        call(**{name: array[k : k + 1] for name, array in inputs.items()})
        for k in range(count)
    ]
    return np.concatenate([answer["saliency"] for answer in found])


# === Pooling over time without operations of three dimensions ===


def _without_pooling_in_time(network: keras.Model, frames: int) -> keras.Model:
    """A copy of I3D for so many frames."""

    def copied(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.MaxPooling3D):
            return keras.layers.Lambda(
                functools.partial(
                    _pooled,
                    keras.ops.max_pool,
                    kernel=layer.pool_size,
                    stride=layer.strides,
                    padding=layer.padding,
                ),
                name=layer.name,
                dtype=layer.dtype_policy,
            )
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(
        network,
        input_tensors=keras.Input(
            batch_shape=(1, frames, *network.input_shape[2:])
        ),
        clone_function=copied,
    )
    copy.set_weights(network.get_weights())
    return copy


def _pooled(
    pool: Callable[..., Any],
    x: Any,
    *,
    kernel: i3d.Triple,
    stride: i3d.Triple = (1, 1, 1),
    padding: str = "valid",
) -> Any:
    """Pools [1, T, H, W, C] over space, and then over time."""
    _, steps, rows, columns, channels = x.shape
    x = keras.ops.reshape(x, (steps, rows, columns, channels))
    x = pool(x, kernel[1:], stride[1:], padding=padding)
    _, rows, columns, _ = x.shape
    x = keras.ops.reshape(x, (1, steps, rows * columns, channels))
    x = pool(x, (kernel[0], 1), (stride[0], 1), padding=padding)
    return keras.ops.reshape(x, (1, -1, rows, columns, channels))
