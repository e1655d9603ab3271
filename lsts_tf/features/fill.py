"""Fills the stores of a dataset with flows, features and truth.

`fill_video` computes and stores what is missing of one video; everything
around it decides only where it runs: in a loop here (`here`), in a pool of
processes (`processes`), or by Apache Beam (`beam`). A video's files appear
whole or not at all (`stores`), so a run that is killed goes on by the same
command, and any of them may do a video again.
"""

from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import itertools
import multiprocessing
import pathlib
import shutil
from typing import Any, NamedTuple

from absl import logging
import numpy as np
import tqdm

from lsts_tf import parts, windows
from lsts_tf.features import dataset, preprocess, stores, views
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.features import workers as workers_lib

# What no other video changes: a full disk, a store that cannot be written.
_STOPPING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
)
# Fresh processes: TensorFlow does not survive a fork once it has computed.
START = "spawn"


class ExtractionError(RuntimeError):
    """Some videos failed; the others are in the stores."""


class Outcome(NamedTuple):
    """What became of a video: `error` is empty where it is stored."""

    video: int
    error: str = ""


# === The stores of a dataset ===


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stores:
    """The stores of one dataset, one front end and one stride.

    Attributes:
        truth: Density and fixation maps of every frame.
        flow: Flows; None where no stream needs them.
        features: Features of each part of each stream; see `parts.name`.
        geometry: Which windows have features, for each part.
        view: Which view of the videos the features are of.
    """

    truth: stores.TruthStore
    flow: stores.Store | None
    features: Mapping[str, stores.Store]
    geometry: Mapping[str, windows.Geometry]
    view: views.View = views.WHOLE

    def __contains__(self, video: int) -> bool:
        """Whether all of a video is there."""
        wanted = (self.truth, self.flow, *self.features.values())
        return all(video in store for store in wanted if store is not None)


def open_stores(
    root: pathlib.Path,
    *,
    dataset_name: str,
    front_end: front_end_lib.FrontEnd,
    stride: int,
    short: str = "skip",
    view: views.View = views.WHOLE,
    command: str = stores.COMMAND,
) -> Stores:
    """Open or make the stores in `root`.

    RGB features at stride 1 start with the first window that RGB alone has,
    and so serve LSTS-RGB and LSTS-RGB&Flow. Features of other views lie beside
    the others; flows and truth are those of the videos as they are. What
    becomes of short clips does not tell stores apart: of those that are in
    one, the features are those of clips played backwards before their start.
    Crops are of RGB alone, as the flow that is stored is the whole frame's.

    `root` holds the stores of all datasets; the name of this one has its
    version. See `windows.Geometry` for `stride` and `short`, and
    `stores.Store.create` for `command`.

    Raises:
        ValueError: A store there was made with something else.
    """
    folder = pathlib.Path(root) / stores.folder_name(dataset_name)

    def create(place: str, kind: str, *about: Any) -> Any:
        store = stores.TruthStore if kind == "truth" else stores.Store
        manifest = stores.Manifest(kind, dataset_name, *about)
        return store.create(folder / place, manifest, command=command)

    flow = None
    if "flow" in front_end.streams:
        at_size = ""
        if front_end.size != parts.SIZE:
            at_size = f"-{parts.size_name(front_end.size)}"
        flow = create(
            f"flow{at_size}",
            "flow",
            (*parts.half(front_end.size), 2),
            "float16",
            {"flow": front_end.flow.describe()},
        )
    features, geometry = {}, {}
    for stream in front_end.streams:
        sharing = (stream,) if stride == 1 else front_end.streams
        chosen = windows.Geometry.of(
            sharing, length=front_end.window, stride=stride, short=short
        )
        apart = f"-stride{stride}-first{chosen.first}" if stride > 1 else ""
        apart += f"-{view.name}" if view.name else ""
        for part, shape in front_end.part_shapes(stream).items():
            geometry[part] = chosen
            about = front_end.describe_part(stream, part) | view.describe()
            about |= {"stride": stride, "first": chosen.first}
            features[part] = create(
                front_end.store_name(part) + apart,
                *("features", shape, "float16", about),
            )
    truth = create("truth", "truth", (), "uint8")
    return Stores(
        truth=truth, flow=flow, features=features, geometry=geometry, view=view
    )


def ready_stores(
    root: pathlib.Path,
    data: dataset.Dataset,
    numbers: Sequence[dataset.Key],
    front_end: front_end_lib.FrontEnd,
    *,
    purpose: str,
    **options: Any,
) -> Stores:
    """Open stores and fill them; arguments as of `open_stores` and `fill`.

    Returns:
        Stores to read from, by the keys of `data`.
    """
    for each, own in data.parts(numbers):
        kept = open_stores(
            root, dataset_name=each.name, front_end=front_end, **options
        )
        title = purpose if each is data else f"{purpose}, {each.name}"
        fill(each, own, kept, here(front_end), purpose=title)
    return kept


def require_disk(
    wanted: Iterable[tuple[dataset.Dataset, Stores, Collection[int]]],
) -> None:
    """Say how much will be written; raise OSError unless it is free.

    What is wanted are datasets, stores, and videos.
    """
    # By file, because several views of a video share its flow.
    needed: dict[pathlib.Path, int] = {}
    for data, kept, numbers in wanted:
        for number in numbers:
            frames = data.frame_counts[number]
            counts = [
                (store, len(kept.geometry[part].targets(frames)))
                for part, store in kept.features.items()
            ]
            if kept.flow is not None:
                counts.append((kept.flow, max(frames - 1, 1)))
            needed |= {
                store.path(number): count * store.file_dtype.itemsize
                for store, count in counts
                if number not in store
            }
    if not needed:
        return
    videos = len({(path.parents[1], path.stem) for path in needed})
    folder, total = next(iter(needed)).parent, sum(needed.values())
    logging.info("%.2f GB to store for %d videos.", total / 1e9, videos)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise OSError(
            f"The disk of {folder} is too small: the flows and features of "
            f"{videos} videos need {total / 1e9:.2f} GB, and {free / 1e9:.2f} "
            "GB are free. Free some, or choose a folder on another disk with "
            "--store_dir."
        )


# === One video ===


def fill_video(
    video: dataset.Video, front_end: front_end_lib.FrontEnd, kept: Stores
) -> Outcome:
    """Compute and store what is missing of one video; tell how it went.

    Raises:
        OSError: The stores cannot be written, which no other video changes.
    """
    try:
        _fill_video(video, front_end, kept)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _STOPPING:
            error.add_note(f"This happened at video {video.number}.")
            raise
        # OpenCV, TensorFlow, the stores and a disk that cannot read a block
        # have errors of their own, and none says anything of the next video.
        return Outcome(video.number, str(error) or repr(error))
    return Outcome(video.number)


def _fill_video(
    video: dataset.Video, front_end: front_end_lib.FrontEnd, kept: Stores
) -> None:
    number = video.number
    if number not in kept.truth:
        if not video.maps:
            raise ValueError(
                f"Video {number} has no annotation, so nothing can be trained "
                "on it or scored. Choose other videos."
            )
        kept.truth.write(number, maps=video.maps, fixations=video.fixations)
    if kept.flow is not None and number not in kept.flow:
        # One frame does not move, and has a record all the same.
        moving = video.after((0,)) if video.num_frames == 1 else video
        flows = front_end.flows(moving.frames())
        kept.flow.write(number, range(1, moving.num_frames), flows)
    for stream in front_end.streams:
        absent = {
            part: kept.features[part]
            for part in front_end.part_shapes(stream)
            if number not in kept.features[part]
        }
        if not absent:
            continue
        geometry = kept.geometry[stream]
        targets = geometry.targets(video.num_frames)
        is_still = video.num_frames == 1
        # Whoever encodes a still holds it; its flow needs a frame before.
        lead = (
            (0,) * geometry.first
            if is_still
            else geometry.lead(video.num_frames)
        )
        played = video.after(lead)
        found = front_end.features(
            stream,
            _signal(stream, played, front_end, kept, is_led=bool(lead)),
            stride=geometry.stride,
            length=played.num_frames - geometry.first,
            starts_still=is_still,
        )
        stores.write(absent, number, targets, found)


def _signal(
    stream: str,
    video: dataset.Video,
    front_end: front_end_lib.FrontEnd,
    kept: Stores,
    *,
    is_led: bool,
) -> Iterator[np.ndarray]:
    """What a network sees of a video, from the geometry's first frame on.

    `is_led` says whether frames are played before its own.
    """
    if stream == "rgb":
        first = kept.geometry[stream].first
        for frame in itertools.islice(video.frames(), first, None):
            seen = kept.view.of(video.number, frame)
            yield preprocess.squeeze(seen, front_end.size)
        return
    flows: Iterable[np.ndarray] = ()
    if is_led:
        # Backwards, motion is another one than what is stored.
        flows = front_end.flows(video.frames())
    elif kept.flow is not None:
        rows = range(len(kept.flow.targets(video.number)))
        flows = (kept.flow.read(video.number, [row])[0] for row in rows)
    for flow in flows:
        yield preprocess.mirror(stream, flow) if kept.view.mirrored else flow


# === Many videos ===

# Does the videos of a dataset with these numbers; tells what became of each.
Engine = Callable[[dataset.Dataset, Sequence[int], Stores], Iterator[Outcome]]


def fill(
    data: dataset.Dataset,
    numbers: Iterable[int],
    kept: Stores,
    engine: Engine,
    *,
    purpose: str,
) -> None:
    """Compute what the stores lack of some videos.

    A video that fails does not stop the others. What does the work is `here`,
    of `processes`, or `beam.run`; the progress bar says the `purpose`.

    Raises:
        ExtractionError: After all others, naming the videos that failed.
        OSError: The disk is too small, said before the work starts; or it
            became full, or cannot be written.
        RuntimeError: A process of the engine died.
    """
    absent = [number for number in numbers if number not in kept]
    if not absent:
        logging.info("%s: nothing is missing.", purpose)
        return
    failures = []
    require_disk([(data, kept, absent)])
    with tqdm.tqdm(
        total=sum(data.frame_counts[number] for number in absent),
        desc=purpose,
        unit="frame",
    ) as bar:
        for count, (number, error) in enumerate(engine(data, absent, kept), 1):
            bar.set_postfix_str(f"{count}/{len(absent)} videos", refresh=False)
            bar.update(data.frame_counts[number])
            if error:
                logging.error("Video %d: %s", number, error)
                failures.append(f"video {number}: {error}")
    if failures:
        raise ExtractionError(
            f"{len(failures)} of {len(absent)} videos failed; the others are "
            f"stored. {'; '.join(failures)}"
        )


def here(front_end: front_end_lib.FrontEnd) -> Engine:
    """An engine that does one video after the other in this process."""
    return lambda data, numbers, kept: (
        fill_video(video, front_end, kept) for video in data.videos(numbers)
    )


@contextlib.contextmanager
def processes(
    count: int, load: Callable[[], front_end_lib.FrontEnd]
) -> Iterator[Engine]:
    """An engine of processes, each with a front end of its own from `load`.

    This process reads the videos and hands them on as they are, encoded.
    """
    context: Any = multiprocessing.get_context(START)
    with concurrent.futures.ProcessPoolExecutor(
        count, context, _start_worker, (context.Value("i"), count, load)
    ) as pool:
        try:
            yield functools.partial(_hand_out, pool, count)
        finally:
            # What is still under way nobody waits for. A process that somebody
            # killed may hold the queue, and others never hear that all is over.
            for process in multiprocessing.active_children():
                process.kill()


def _hand_out(
    pool: concurrent.futures.Executor,
    count: int,
    data: dataset.Dataset,
    numbers: Sequence[int],
    kept: Stores,
) -> Iterator[Outcome]:
    pending: set[concurrent.futures.Future] = set()
    try:
        for video in data.videos(numbers):
            pending.add(pool.submit(_fill_there, video, kept))
            # Few videos are held at a time.
            while len(pending) > count:
                done, pending = concurrent.futures.wait(
                    pending, None, concurrent.futures.FIRST_COMPLETED
                )
                yield from (future.result() for future in done)
        for future in concurrent.futures.as_completed(pending):
            yield future.result()
    except concurrent.futures.BrokenExecutor as error:
        raise RuntimeError(
            "A worker process died, perhaps because memory ran out (try fewer "
            "--workers). What is stored is kept; run the same command again."
        ) from error


# The front end of a worker process.
_loaded: list[front_end_lib.FrontEnd] = []


def _start_worker(
    started: Any, workers: int, load: Callable[[], front_end_lib.FrontEnd]
) -> None:
    with started.get_lock():
        place = started.value
        started.value += 1
    workers_lib.begin(place, workers)
    _loaded.append(load())


def _fill_there(video: dataset.Video, kept: Stores) -> Outcome:
    return fill_video(video, _loaded[-1], kept)
