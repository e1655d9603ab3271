"""A model in LiteRT's format, of operations that LiteRT has built in.

LiteRT has no pooling over time, so a graph's are written as two poolings of
images, over space and over time, which give the same numbers.
"""

from collections.abc import Mapping
import functools
import pathlib
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from lsts_tf.features import eight_bits
from lsts_tf.serving import graph as graph_lib

_POOLS = {"MaxPool3D": tf.nn.max_pool2d, "AvgPool3D": tf.nn.avg_pool2d}


def convert(function: Any, path: pathlib.Path) -> None:
    """Writes a traced function, of sizes that are all known, as LiteRT file."""
    with tempfile.TemporaryDirectory() as folder:
        graph_lib.save({"serving_default": _planar(function)}, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        path.write_bytes(converter.convert())


def run(path: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Answers of a LiteRT file, [N, 360, 640], to inputs of N, one by one."""
    interpreter = eight_bits.interpreter(path.read_bytes())
    call = interpreter.get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    found = [
        call(**{name: array[k : k + 1] for name, array in inputs.items()})
        for k in range(count)
    ]
    return np.concatenate([answer["saliency"] for answer in found])


# === Pooling over time without operations of three dimensions ===


def _planar(function: Any) -> Any:
    """The same function, of constants, with no pooling over time."""
    frozen = convert_to_constants.convert_variables_to_constants_v2(function)
    graph = frozen.graph.as_graph_def()
    for node in graph.node:
        node.attr.pop("_gradient_op_type", None)  # Nobody trains it.
        if node.op in _POOLS:
            (x,) = frozen.graph.get_operation_by_name(node.name).inputs
            pooled = graph_lib.trace(
                functools.partial(_pooled, node),
                x=tf.TensorSpec(x.shape, x.dtype),
            ).function_def
            graph.library.function.append(pooled)
            # A function is called as an operation of its name.
            node.op = pooled.signature.name
            node.attr.clear()

    def call(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        names = [x.name for x in frozen.outputs]
        (saliency,) = tf.graph_util.import_graph_def(graph, inputs, names)
        return {"saliency": saliency}

    return graph_lib.trace(call, **function.structured_input_signature[1])


def _pooled(node: Any, x: tf.Tensor) -> tf.Tensor:
    """Pools [1, T, H, W, C] over space, and then over time."""
    (_, *size, _), (_, *strides, _) = (
        node.attr[name].list.i for name in ("ksize", "strides")
    )
    pool, padding = _POOLS[node.op], node.attr["padding"].s.decode()
    _, steps, rows, columns, channels = x.shape
    x = tf.reshape(x, (steps, rows, columns, channels))
    x = pool(x, size[1:], strides[1:], padding)
    _, rows, columns, _ = x.shape
    x = tf.reshape(x, (1, steps, rows * columns, channels))
    x = pool(x, (size[0], 1), (strides[0], 1), padding)
    return tf.reshape(x, (1, -1, rows, columns, channels))
