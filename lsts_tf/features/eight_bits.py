"""Functions of arrays with weights of eight bits, run by LiteRT.

Each filter of a convolution has its own scale, and so has each image that it
reads, found anew at each call (dynamic-range quantisation). Sums, and all that
is between convolutions, stay in float32.
"""

from collections.abc import Callable
import os
from typing import Any
import warnings

import numpy as np
import tensorflow as tf


def interpreter(content: bytes, *, threads: int | None = None) -> Any:
    """What runs a file of LiteRT."""
    with warnings.catch_warnings():
        # TensorFlow 2.21 still brings it. Its successor, ai_edge_litert, reads
        # the same files, and would be another dependency.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite")
        return tf.lite.Interpreter(model_content=content, num_threads=threads)


class Function:
    """A function of arrays of fixed shapes, converted when it is first called.

    Args:
        function: Traceable by TensorFlow; of nested arrays, to nested arrays.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._interpreter: Any = None
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._answer: Any = None  # Its structure.

    def __call__(self, *args: Any) -> Any:
        """NumPy's arrays, in the structure of what the function returns."""
        if self._interpreter is None:
            self._convert(args)
        flat = tf.nest.flatten(args)
        for place, array in zip(self._inputs, flat, strict=True):
            self._interpreter.set_tensor(place, np.asarray(array))
        self._interpreter.invoke()
        found = [self._interpreter.get_tensor(k) for k in self._outputs]
        return tf.nest.pack_sequence_as(self._answer, found)

    def _convert(self, args: Any) -> None:
        # LiteRT orders what it takes and gives by these names.
        specs = [
            tf.TensorSpec(array.shape, array.dtype, name=f"array{k:04}")
            for k, array in enumerate(tf.nest.flatten(args))
        ]

        def call(*flat: Any) -> dict[str, Any]:
            answer = self._function(*tf.nest.pack_sequence_as(args, flat))
            self._answer = tf.nest.map_structure(lambda _: 0, answer)
            each = enumerate(tf.nest.flatten(answer))
            return {f"array{k:04}": array for k, array in each}

        traced = tf.function(call, input_signature=specs, autograph=False)
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [traced.get_concrete_function()], traced
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        self._interpreter = interpreter(
            converter.convert(), threads=len(os.sched_getaffinity(0))
        )
        self._interpreter.allocate_tensors()
        inputs = self._interpreter.get_input_details()
        inputs.sort(key=lambda each: each["name"])
        self._inputs = [each["index"] for each in inputs]
        self._outputs = [
            each["index"] for each in self._interpreter.get_output_details()
        ]
