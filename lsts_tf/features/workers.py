"""Several processes that extract videos, one model in each.

A video is a unit of work that can be done again: its files appear whole or
not at all (`stores`), so a process may die at any moment, and another one
takes up what it left. `Work` is all that a worker has to be told, whether
this machine runs it or an engine (`cluster`). Videos are not sent: a worker
opens the dataset and reads the numbers that are its share.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import threading
import time
from typing import Any
from typing import NamedTuple

from absl import logging
import tensorflow as tf

from lsts_tf.features import dataset
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import stores
from lsts_tf.features import views

# How often a video is tried again after its worker died.
RETRIES = 2
# Fresh processes: TensorFlow does not survive a fork once it has computed.
START = "spawn"
# Seconds between two reports of a worker.
_REPORT = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker has to be told, plain and small.

    Attributes:
        dataset: TFDS name of the dataset.
        data_dir: TFDS data folder; empty for TFDS' default.
        store_dir: Folder of the stores.
        front_end: Arguments of `extractor.Extractor`.
        stride: Distance between windows.
        short: What becomes of short clips; see `windows.Geometry`.
        view: Which view of the videos is extracted.
        command: What makes the stores, for messages.
    """

    dataset: str
    data_dir: str
    store_dir: str
    front_end: Mapping[str, Any]
    stride: int
    short: str = "skip"
    view: views.View = views.WHOLE
    command: str = stores.COMMAND

    def open(self) -> "Worker":
        """Load the model and open dataset and stores."""
        data = dataset.Dataset(self.dataset, self.data_dir)
        extractor = extractor_lib.Extractor(**self.front_end)
        kept = extractor_lib.open_stores(
            pathlib.Path(self.store_dir),
            dataset_name=data.name,
            extractor=extractor,
            stride=self.stride,
            short=self.short,
            view=self.view,
            command=self.command,
        )
        return Worker(data=data, extractor=extractor, kept=kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """A dataset, a model and stores, ready to work; see `Work.open`."""

    data: dataset.Dataset
    extractor: extractor_lib.Extractor
    kept: extractor_lib.Stores

    def outcomes(
        self,
        numbers: Sequence[int],
        advance: extractor_lib.Advance = extractor_lib.unwatched,
    ) -> Iterator[extractor_lib.Outcome]:
        """Extract videos; see `extractor.outcomes`."""
        return extractor_lib.outcomes(
            self.data, numbers, self.extractor, self.kept, advance=advance
        )


class _Step(NamedTuple):
    """A part of a video was done."""

    video: int
    part: float


class _Stop(NamedTuple):
    """Something that no other video changes."""

    reason: str


def shares(numbers: Sequence[int], count: int) -> list[list[int]]:
    """Deal numbers to at most `count` workers, all of about the same work."""
    dealt = [list(numbers[k::count]) for k in range(count)]
    return [share for share in dealt if share]


def fill(
    work: Work,
    frames: Mapping[int, int],
    *,
    workers: int,
    purpose: str,
) -> None:
    """Compute what the stores lack of some videos, in several processes.

    The cores are divided among the workers, and GPUs are dealt to them. A
    worker that dies is replaced, and its video tried `RETRIES` times more.

    Args:
        work: What to do.
        frames: Frames of each video that is missing.
        workers: How many processes.
        purpose: What they are for, on the progress bar.

    Raises:
        extractor.ExtractionError: After all others, naming the videos that
            failed.
        RuntimeError: A worker found what stops all of them, such as a full
            disk.
    """
    pool = _Pool(work, shares(list(frames), workers))
    with extractor_lib.Progress(frames, purpose=purpose) as progress:
        try:
            pool.run(progress)
        finally:
            pool.stop()
    progress.check()


class _Seat:
    """A place for one process after the other, until its share is done."""

    def __init__(
        self, work: Work, place: int, seats: int, share: Sequence[int]
    ) -> None:
        self.left = list(share)
        self.current: int | None = None
        self._work = work
        self._place = place
        self._seats = seats
        self.start()

    def start(self) -> None:
        """Start a process on what is left."""
        self.current = None
        context: Any = multiprocessing.get_context(START)
        self.pipe, end = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_serve,
            args=(self._work, self._place, self._seats, self.left, end),
            daemon=True,
        )
        self.process.start()
        end.close()

    def messages(self) -> list[Any]:
        """What the process has said since, without waiting."""
        found = []
        try:
            while self.pipe.poll():
                found.append(self.pipe.recv())
        except (EOFError, OSError):
            pass  # It has ended, which its sentinel tells.
        return found


class _Pool:
    def __init__(self, work: Work, dealt: Sequence[Sequence[int]]) -> None:
        self._seats = [
            _Seat(work, place, len(dealt), share)
            for place, share in enumerate(dealt)
        ]
        # Deaths by video; by place for those before a video was begun.
        self._deaths: dict[Any, int] = {}

    def run(self, progress: extractor_lib.Progress) -> None:
        busy = list(self._seats)
        while busy:
            multiprocessing.connection.wait(
                [s.pipe for s in busy] + [s.process.sentinel for s in busy]
            )
            for seat in list(busy):
                # First: what it said before it ended must not be lost.
                alive = seat.process.is_alive()
                for message in seat.messages():
                    self._hear(seat, message, progress)
                if not alive:
                    self._bury(seat, progress)
                    if seat.left:
                        seat.start()
                    else:
                        busy.remove(seat)

    def _hear(
        self, seat: _Seat, message: Any, progress: extractor_lib.Progress
    ) -> None:
        if isinstance(message, _Stop):
            raise RuntimeError(message.reason)  # noqa: TRY004, no type error
        self._deaths.pop(seat, None)
        if isinstance(message, _Step):
            seat.current = message.video
            progress.advance(*message)
        else:
            seat.current = None
            seat.left.remove(message.video)
            progress.finish(message)

    def _bury(self, seat: _Seat, progress: extractor_lib.Progress) -> None:
        """Account for a process that has ended; decide what is tried again."""
        seat.process.join()
        seat.pipe.close()
        if not seat.left:
            return
        code = seat.process.exitcode
        key = seat if seat.current is None else seat.current
        self._deaths[key] = self._deaths.get(key, 0) + 1
        at = "" if seat.current is None else f" at video {seat.current}"
        logging.warning("A worker died%s (exit code %s).", at, code)
        if self._deaths[key] <= RETRIES:
            return
        lost = seat.left if seat.current is None else [seat.current]
        for number in list(lost):
            seat.left.remove(number)
            reason = (
                f"its worker died {self._deaths[key]} times, last with exit "
                f"code {code} (-9: killed, often for want of memory; try "
                "fewer --workers)"
            )
            progress.finish(extractor_lib.Outcome(number, reason))

    def stop(self) -> None:
        """End what still runs; nothing is lost but videos under way."""
        for seat in self._seats:
            if seat.process.is_alive():
                seat.process.kill()
            seat.process.join()


def _serve(
    work: Work,
    place: int,
    seats: int,
    numbers: Sequence[int],
    pipe: multiprocessing.connection.Connection,
) -> None:
    """A worker process, from its start to its end."""
    _die_with_parent()
    _take_devices(place, seats)
    try:
        worker = work.open()
        for outcome in worker.outcomes(numbers, _reporter(pipe.send)):
            pipe.send(outcome)
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        pipe.send(_Stop(" ".join([str(error) or repr(error), *notes])))


def _reporter(send: Callable[[Any], None]) -> extractor_lib.Advance:
    """Sends each beginning at once, and steps now and then."""
    pending, last = 0.0, 0.0

    def advance(video: int, part: float) -> None:
        nonlocal pending, last
        now = time.monotonic()
        if not part:
            pending = 0.0
        elif now - last < _REPORT:
            pending += part
            return
        send(_Step(video, part and part + pending))
        pending, last = 0.0, now

    return advance


def _die_with_parent() -> None:
    """End this process as soon as the one that started it has ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _take_devices(place: int, seats: int) -> None:
    """Take a part of the cores, and one GPU where there are some.

    All workers have the same number of threads, because that decides the
    last bits of a feature.
    """
    if sys.platform == "linux":  # Others cannot choose cores.
        cores = sorted(os.sched_getaffinity(0))
        each = max(len(cores) // seats, 1)
        first = place * each % len(cores)
        os.sched_setaffinity(0, cores[first : first + each])
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        chosen = gpus[place % len(gpus)]
        tf.config.set_visible_devices([chosen], "GPU")
        # Workers may share it.
        tf.config.experimental.set_memory_growth(chosen, True)
