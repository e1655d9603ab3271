"""What one more frame costs: each window alone, exact, continuous.

All variants run alternately in one process on the same frames, so that the
ratios of CPU time hold on a busy machine too.

    python -m benchmarks.extract                       # RGB, 79 frames
    python -m benchmarks.extract --channels=2 --window=16
    python -m benchmarks.extract --video=clip.avi --dtypes=float32,bfloat16
    python -m benchmarks.extract --pytorch             # see pytorch.py
    python -m benchmarks.extract --folding             # what kernels bring
    python -m benchmarks.extract --table               # Markdown, by count
    python -m benchmarks.extract --stream=20000        # memory over time
"""

import argparse
from collections.abc import Callable, Iterator
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import benchmarks
from lsts_tf.features import extractor
from lsts_tf.networks import i3d, i3d_weights
from lsts_tf.networks.sliding import geometry
from lsts_tf.networks.sliding import network as sliding_i3d

GIGA = 1e9


def parse() -> argparse.Namespace:
    """Returns the flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--window", type=int, default=79)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--channels", type=int, default=3, choices=(2, 3))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--frames", type=int, default=8, help="new frames a round"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive_windows", type=int, default=1)
    parser.add_argument(
        "--lead", type=int, default=64, help="frames before, behind a window"
    )
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--jit", action="store_true", help="XLA")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--video", help="else a random moving texture")
    parser.add_argument(
        "--pytorch", action="store_true", help="beside the same in PyTorch"
    )
    parser.add_argument("--folding", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--stream", type=int, default=0)
    return parser.parse_args()


# === Input ===


def network(args: argparse.Namespace, dtype: str = "float32") -> keras.Model:
    """Returns I3D with pooled features."""
    model = i3d.build(
        args.channels,
        frames=args.window,
        height=args.size,
        width=args.size,
        dtype=dtype,
    )
    stream = "rgb" if args.channels == 3 else "flow"
    i3d_weights.load(model, stream, (args.weights,))
    return keras.Model(model.input, i3d.pool(model.output))


def frames_of(args: argparse.Namespace, count: int) -> np.ndarray:
    """Returns float32 [count, size, size, channels] in [-1, 1]."""
    if args.video:
        return video_frames(args, count)
    rng = np.random.default_rng(0)
    texture = rng.uniform(-1, 1, (args.size + 64, args.size, args.channels))
    return np.stack(
        [texture[k % 64 : k % 64 + args.size] for k in range(count)]
    ).astype(np.float32)


def video_frames(args: argparse.Namespace, count: int) -> np.ndarray:
    """Returns frames of a video file, like `frames_of`."""
    import cv2

    if args.channels != 3:
        raise ValueError("--video gives RGB frames. Leave --channels at 3.")
    capture = cv2.VideoCapture(args.video)
    found = []
    while len(found) < count:
        is_there, frame = capture.read()
        if not is_there:
            break
        frame = cv2.resize(frame, (args.size, args.size))[..., ::-1]
        found.append(frame.astype(np.float32) / 127.5 - 1)
    if len(found) < args.window:
        raise ValueError(
            f"{args.video} must have at least {args.window} frames. "
            f"Received: {len(found)}"
        )
    # There and back again where the video is short.
    order = list(range(len(found))) + list(range(len(found) - 2, 0, -1))
    return np.stack([found[order[k % len(order)]] for k in range(count)])


def cpu(function: Callable[[], object]) -> float:
    """Returns the CPU seconds of a call, over all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


# === Each window alone, exact, continuous ===


def compare(args: argparse.Namespace) -> None:
    """Prints CPU seconds a frame and their ratios."""
    # Until all contenders run as they do in the middle of a long video.
    lead = -(-args.window // 8) * 8 + args.lead
    total = lead + (args.rounds + 1) * args.frames
    frames = frames_of(args, total)
    contenders = dict(contenders_of(args, frames, lead))
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(args.rounds + 1):
        for name, run in contenders.items():
            seconds = run(lead + k * args.frames)
            if k:  # the first round warms up
                found[name].append(seconds)
    base = statistics.median(found["each window alone, float32"])
    print(f"\n{'CPU seconds a frame':36s} {'median':>8s} {'times less':>10s}")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{name:36s} {median:8.3f} {base / median:10.2f}")
    print(f"peak memory {peak_memory():.2f} GB")


def contenders_of(
    args: argparse.Namespace, frames: np.ndarray, lead: int
) -> Iterator[tuple[str, Callable[[int], float]]]:
    """Yields names and functions: first new frame -> CPU seconds a frame."""
    for dtype in args.dtypes.split(","):
        policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
        model = network(args, policy)
        yield (
            f"each window alone, {dtype}",
            naive(args, compiled(args)(model), frames),
        )
        plain = network(args)
        if args.pytorch and dtype == "float32":
            yield "each window alone, PyTorch", pytorch(args, plain, frames)
        for front_end in sliding_i3d.FRONT_ENDS:
            sliding = sliding_i3d.SlidingI3D(
                plain,
                window=args.window,
                stride=args.stride,
                front_end=front_end,
                dtype=dtype,
                first_chunk=extractor.first_chunk(front_end),
                compile=compiled(args),
            )
            start = sliding.push(frames[:lead])
            report(args, plain, frames, start, f"{front_end}, {dtype}")
            yield f"{front_end}, {dtype}", slide(args, sliding, frames)


def pytorch(
    args: argparse.Namespace, model: keras.Model, frames: np.ndarray
) -> Callable[[int], float]:
    """Returns what measures windows run one by one in PyTorch."""
    from benchmarks import pytorch as other

    window = other.window(model)
    clip = frames[None, : args.window]
    ours = np.asarray(model(clip))
    difference = np.abs(window(clip) - ours).max() / np.abs(ours).max()
    print(f"PyTorch: differs by {difference:.1e} of the largest feature")
    return naive(args, window, frames)


def compiled(args: argparse.Namespace) -> Callable[[Callable], Callable]:
    """Returns what wraps a step function."""
    return lambda function: tf.function(function, jit_compile=args.jit)


def naive(
    args: argparse.Namespace, model: Callable, frames: np.ndarray
) -> Callable[[int], float]:
    """Returns what measures windows run one by one."""

    def run(first: int) -> float:
        def windows() -> None:
            for k in range(args.naive_windows):
                end = first + k * args.stride + 1
                np.asarray(model(frames[None, end - args.window : end]))

        return cpu(windows) / args.naive_windows / args.stride

    return run


def slide(
    args: argparse.Namespace,
    sliding: sliding_i3d.SlidingI3D,
    frames: np.ndarray,
) -> Callable[[int], float]:
    """Returns what measures pushed frames."""

    def run(first: int) -> float:
        new = frames[first : first + args.frames]
        return cpu(lambda: sliding.push(new)) / args.frames

    return run


def report(
    args: argparse.Namespace,
    model: keras.Model,
    frames: np.ndarray,
    features: np.ndarray,
    name: str,
) -> None:
    """Prints how far the first window's features are from the window alone."""
    if not len(features):
        return
    alone = np.asarray(model(frames[None, : args.window]))[0]
    difference = features[0] - alone
    relative = np.linalg.norm(difference) / np.linalg.norm(alone)
    largest = np.abs(difference).max() / np.abs(alone).max()
    print(
        f"{name}: first window against itself alone in float32: relative "
        f"{relative:.1e}, largest over largest {largest:.1e}"
    )


def peak_memory() -> float:
    """Returns the largest memory so far, in GB."""
    return benchmarks.peak_bytes() / GIGA


# === What folding and merging bring ===


def folding(args: argparse.Namespace) -> None:
    """Prints CPU seconds of a window alone with prepared kernels."""
    model = network(args)
    clip = tf.constant(frames_of(args, args.window)[None])
    want = np.asarray(model(clip))
    contenders = {
        "plain Keras": model,
        "BatchNorm in the kernels": prepared(model, merged=False),
        "and one 1x1x1 convolution a block": prepared(model, merged=True),
    }
    compiled_ones = {k: compiled(args)(v) for k, v in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(args.rounds + 1):
        for name, run in compiled_ones.items():
            seconds = cpu(lambda: np.asarray(run(clip)))  # noqa: B023
            if k:
                found[name].append(seconds)
    base = statistics.median(found["plain Keras"])
    print(f"\n{'CPU seconds a window':36s} {'median':>8s} {'times less':>10s}")
    for name, seconds in found.items():
        got = np.asarray(compiled_ones[name](clip))
        difference = np.abs(got - want).max() / np.abs(want).max()
        median = statistics.median(seconds)
        print(
            f"{name:36s} {median:8.3f} {base / median:10.2f}   differs by "
            f"{difference:.1e} of the largest feature"
        )


def prepared(
    model: keras.Model, *, merged: bool
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns I3D with BatchNorm folded into its kernels.

    Args:
        model: I3D with its weights.
        merged: Whether the 1x1x1 convolutions at the head of a block's
            branches are one.
    """
    units = {}
    for unit in i3d.units():
        norm = model.get_layer(i3d.layer_name(unit.name, "batch_norm"))
        scale = 1 / np.sqrt(np.asarray(norm.moving_variance) + i3d.EPSILON)
        kernel = model.get_layer(i3d.layer_name(unit.name, "conv_3d")).kernel
        bias = np.asarray(norm.beta) - np.asarray(norm.moving_mean) * scale
        units[unit.name] = (np.asarray(kernel) * scale, bias)

    def convolve(x: tf.Tensor, unit: i3d.Conv) -> tf.Tensor:
        kernel, bias = units[unit.name]
        y = keras.ops.conv(x, kernel, unit.stride, padding="same")
        return keras.ops.relu(y + bias)

    def apply(x: tf.Tensor, layer: i3d.Layer) -> tf.Tensor:
        if isinstance(layer, i3d.Conv):
            return convolve(x, layer)
        if isinstance(layer, i3d.Pool):
            return keras.ops.max_pool(
                x, layer.kernel, layer.stride, padding="same"
            )
        branches = i3d.branches(layer)
        heads = [branch[0] for branch in branches[:3]]
        if merged:
            parts = [units[head.name] for head in heads]
            kernel = np.concatenate([part[0] for part in parts], -1)
            bias = np.concatenate([part[1] for part in parts])
            y = keras.ops.relu(keras.ops.conv(x, kernel, padding="same") + bias)
            widths = [len(part[1]) for part in parts]
            ends = [*tf.split(y, widths, -1), apply(x, branches[3][0])]
        else:
            ends = [apply(x, branch[0]) for branch in branches]
        for k in (1, 2, 3):
            ends[k] = apply(ends[k], branches[k][1])
        return keras.ops.concatenate(ends, -1)

    def run(clip: tf.Tensor) -> tf.Tensor:
        x = clip
        for layer in i3d.layers():
            x = apply(x, layer)
        return i3d.pool(x)

    return run


# === By layer ===


def table(args: argparse.Namespace) -> None:
    """Prints steps, borders and multiply-adds of each layer as Markdown."""
    model = network(args)
    alone = i3d.multiply_adds(args.window, args.channels, args.size, args.size)
    exact, dense = (
        sliding_i3d.SlidingI3D(
            model,
            window=args.window,
            stride=args.stride,
            front_end=front_end,
        ).costs
        for front_end in sliding_i3d.FRONT_ENDS
    )
    print(
        f"{args.window} frames of {args.size} x {args.size} x "
        f"{args.channels}, a window each {args.stride} frames. L, R: steps of "
        "a window that see its padding at the left and the right. GMAC for "
        "one more window.\n"
    )
    print(
        "| layer | kernel, stride | steps | padding | L | R | shared "
        "| alone | exact | continuous |"
    )
    print("|---" * 10 + "|")
    for layer, front, track in geometry.tracks(args.window, args.stride):
        kernel, stride = geometry.in_time(layer)
        before, after = i3d.same_padding(front.steps, kernel, stride)
        inside = front.steps
        shared = max(0, track.steps - track.left - track.right)
        costs = " | ".join(
            f"{count.get(layer.name, 0) / GIGA:.2f}"
            for count in (alone, exact, dense)
        )
        print(
            f"| {layer.name} | {kernel}, {stride} | {inside} → {track.steps} "
            f"| {before}, {after} | {track.left} | {track.right} | {shared} "
            f"| {costs} |"
        )
    totals = [sum(count.values()) for count in (alone, exact, dense)]
    cells = " | ".join(f"**{total / GIGA:.2f}**" for total in totals)
    print(f"| **sum** |  |  |  |  |  |  | {cells} |")
    ratios = " | ".join(f"{totals[0] / total:.1f}" for total in totals)
    print(f"| times less |  |  |  |  |  |  | {ratios} |")


# === Memory ===


def stream(args: argparse.Namespace) -> None:
    """Prints memory while a long video passes."""
    model = network(args)
    sliding = sliding_i3d.SlidingI3D(
        model,
        window=args.window,
        stride=args.stride,
        first_chunk=extractor.first_chunk("window"),
        compile=compiled(args),
    )
    print(f"state {sliding.state_bytes / 1e6:.1f} MB by count")
    frames = frames_of(args, 64)
    windows = 0
    for first in range(0, args.stream, 64):
        windows += len(sliding.push(frames[: args.stream - first]))
        if first % (args.stream // 10 // 64 * 64 or 64) == 0:
            print(
                f"frame {first + 64:6d}: {resident_memory():.3f} GB resident, "
                f"{windows} windows"
            )
    print(f"end: {resident_memory():.3f} GB, peak {peak_memory():.3f} GB")


def resident_memory() -> float:
    """Returns memory in use, in GB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GIGA


def main() -> None:
    """Runs what the flags ask for."""
    args = parse()
    if args.table:
        table(args)
    elif args.folding:
        folding(args)
    elif args.stream:
        stream(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
