"""What recomputing I3D's trained blocks saves in memory, and what it costs.

    python -m benchmarks.finetune                          # from Mixed_5b on
    python -m benchmarks.finetune --first=Mixed_4b --batch=4
    python -m benchmarks.finetune --window=16 --size=64 --batch=1   # a check

Gradient of the trained layers alone, of 79-frame windows of 224 x 224 by
default, with random weights. Each line is a process of its own: "step" is how
much its peak rises above what it has before its first step.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import benchmarks
from lsts_tf.networks import i3d, tuned_i3d

GIGA = 1e9


def parse() -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", default="Mixed_5b")
    parser.add_argument("--window", type=int, default=79)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", choices=("kept", "recomputed"))
    return parser.parse_args()


def make(flags: argparse.Namespace, *, rematerialise: bool) -> keras.Model:
    """The trained layers, with random weights."""
    network = i3d.build(3, height=flags.size, width=flags.size)
    with contextlib.ExitStack() as stack:
        if not rematerialise:
            scope = mock.patch.object(keras, "RematScope", mock.MagicMock())
            stack.enter_context(scope)
        return tuned_i3d.build(
            network, flags.first, frames=flags.window, rate=0.1
        )


def measure(flags: argparse.Namespace) -> None:
    """Prints memory and time of one variant in this process."""
    # The same weights for both, whose gradients can then be compared.
    keras.utils.set_random_seed(0)
    model = make(flags, rematerialise=flags.one == "recomputed")

    @tf.function(autograph=False)
    def step(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True)))
        return tape.gradient(loss, model.trainable_variables)

    rng = np.random.default_rng(0)
    shape = (flags.batch, *model.input_shape[1:])
    x = tf.constant(np.maximum(rng.normal(-0.5, 1.0, shape), 0), tf.float32)
    before = benchmarks.peak_bytes()
    seconds = []
    for _ in range(1 + flags.steps):
        start = time.process_time()
        gradients = step(x)
        seconds.append(time.process_time() - start)
    peak = benchmarks.peak_bytes()
    norm = float(tf.linalg.global_norm(gradients))
    print(
        f"{flags.first}, batch {flags.batch}, {flags.one:10}: step "
        f"{(peak - before) / GIGA:5.2f} GB, whole process "
        f"{peak / GIGA:5.2f} GB, {statistics.median(seconds[1:]):.2f} CPU s a "
        f"step, gradient's norm {norm:.6g}",
        flush=True,
    )


def main() -> None:
    """Measures and prints."""
    flags = parse()
    if flags.one:
        measure(flags)
        return
    for variant in ("kept", "recomputed"):
        command = [sys.executable, "-m", "benchmarks.finetune", *sys.argv[1:]]
        subprocess.run([*command, f"--one={variant}"], check=True)


if __name__ == "__main__":
    main()
