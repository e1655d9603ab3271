"""CPU time a frame of the starter's networks and of others', in one process.

    git clone https://github.com/rdroste/unisal
    git clone https://github.com/feiyanhu/tinyHD
    bench/bin/python -m benchmarks.peers --video=CLIP --unisal=unisal \
        --tinyhd=tinyHD

UNISAL (2020) is recurrent: a frame at a time, 224 x 384. TinyHD (2023) looks at
windows of 16 frames of 192 x 256; -S gives the map of the last, -M of all 16,
so that windows lie 1 and 16 frames apart. Their networks have random weights,
which cost the same, and run in PyTorch as their authors wrote them; frames are
resized before the clock runs, for all. `benchmarks/pytorch.py` says how to
install PyTorch (and torchvision). The starter's first map comes before the
clock runs, too, in each precision. Rounds take turns.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib
import itertools
import pathlib
import sys
import time
import types

from absl import app, flags
import cv2
import numpy as np

try:  # First: behind TensorFlow it crashes.
    import torch
    import torchvision
except ImportError:
    torch = torchvision = None

from lsts_tf import parts
from lsts_tf import predictor as predictor_lib
from lsts_tf.media import video as video_lib

VIDEO = flags.DEFINE_string("video", None, "A video file.", required=True)
UNISAL = flags.DEFINE_string("unisal", "", "UNISAL's repository.")
TINYHD = flags.DEFINE_string("tinyhd", "", "TinyHD's repository.")
FRAMES = flags.DEFINE_integer("frames", 16, "Frames a round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the fastest counts.")

Round = Callable[[], int]  # Computes some frames; returns how many.


def starter(frames: Sequence[np.ndarray], dtype: str) -> Round:
    """The starter, from frames of any size to maps."""
    predictor = predictor_lib.Predictor.load(dtype=dtype)
    maps = predictor.maps(itertools.cycle(frames))
    next(maps)

    def run() -> int:
        return sum(1 for _ in itertools.islice(maps, FRAMES.value))

    return run


def tensors(frames: Sequence[np.ndarray], height: int, width: int):
    """Float32 [1, T, 3, height, width] in [-1, 1]."""
    small = [cv2.resize(frame, (width, height)) for frame in frames]
    array = np.stack(small).transpose(0, 3, 1, 2)[None]
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1)


def unisal(frames: Sequence[np.ndarray]) -> Round:
    """UNISAL, one frame after the other, with its state."""
    # Of the package only what the network needs, not what trains it.
    package = types.ModuleType("unisal")
    package.__path__ = [str(pathlib.Path(UNISAL.value, "unisal"))]
    sys.modules["unisal"] = package
    model = importlib.import_module("unisal.model")
    network = model.UNISAL(cnn_cfg={"pretrained": False}, verbose=0).eval()
    clip = tensors(frames, 224, 384)
    hidden = None

    def run() -> int:
        nonlocal hidden
        for index in range(FRAMES.value):
            _, hidden = network(
                clip[:, index : index + 1],
                target_size=(360, 640),
                h0=hidden,
                return_hidden=True,
                static=False,
            )
        return FRAMES.value

    return run


def tinyhd(frames: Sequence[np.ndarray], *, several: bool) -> Round:
    """TinyHD: a window of 16 frames for each map, or for 16 maps."""
    source = str(pathlib.Path(TINYHD.value, "src"))
    if source not in sys.path:
        sys.path.insert(0, source)
    # What torchvision has renamed since.
    block = torchvision.ops.misc.Conv2dNormActivation
    torchvision.models.mobilenetv2.ConvBNReLU = block
    torchvision.models.mobilenetv2.ConvNormActivation = block
    backbones = importlib.import_module("models.backbones")
    model = importlib.import_module("models.fastsal3D.model")
    # Random weights: nothing is downloaded.
    build = torchvision.models.mobilenet_v2
    backbones.mobilenet_v2 = lambda **_: build()
    network = model.FastSalA(
        1,
        ["d1", "d2", "d3"],
        [True, not several, not several],
        d1_last=several,
        n_output=16 if several else 1,
    ).eval()
    clip = tensors(frames, 192, 256).transpose(1, 2)[:, :, :16]

    def run() -> int:
        count = FRAMES.value // 16 if several else 4
        for _ in range(count):
            network(clip)
        return 16 * count if several else count

    return run


def methods(frames: Sequence[np.ndarray]) -> Iterator[tuple[str, Round]]:
    """What is compared."""
    for dtype in parts.DTYPES:
        yield f"the starter, {dtype}", starter(frames, dtype)
    if UNISAL.value:
        yield "UNISAL", unisal(frames)
    if TINYHD.value:
        yield "TinyHD-S", tinyhd(frames, several=False)
        yield "TinyHD-M", tinyhd(frames, several=True)


def main(_: Sequence[str]) -> None:
    """Print a table."""
    if torch is None:
        raise app.UsageError("Install torch and torchvision for this.")
    torch.set_grad_enabled(False)
    count = max(FRAMES.value, 16)
    frames = list(itertools.islice(video_lib.Video(VIDEO.value), count))
    each = dict(methods(frames))
    for run in each.values():
        run()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in each}
    for _ in range(ROUNDS.value):
        for name, run in each.items():
            wall, cpu = time.perf_counter(), time.process_time()
            done = run()
            cpu = (time.process_time() - cpu) / done
            found[name].append(((time.perf_counter() - wall) / done, cpu))
    print("| | seconds a frame | CPU seconds a frame |\n|---|---|---|")
    for name, times in found.items():
        wall, cpu = np.min(times, axis=0)
        print(f"| {name} | {wall:.4f} | {cpu:.4f} |")


if __name__ == "__main__":
    app.run(main)
