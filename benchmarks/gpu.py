"""What the networks and the flow cost on a GPU, under JAX.

    export KERAS_BACKEND=jax
    python -m benchmarks.gpu --parts=device,train,i3d
    python -m benchmarks.gpu --parts=sliding --precisions=float32,tf32,bfloat16
    python -m benchmarks.gpu --parts=flow --video=clip.avi --other=opencv.npz

They are pure Keras, so this needs no TensorFlow: Keras, JAX with CUDA, NumPy,
OpenCV and absl-py. Times are by the clock, with the device idle before and
after, medians over repeats; compiling is told apart. Inputs are random where no
video is given, never zeros. I3D has random weights.

Precisions: "float32" is exact; "tf32" rounds what is multiplied to 10 bits of
mantissa and is what JAX does on such a GPU unless told otherwise; "bfloat16"
computes and stores activations in 8 bits of mantissa.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import itertools
import os
import statistics
import time
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

from absl import app, flags
import keras
import numpy as np

try:
    import jax
except ImportError:  # `main` says so.
    jax = None

from lsts_tf import parts
from lsts_tf.features import flow, preprocess, tvl1
from lsts_tf.media import video
from lsts_tf.networks import decoder, i3d, i3d_weights, losses, optimizers
from lsts_tf.networks.sliding import network as sliding_i3d

_PARTS = flags.DEFINE_list(
    "parts",
    ["device", "flow", "train", "i3d", "sliding"],
    "Parts to measure.",
)
_PRECISIONS = flags.DEFINE_list(
    "precisions",
    ["float32", "tf32", "bfloat16"],
    "Precisions of train, i3d and sliding.",
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Times to repeat each call.", 1)
_WINDOW = flags.DEFINE_integer("window", 79, "Number of frames in a window.", 1)
_SIZE = flags.DEFINE_integer("size", 224, "Rows and columns of a frame.", 32)
_CHANNELS = flags.DEFINE_integer("channels", 3, "3 for RGB, 2 for flow.", 2, 3)
_WINDOWS = flags.DEFINE_list("windows", ["1", "4"], "Batch sizes of i3d.")
_CHUNKS = flags.DEFINE_list(
    "chunks", ["8", "32"], "Numbers of frames in a step of sliding."
)
_FRONT_ENDS = flags.DEFINE_list(
    "front_ends", list(sliding_i3d.FRONT_ENDS), "Front ends of sliding."
)
_FRAMES = flags.DEFINE_integer(
    "clip_frames", 440, "Largest number of frames to compute flow of.", 2
)
_PAIRS = flags.DEFINE_list(
    "pairs", ["32", "64", "256"], "Numbers of pairs in a call of flow."
)
_BURSTS = flags.DEFINE_list(
    "bursts",
    ["1", "5"],
    "Numbers of steps of flow between two checks for convergence.",
)
_BATCHES = flags.DEFINE_list(
    "batches", ["8", "32", "128"], "Batch sizes of train."
)
_VIDEO = flags.DEFINE_string("video", None, "Video to compute the flow of.")
_START = flags.DEFINE_integer("start", 0, "First frame of the video.")
_OTHER = flags.DEFINE_string(
    "other",
    None,
    "File of OpenCV's flows of the same pairs (benchmarks.flow --save).",
)

_PRECISE = {"float32": "highest", "tf32": "tensorfloat32"}
GIGA = 1e9


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of a call, and those of the first, which compiles."""
    seconds = []
    for _ in range(_REPEATS.value + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), seconds[0]


@contextlib.contextmanager
def precision(name: str) -> Iterator[str]:
    """Inside, functions are compiled and run in a precision.

    Yields:
        The type of what is computed.
    """
    with jax.default_matmul_precision(_PRECISE.get(name, "default")):
        yield "bfloat16" if name == "bfloat16" else "float32"


def peak_memory() -> str:
    """The most memory of the device that this process has had."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return "not known"
    return f"{stats['peak_bytes_in_use'] / GIGA:.2f} GB"


def differences(got: Any, want: Any) -> str:
    """Relative in the norm, and largest over largest."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    norm = np.linalg.norm(got - want) / np.linalg.norm(want)
    largest = np.abs(got - want).max() / np.abs(want).max()
    return f"differs by {norm:.1e} (norm), {largest:.1e} (largest)"


# === The device itself ===


def device() -> None:
    """Prints what a large product and a copy reach, the two ceilings."""
    key = jax.random.key(0)
    for name in ("float32", "tf32", "bfloat16"):
        with precision(name) as dtype:
            a = jax.random.normal(key, (8192, 8192), dtype)
            product = jax.jit(lambda a: a @ a)
            seconds, _ = timed(lambda: product(a))  # noqa: B023
        print(f"8192 x 8192 product, {name}: {2 * 8.192**3 / seconds:.3g}e9/s")
    a = jax.random.normal(key, (1 << 28,), "float32")
    negative = jax.jit(lambda a: -a)
    seconds, _ = timed(lambda: negative(a))
    print(
        f"1 GB read and 1 GB written: {2 * a.nbytes / GIGA / seconds:.0f} GB/s"
    )


# === Flow ===


def grays(count: int) -> np.ndarray:
    """uint8 [at most count, 112, 112]: of the video, or a moving texture."""
    if _VIDEO.value:
        chosen = itertools.islice(
            video.frames(_VIDEO.value), _START.value, _START.value + count
        )
        return np.stack([flow.gray(frame) for frame in chosen])
    rng = np.random.default_rng(0)
    whole = keras.ops.image.resize(
        rng.uniform(0, 255, (40, 40, 1)).astype(np.float32), (320, 320)
    )
    texture = np.asarray(whole)[..., 0]
    k = np.arange(count) % 200
    return np.stack(
        [texture[j // 2 : j // 2 + 112, j : j + 112] for j in k]
    ).astype(np.uint8)


def flows() -> None:
    """Prints pairs a second of TV-L1 by batch, and how near OpenCV is.

    A batch takes as long as its slowest pair, so all of the frames count, a
    scene cut among them too.
    """
    frames = grays(_FRAMES.value)
    pairs = len(frames) - 1
    print(f"{pairs} pairs of {_VIDEO.value or 'a moving texture'}")
    for burst, count in itertools.product(
        map(int, _BURSTS.value), map(int, _PAIRS.value)
    ):
        compiled = jax.jit(functools.partial(tvl1.flow, burst=burst))
        # The last batch is filled up with the first frames.
        order = np.arange(-(-pairs // count) * count) % pairs
        batches = [
            [jax.device_put(frames[k + j].astype(np.float32)) for j in (0, 1)]
            for k in order.reshape(-1, count)
        ]

        def run(batches: Any = batches, compiled: Any = compiled) -> Any:
            return [compiled(*batch) for batch in batches]

        found = np.concatenate([np.asarray(part) for part in run()])[:pairs]
        seconds, _ = timed(run)
        line = (
            f"{count:5d} pairs a call, {burst:2d} steps a look: "
            f"{pairs / seconds:8.1f} pairs/s"
        )
        if _OTHER.value:
            with np.load(_OTHER.value) as file:
                want = file["flows"][:pairs]
            error = np.linalg.norm(found[: len(want)] - want, axis=-1)
            line += f", {error.mean():.4f} px from OpenCV ({len(want)} pairs)"
        print(line, flush=True)


# === Decoder ===


def train() -> None:
    """Prints what a training step and a map of the decoder cost."""
    for name, batch in itertools.product(
        _PRECISIONS.value, map(int, _BATCHES.value)
    ):
        with precision(name) as dtype:
            one_decoder(name, batch, dtype)


def one_decoder(name: str, batch: int, dtype: str) -> None:
    """Prints a line of `train`."""
    keras.utils.set_random_seed(0)
    model = decoder.build(
        ("rgb",),
        feature_shape=i3d.feature_shape(79),
        map_size=parts.MAP_SIZE,
        dtype="float32" if dtype == "float32" else f"mixed_{dtype}",
    )
    optimizer = optimizers.make("rmsprop", 1e-4, weight_decay=0.0)
    optimizer.build(model.trainable_variables)
    loss = losses.weighted("kld-cc")
    rng = np.random.default_rng(0)
    features = {
        tensor.name: np.maximum(
            rng.normal(-0.5, 1.0, (batch, *tensor.shape[1:])), 0
        ).astype(np.float16)
        for tensor in model.inputs
    }
    truth = rng.integers(0, 256, (batch, *parts.MAP_SIZE, 2), np.uint8)
    truth[..., 1] *= truth[..., 1] > 254
    features, truth = jax.device_put((features, truth))

    def error(trained: Any, fixed: Any, features: Any, truth: Any) -> Any:
        maps, fixed = model.stateless_call(
            trained, fixed, features, training=True
        )
        values = loss(preprocess.target(truth), maps)
        return keras.ops.mean(values), fixed

    @jax.jit
    def step(trained: Any, fixed: Any, slots: Any, *batch: Any) -> Any:
        (value, fixed), gradients = jax.value_and_grad(error, has_aux=True)(
            trained, fixed, *batch
        )
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return value, trained, fixed, slots

    # Inputs are arguments: the compiler would fold what comes of constants.
    predict = jax.jit(
        lambda trained, fixed, x: model.stateless_call(trained, fixed, x)[0]
    )
    state = [
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    ]
    seconds, first = timed(lambda: step(*state, features, truth))
    maps, _ = timed(lambda: predict(*state[:2], features))
    print(
        f"batch {batch:3d}, {name:8s}: {batch / seconds:8.1f} windows/s to "
        f"train on, {batch / maps:8.1f} maps/s; first step {first:.0f} s, peak "
        f"memory so far {peak_memory()}",
        flush=True,
    )


# === I3D ===


@functools.cache
def network(policy: str) -> keras.Model:
    """I3D with pooled features and random weights."""
    model = i3d.build(
        _CHANNELS.value,
        frames=_WINDOW.value,
        height=_SIZE.value,
        width=_SIZE.value,
        dtype=policy,
    )
    stream = "rgb" if _CHANNELS.value == 3 else "flow"
    i3d_weights.load(model, stream, (i3d_weights.RANDOM,))
    return keras.Model(model.input, i3d.pool(model.output))


def window(name: str, dtype: str) -> Callable[[Any], Any]:
    """I3D of clips [B, T, H, W, C] on the device, compiled."""
    model = network("float32" if dtype == "float32" else f"mixed_{dtype}")
    weights = [
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    ]
    compiled = jax.jit(lambda w, x: model.stateless_call(*w, x)[0])

    def run(clips: Any) -> Any:
        with precision(name):
            return compiled(weights, clips)

    return run


def frames_of(count: int) -> np.ndarray:
    """float32 [count, size, size, channels] in [-1, 1], a moving texture."""
    rng = np.random.default_rng(0)
    size = _SIZE.value
    texture = rng.uniform(-1, 1, (size + 64, size, _CHANNELS.value))
    return np.stack(
        [texture[k % 64 : k % 64 + size] for k in range(count)]
    ).astype(np.float32)


def alone() -> None:
    """Prints what a window alone costs, its frames being on the device."""
    operations = 2 * sum(
        i3d.multiply_adds(
            _WINDOW.value, _CHANNELS.value, _SIZE.value, _SIZE.value
        ).values()
    )
    frames = frames_of(_WINDOW.value)
    with precision("float32") as dtype:
        exact = np.asarray(window("float32", dtype)(frames[None]))
    for name in _PRECISIONS.value:
        with precision(name) as dtype:
            run = window(name, dtype)
        for count in map(int, _WINDOWS.value):
            # Other frames in each, or one window's result could serve all.
            clips = jax.device_put(
                np.stack([np.roll(frames, k, axis=2) for k in range(count)])
            )
            seconds, first = timed(lambda: run(clips))  # noqa: B023
            print(
                f"each window alone, {name:8s}, {count} at once: "
                f"{1e3 * seconds / count:7.2f} ms a window, "
                f"{operations * count / seconds / 1e12:6.1f} TFLOP/s, first "
                f"{first:.0f} s; {differences(run(clips)[0], exact[0])}",
                flush=True,
            )


def sliding() -> None:
    """Prints what one more frame costs, from the host and back."""
    frames = frames_of(_WINDOW.value)
    with precision("float32") as dtype:
        exact = np.asarray(window("float32", dtype)(frames[None]))[0]
    for front_end, name, chunk in itertools.product(
        _FRONT_ENDS.value, _PRECISIONS.value, map(int, _CHUNKS.value)
    ):
        with precision(name) as dtype:
            object_ = sliding_i3d.SlidingI3D(
                network("float32"),
                window=_WINDOW.value,
                front_end=front_end,
                dtype=dtype,
                chunk=chunk,
                compile=jax.jit,
            )
            lead = -(-_WINDOW.value // chunk) * chunk
            start = time.perf_counter()
            found = object_.push(frames_of(lead))
            first = time.perf_counter() - start
            new = frames_of(chunk)
            # Until windows come in the other front end too.
            for _ in range(-(-object_.delay // chunk)):
                object_.push(new)
            seconds, again = timed(lambda: object_.push(new))  # noqa: B023
        line = (
            f"{front_end:10s} {name:8s}, {chunk:3d} frames a step: "
            f"{1e3 * seconds / chunk:7.3f} ms a frame, compiled in "
            f"{first + again:.0f} s"
        )
        if front_end == "window":
            line += f"; {differences(found[0], exact)}"
        print(line, flush=True)
    print(f"state {object_.state_bytes / 1e6:.0f} MB, peak {peak_memory()}")


def main(argv: list[str]) -> None:
    """Runs the parts."""
    del argv
    if jax is None or keras.backend.backend() != "jax":
        raise app.UsageError(
            "This measures Keras on JAX: install jax[cuda13] and set "
            f"KERAS_BACKEND=jax. Received: {keras.backend.backend()!r}, JAX "
            f"{'is not' if jax is None else 'is'} there. On TensorFlow the "
            "other benchmarks run on a GPU as they are."
        )
    chosen = jax.devices()[0]
    print(f"{chosen.device_kind}, JAX {jax.__version__}, {keras.__version__=}")
    parts = {
        "device": device,
        "flow": flows,
        "train": train,
        "i3d": alone,
        "sliding": sliding,
    }
    for name in _PARTS.value:
        print(f"\n=== {name}", flush=True)
        parts[name]()


if __name__ == "__main__":
    app.run(main)
