"""Overlays of a camera while it runs: frames are dropped, never queued up."""

import collections
from collections.abc import Callable, Iterator
from concurrent import futures
import functools
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lsts_tf.media import draw

if TYPE_CHECKING:
    from lsts_tf import predictor as predictor_lib

# Frames of lookahead of the continuous front end, in place of all 47. What
# that costs is in docs/performance.md.
LOOKAHEAD = 8
# Frames that are computed together: the fewer, the sooner they are shown.
CHUNK = 4
# Seconds without a frame after which a new clip begins.
_PAUSE = 5.0


def lookahead(front_end: str) -> int | None:
    """What `Predictor.load` is told for live use of a front end."""
    return LOOKAHEAD if front_end == "continuous" else None


class Shown(NamedTuple):
    """An overlay.

    Attributes:
        picture: uint8 RGB [H, W, 3].
        delay: Seconds since its frame came.
    """

    picture: np.ndarray
    delay: float


class _Ended(Exception):  # noqa: N818, not an error
    """A clip is over; maps of its last frames are not wanted."""


class _Clip:
    """One clip: what a thread predicts, and what waits on both sides of it."""

    def __init__(
        self, predictor: "predictor_lib.Predictor", thread: futures.Executor
    ) -> None:
        self.last = time.monotonic()
        self._predictor = predictor
        self._coming: collections.deque = collections.deque(maxlen=CHUNK)
        self._done: collections.deque = collections.deque(maxlen=CHUNK)
        self._state = threading.Condition()
        self._error: Exception | None = None
        self._running = thread.submit(self._run)

    def __call__(self, frame: np.ndarray) -> Shown | None:
        self.last = time.monotonic()
        with self._state:
            if self._error is not None:
                raise self._error
            self._coming.append((frame, self.last))
            self._state.notify()
            if not self._done:
                return None
            picture, came = self._done.popleft()
        return Shown(picture, self.last - came)

    def end(self) -> None:
        """Waits until the chunk that is computed is done."""
        with self._state:
            self._error = _Ended()
            self._state.notify()
        self._running.result()

    def _run(self) -> None:
        seen: collections.deque = collections.deque()

        def frames() -> Iterator[np.ndarray]:
            while True:
                with self._state:
                    self._state.wait_for(lambda: self._coming or self._error)
                    if self._error is not None:
                        raise self._error
                    seen.append(self._coming.popleft())
                yield seen[-1][0]

        try:
            for map_ in self._predictor.stream(frames(), chunk=CHUNK):
                frame, came = seen.popleft()
                picture = draw.over(frame, map_, alpha=0.6)
                if self._predictor.note:
                    picture = draw.annotate(picture, self._predictor.note)
                with self._state:
                    self._done.append((picture, came))
        except Exception as error:
            with self._state:
                self._error = error


class Live:
    """Takes frames at a camera's pace, and gives overlays at the model's.

    The newest `CHUNK` frames wait for the model, and as many overlays for who
    fetches them; older ones are dropped. There is one clip at a time, that of
    the user who sent a frame last. A pause also begins a new one.

    Args:
        load: Gives the model, when the first frame has come. Nobody else may
            use it for a clip; see `Predictor.stream`.
    """

    def __init__(self, load: Callable[[], "predictor_lib.Predictor"]) -> None:
        self._load = functools.cache(load)
        self._lock = threading.Lock()
        # One for all clips, because each new one keeps memory of its own.
        self._thread = futures.ThreadPoolExecutor(1)
        self._clip: _Clip | None = None
        self._user = ""

    def __call__(self, frame: np.ndarray, user: str = "") -> Shown | None:
        """Takes a frame; gives the next overlay, if there is one.

        Args:
            frame: uint8 RGB [H, W, 3], all of a clip of one size.
            user: Whose it is.

        Raises:
            ValueError: The model cannot predict live, or it is no frame.
        """
        with self._lock:
            paused = self._clip and time.monotonic() - self._clip.last > _PAUSE
            if paused or user != self._user:
                self._end()
            self._user = user
            self._clip = self._clip or _Clip(self._load(), self._thread)
            return self._clip(frame)

    def end(self, user: str | None = None) -> None:
        """Ends the clip of a user, or by None of whoever has one."""
        with self._lock:
            if user in (None, self._user):
                self._end()

    def _end(self) -> None:
        clip, self._clip = self._clip, None
        if clip:
            clip.end()
