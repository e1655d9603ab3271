"""What the decoders cost: multiply-adds, weights and stored bytes a window.

    python -m benchmarks.decoders
    python -m benchmarks.decoders --time --batch=4

Counted from the layers' shapes for windows of 79 frames of one stream; with
--time also CPU seconds of a forward pass, the best of three.
"""

import argparse
from collections.abc import Sequence
import math
import time

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import parts
from lsts_tf.networks import decoder, i3d

FRAMES = 79
# Arguments of `decoder.build`, and of the skips' shapes.
RECIPES = {
    "paper": {},
    "paper, 8 maps": {"targets": 8},
    "paper, 16 maps": {"targets": 16},
    "paper, 224x384": {"size": (224, 384)},
    "skip": {"design": "skip"},
    "skip, 8 maps": {"design": "skip", "targets": 8},
    "skip, 224x384": {"design": "skip", "size": (224, 384)},
    "skip, Mixed_4f alone": {"design": "skip", "skips": ("Mixed_4f",)},
}


def build(
    *,
    size: tuple[int, int] = parts.SIZE,
    skips: Sequence[str] = parts.SKIPS,
    **arguments,
) -> keras.Model:
    """A recipe's decoder at its full size."""
    shapes = i3d.skip_shapes(skips, FRAMES, *size)
    return decoder.build(
        ("rgb",),
        feature_shape=i3d.feature_shape(FRAMES, *size),
        skip_shapes=shapes if arguments.get("design") == "skip" else None,
        map_size=(360, 640),
        **arguments,
    )


def multiply_adds(model: keras.Model) -> int:
    """Of the convolutions, for one window."""
    total = 0
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        # A transposed one has its kernel once for each input position.
        is_transposed = "Transpose" in type(layer).__name__
        x = layer.input if is_transposed else layer.output
        total += math.prod(kernel.shape) * math.prod(x.shape[1:-1])
    return total


def seconds(model: keras.Model, batch: int) -> float:
    """CPU seconds of a forward pass for one window."""
    rng = np.random.default_rng(0)
    x = {
        name: tf.constant(rng.random((batch, *given.shape[1:]), np.float32))
        for name, given in model.input.items()
    }
    call = tf.function(lambda x: model(x, training=False))
    call(x)
    spent = []
    for _ in range(3):
        start = time.process_time()
        call(x)
        spent.append(time.process_time() - start)
    return min(spent) / batch


def main() -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    print(
        f"{'':21}{'weights':>10}{'MMAC a window':>15}{'a frame':>9}"
        f"{'kB stored':>11}" + ("   CPU-ms a frame" if args.time else "")
    )
    for name, recipe in RECIPES.items():
        model = build(**recipe)
        cost = multiply_adds(model) / 1e6
        maps = recipe.get("targets", 1)
        stored = sum(2 * math.prod(x.shape[1:]) for x in model.input.values())
        line = (
            f"{name:21}{model.count_params():10,}{cost:15.0f}"
            f"{cost / maps:9.0f}{stored / 1000:11.0f}"
        )
        if args.time:
            spent = 1000 * seconds(model, args.batch) / maps
            line += f"{spent:17.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
