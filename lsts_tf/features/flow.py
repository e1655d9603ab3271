"""TV-L1 motion between successive frames.

Frames are numbered from 0. Flow k is the motion from frame k-1 to frame k;
there is no flow 0, so T frames have T-1 flows. A flow is float32 [h, w, 2]:
(x, y) in pixels a frame, on the grid of the grey frames that it was computed
from (112 x 112 as published), where x grows to the right and y downwards. It is
a forward flow: what is at (x, y) in frame k-1 is at (x, y) + flow in frame k.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import functools
import itertools
import os
import threading
from typing import Any

import cv2
import keras
import numpy as np

from lsts_tf import parts
from lsts_tf.features import tvl1

DIS_WARNING = (
    "DIS flow differs from TV-L1, on which Flow-I3D was trained: their "
    f"correlation is {parts.DIS_CORRELATION}"
)

# [h, w] uint8 of frame k-1, of frame k -> [h, w, 2] float32, flow k.
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
_Pair = tuple[np.ndarray, np.ndarray]


def gray(
    frame: np.ndarray, *, size: tuple[int, int] = parts.FLOW_SIZE
) -> np.ndarray:
    """Shrinks a frame to the small grey one that flow is computed from.

    By area: bilinear shrinking of 640 x 360 aliases, which costs two to five
    times the accuracy of the flow on textured frames. From uint8 RGB [H, W, 3]
    to uint8 [*size]; the aspect ratio is not kept.
    """
    return cv2.resize(
        cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY),
        size[::-1],
        interpolation=cv2.INTER_AREA,
    )


class Flow:
    """Flows of successive frames, by a bounded pool of threads.

    Threads and not processes: every method leaves Python's lock while it
    computes, so threads scale as processes do. On an accelerator "tvl1" takes
    many pairs a call instead. The result does not depend on the threads, and
    on the pairs a call only by rounding.

    Args:
        name: "tvl1" (ours), "opencv" (its DualTVL1, the algorithm that "tvl1"
            follows) or "dis" (fast, for previews only: see `DIS_WARNING`).

    Attributes:
        workers: How many calls are under way at a time.
        batch: How many pairs a call of "tvl1" computes; others have 1.

    Raises:
        ValueError: Another name.
        ImportError: "opencv", and the installed OpenCV has no DualTVL1.
    """

    def __init__(self, name: str = "tvl1"):
        if name not in METHODS:
            raise ValueError(
                f"A flow method is one of {', '.join(METHODS)}. "
                f"Received: {name!r}"
            )
        self._method = METHODS[name]()
        self.name = name
        # One caller more than the process may use cores: while one is between
        # two pairs, every core still has a call that has begun.
        self.workers = len(os.sched_getaffinity(0)) + 1
        self.batch = _default_batch() if name == "tvl1" else 1

    def pairs(
        self, grays: Iterable[np.ndarray], *, chunk: int | None = None
    ) -> Iterator[np.ndarray]:
        """Yields the flow of each frame but the first, in order.

        Frames are taken as they are needed: at most two calls a worker are
        under way.

        Args:
            grays: uint8 arrays [h, w], all of one size.
            chunk: For live use: all flows of so many pairs are yielded before
                another frame is taken. By default frames are taken ahead.

        Yields:
            float32 [h, w, 2], (x, y) in pixels a frame.

        Raises:
            ValueError: A frame of another type or size.
        """
        size = min(self.batch, chunk or self.batch)
        most = -(-chunk // size) if chunk else 2 * self.workers
        pending: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            try:
                pairs = itertools.pairwise(_checked(grays))
                while batch := list(itertools.islice(pairs, size)):
                    pending.append(pool.submit(self._compute, batch, size))
                    if len(pending) < most:
                        continue
                    for _ in range(most if chunk else 1):
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _compute(self, batch: list[_Pair], size: int) -> list[np.ndarray]:
        if size == 1:
            return [self._method(*pair) for pair in batch]
        # The last batch is filled up with black frames, which stop at once,
        # because every number of pairs would be compiled anew.
        shape = (2, size, *batch[0][0].shape)
        frames = np.zeros(shape, np.uint8)
        for index, pair in enumerate(batch):
            frames[:, index] = pair
        return list(np.asarray(_compiled_tvl1()(*frames))[: len(batch)])

    def describe(self) -> dict[str, Any]:
        """Says what decides the numbers, for a manifest.

        Of OpenCV's methods also its major version: from 4 to 5 the numbers of
        its DualTVL1 changed by 0.018 pixels in the mean, because its bicubic
        warp became exact.
        """
        about: dict[str, Any] = {"method": self.name}
        if self.name == "dis":
            about["preset"] = "medium"
        else:
            about |= tvl1.PARAMETERS._asdict()
        if self.name != "tvl1":
            about["opencv"] = cv2.__version__.split(".")[0]
        return about


def _checked(grays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for gray in grays:
        if gray.dtype != np.uint8 or gray.ndim != 2:
            raise ValueError(
                "A grey frame is uint8 [h, w]. "
                f"Received: {gray.dtype} {list(gray.shape)}"
            )
        shape = shape or gray.shape
        if gray.shape != shape:
            raise ValueError(
                "Grey frames have one size. "
                f"Received: {list(gray.shape)} after {list(shape)}"
            )
        yield gray


# What a GPU need not wait for (docs/performance.md); the numbers are the same.
_BURST = 5


def _tvl1() -> Method:
    compiled = _compiled_tvl1()

    def compute(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(first[None], second[None]))[0]

    return compute


@functools.cache
def _compiled_tvl1() -> Callable[[np.ndarray, np.ndarray], Any]:
    """Compiles the kernel, once a process and size: 16 to 22 CPU seconds.

    It must be called from Python: inside `tf.data.Dataset.map` a compiled
    function silently runs uncompiled, three times slower.
    """
    import tensorflow as tf  # Under JAX nobody comes here.

    often = functools.partial(tvl1.flow, burst=_BURST)
    return tf.function(often, jit_compile=True, autograph=False)


def _default_batch() -> int:
    devices = keras.distribution.list_devices()
    # A batch takes as long as its slowest pair, and 64 fit a GPU's cache.
    return 1 if all("cpu" in name.lower() for name in devices) else 64


def _opencv() -> Method:
    optflow = getattr(cv2, "optflow", None)
    # The attribute `optflow` alone proves nothing: it survives as an empty
    # name when another OpenCV wheel is installed over the one with it.
    create = getattr(optflow, "DualTVL1OpticalFlow_create", None)
    if create is None:
        raise ImportError(
            "The flow method 'opencv' needs DualTVL1, which only OpenCV's "
            "contrib wheels have. Uninstall every opencv package, because "
            "they overwrite each other's files, and then `pip install "
            "opencv-contrib-python-headless`; or use the method 'tvl1'."
        )
    # Its defaults are those of `tvl1.Parameters`, as the test sees.
    return _per_thread(create)


def _dis() -> Method:
    return _per_thread(
        lambda: cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    )


def _per_thread(create: Callable[[], Any]) -> Method:
    """A method with one of OpenCV's objects a thread: none is to be shared."""
    local = threading.local()

    def compute(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        # DualTVL1 remembers how many scales the smallest frame allowed, so an
        # object serves one size only.
        if getattr(local, "shape", None) != first.shape:
            local.solver, local.shape = create(), first.shape
        # DIS refuses slices of larger arrays.
        pair = map(np.ascontiguousarray, (first, second))
        return local.solver.calc(*pair, None)

    return compute


# Each gives a function that many threads may call at a time.
METHODS: dict[str, Callable[[], Method]] = {
    "tvl1": _tvl1,
    "opencv": _opencv,
    "dis": _dis,
}
