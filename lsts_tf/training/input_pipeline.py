"""Batches of stored features, and of windows of frames as they stream.

A window is a pair (place, target): its video's place among those that were
chosen, and a frame. An epoch is an order of windows: a pure function of (seed,
epoch), so that a run can go on at any step without replaying what came before.

* Stored: a batch is ({stream: [B, *feature shape] float16}, truth).
* Live: a batch is ({"rgb": uint8 [B, length, 224, 224, 3], "flow": float16
  [B, length, 112, 112, 2]}, truth). Each video is decoded once an epoch; a
  few videos are open at a time, and windows are drawn from them at random.
* truth is uint8 [B, 360, 640, 2]: density map, fixation map; see
  `preprocess.target`. With several `maps` of a window it is [B, maps, 360,
  640, 2], of the window's last frames in order of time. Videos of another
  size are brought to this one.

A step's windows are read in blocks, one for each micro-batch and replica, in
threads that are a few steps ahead.
"""

import collections
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent import futures
import copy
import functools
import itertools
from typing import Any, TypeVar

import numpy as np

from lsts_tf import experiment, windows
from lsts_tf.features import dataset, preprocess, stores, views
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.media import images as maps_lib
from lsts_tf.scoring import truth as truth_lib

# A window of frames has 12 MB, a video some 90: never shuffle whole windows.
# In memory a frame of an open video takes some 150 KB for each stream.
OPEN_VIDEOS = 8
# Batches that are read at a time.
THREADS = 4

Windows = np.ndarray  # int64 [N, 2]: place of the video, target
Batch = tuple[dict[str, np.ndarray], np.ndarray]  # features, truth
# Windows of each block of a step, and which view of each is taken.
Blocks = list[tuple[Windows, np.ndarray]]
_T = TypeVar("_T")


def _random(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    """Random numbers that depend on seed and epoch alone."""
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream])
    return np.random.Generator(bits)


@functools.lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` things in one epoch: int64 [count]."""
    return _random(seed, epoch).permutation(count)


@functools.lru_cache(maxsize=2)
def view_indices(
    count: int, num_views: int, seed: int, epoch: int
) -> np.ndarray:
    """Which view each window of an epoch takes: int64 [count].

    There are `num_views` besides the whole frame, which is view 0.
    """
    # Another stream of numbers than the order's, of the same key.
    shares = _random(seed, epoch, stream=1).random(count)
    # From the last one on, so that of two views the first half is view 1.
    return num_views - (shares * (num_views + 1)).astype(np.int64)


def choose_videos(
    data: dataset.Dataset, settings: experiment.Experiment
) -> tuple[list[dataset.Key], list[dataset.Key]]:
    """Keys of the videos to train on, and of those of the mini-validation."""
    training = data.numbers(settings.videos("train_videos"), otherwise="train")
    validation = data.numbers(settings.videos("val_videos"), otherwise="")
    geometry = settings.geometry()
    return (
        data.choose(training, "training", geometry),
        data.choose(validation, "validation", geometry),
    )


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in `count` windows.

    Raises:
        ValueError: There is not one.
    """
    if count < batch_size:
        raise ValueError(
            f"A batch of {batch_size} windows is larger than the data, which "
            f"has {count}. Lower --batch_size, or name more videos with "
            "--train_videos."
        )
    return count // batch_size


def read_ahead(
    read: Callable[[Any], _T], numbers: Iterable[Any], threads: int
) -> Generator[_T, None, None]:
    """`map(read, numbers)`, with a few results read before they are needed."""
    pool = futures.ThreadPoolExecutor(threads)
    waiting: collections.deque[futures.Future[_T]] = collections.deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(read, number))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class TrainingWindows:
    """Windows in the order in which they are trained on.

    Args:
        frames: {key of each video that was chosen: its number of frames}.
        geometry: Which of their windows to take.
        maps: Of how many of a window's last frames there is truth.
        num_views: Views besides the whole frame in which a window is seen.
    """

    def __init__(
        self,
        frames: Mapping[dataset.Key, int],
        geometry: windows.Geometry,
        maps: int,
        num_views: int,
    ) -> None:
        self.videos = list(frames)
        self._geometry = geometry
        self._maps = maps
        self._num_views = num_views
        every = [
            (place, target)
            for place, count in enumerate(frames.values())
            for target in geometry.targets(count)
        ]
        self.windows: Windows = np.array(every, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.windows)

    def order(self, seed: int, epoch: int) -> Windows:
        """All windows of an epoch, int64 [N, 2]; pure in (seed, epoch)."""
        return self.windows[permutation(len(self), seed, epoch)]

    def step(
        self, step: int, *, batch_size: int, seed: int
    ) -> tuple[Windows, np.ndarray]:
        """Windows of one step, and which view of each is taken.

        Steps count from 0 over the whole run. What does not fill a batch at
        the end of an epoch is left out.

        Returns:
            int64 [batch_size, 2] and [batch_size].

        Raises:
            ValueError: A batch is larger than all windows together.
        """
        count = len(self)
        epoch, place = divmod(step, steps_per_epoch(count, batch_size))
        rows = slice(place * batch_size, (place + 1) * batch_size)
        seen = view_indices(count, self._num_views, seed, epoch)
        return self.order(seed, epoch)[rows], seen[rows]

    def training(
        self,
        rows: Sequence[slice],
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
    ) -> Generator[list[Batch], None, None]:
        """Batches of the steps `first_step` … `last_step` - 1, in order.

        Of each batch of `batch_size` windows, over all replicas, `rows` are
        read, by block: see `devices.rows`.
        """
        in_epoch = steps_per_epoch(len(self), batch_size)
        numbers = range(first_step, last_step)
        for _, steps in itertools.groupby(numbers, lambda n: n // in_epoch):
            each = (
                self.step(n, batch_size=batch_size, seed=seed) for n in steps
            )
            yield from self._epoch(
                [[(chosen[r], seen[r]) for r in rows] for chosen, seen in each]
            )

    def _epoch(
        self, steps: Sequence[Blocks]
    ) -> Generator[list[Batch], None, None]:
        """Read the blocks of steps of one epoch."""
        raise NotImplementedError


class StoredWindows(TrainingWindows):
    """Windows of some videos whose features and truth are stored.

    Features are a store for each part, and `others` the same of other views of
    the videos; training then takes a window in one of its views, another one
    each epoch. The rest is as of `TrainingWindows`.

    Raises:
        ValueError: A window has no features.
    """

    def __init__(
        self,
        features: Mapping[str, stores.Store],
        truth: stores.TruthStore,
        *,
        videos: Sequence[dataset.Key],
        geometry: windows.Geometry,
        others: Mapping[views.View, Mapping[str, stores.Store]] | None = None,
        maps: int = 1,
    ) -> None:
        self._views = [(views.WHOLE, features), *(others or {}).items()]
        frames = {video: truth.length(video) for video in videos}
        super().__init__(frames, geometry, maps, len(self._views) - 1)
        self._truth = truth
        for stream, store in features.items():
            missing = [
                (place, target)
                for place, target in self.windows.tolist()
                if target not in store.targets(self.videos[place])
            ]
            if missing:
                raise ValueError(
                    f"The {stream} features lack {len(missing)} of "
                    f"{len(self)} windows, the first (video:frame) "
                    f"{label(self.videos, missing[0])}. Make them with "
                    f"`{store.command}`."
                )

    def some(self, count: int) -> "StoredWindows":
        """At most `count` of the windows, at even distances."""
        part = copy.copy(self)
        rows = np.linspace(0, len(self) - 1, min(count, len(self)))
        part.windows = self.windows[rows.astype(int)]
        return part

    def read(self, chosen: Windows, seen: np.ndarray | None = None) -> Batch:
        """Features and truth of windows [B, 2]: one batch as above.

        `seen` is the view of each, int [B]; 0, and None of all, is the whole
        frame.
        """
        if seen is None:
            seen = np.zeros(len(chosen), np.int64)
        each = zip(chosen.tolist(), seen, strict=True)
        return _batch(
            [self._window(place, target, k) for (place, target), k in each]
        )

    def _window(self, place: int, target: int, number: int) -> Batch:
        """A window as a view shows it, and the truth of its last frames."""
        video = self.videos[place]
        view, kept = self._views[number]
        features = {}
        for stream, store in kept.items():
            index = store.targets(video).index(target)
            features[stream] = store.read(video, [index])[0]
        frames = range(target + 1 - self._maps, target + 1)
        return features, read_truth(self._truth, video, frames, view)

    def frames(self, chosen: Windows) -> list[tuple[int, int]]:
        """(place, frame) of each map of windows [B, 2], one after the other."""
        return [
            (int(place), int(target) + back)
            for place, target in chosen
            for back in range(1 - self._maps, 1)
        ]

    def fixations(self) -> truth_lib.FixationSet:
        """Fixations of all frames that have a map, at the size of the maps."""
        return truth_lib.FixationSet.of_maps(
            (
                place,
                frame,
                preprocess.fixations(
                    self._truth.fixations(self.videos[place], [frame])[0]
                ),
            )
            for place, frame in sorted(set(self.frames(self.windows)))
        )

    def _epoch(
        self, steps: Sequence[Blocks]
    ) -> Generator[list[Batch], None, None]:
        def read(step: Blocks) -> list[Batch]:
            return [self.read(*block) for block in step]

        return read_ahead(read, steps, THREADS)

    def in_order(
        self, rows: Sequence[slice], batch_size: int
    ) -> Generator[tuple[list[Batch], np.ndarray], None, None]:
        """All windows once, in order.

        The last batch is filled up, so that every batch has one shape and no
        replica is ever left empty. Arguments are those of `training`.

        Returns:
            The blocks of each batch, and the windows' numbers in `windows`,
            one block after the other: int64 [rows]; -1 for those that only
            fill up.
        """

        def read(first: int) -> tuple[list[Batch], np.ndarray]:
            numbers = np.arange(first, first + batch_size)
            filled = np.minimum(numbers, len(self) - 1)
            blocks = [self.read(self.windows[filled[r]]) for r in rows]
            numbers[numbers >= len(self)] = -1
            return blocks, np.concatenate([numbers[r] for r in rows])

        return read_ahead(read, range(0, len(self), batch_size), THREADS // 2)


def read_truth(
    truth: stores.TruthStore,
    video: dataset.Key,
    frames: Sequence[int],
    view: views.View = views.WHOLE,
) -> np.ndarray:
    """Density and fixation maps of a video's frames: uint8 [T, H, W, 2]."""
    number = dataset.number_of(video)
    return _truth(
        *(
            [view.of(number, image) for image in read(video, frames)]
            for read in (truth.maps, truth.fixations)
        )
    )


def _truth(
    maps: Iterable[np.ndarray], fixations: Iterable[np.ndarray]
) -> np.ndarray:
    """Both at the size of the maps, side by side: uint8 [T, H, W, 2]."""
    densities = [preprocess.density(map_) for map_ in maps]
    fixated = [preprocess.fixations(map_) for map_ in fixations]
    return np.stack([densities, fixated], axis=-1)


def _batch(each: Sequence[Batch]) -> Batch:
    """Windows as one batch; of one map of each it has no axis of maps."""
    signals, truths = zip(*each, strict=True)
    features = {s: np.stack([x[s] for x in signals]) for s in signals[0]}
    truth = np.stack(truths)
    return features, truth[:, 0] if truth.shape[1] == 1 else truth


def label(videos: Sequence[dataset.Key], window: Sequence[int]) -> str:
    """A window in a message: video:frame."""
    place, target = window
    return f"{dataset.label(videos[place])}:{target}"


@functools.lru_cache(maxsize=2)
def live_order(
    counts: tuple[tuple[int, int], ...],
    geometry: windows.Geometry,
    *,
    seed: int,
    epoch: int,
) -> Windows:
    """Order of an epoch in which only `OPEN_VIDEOS` are open at a time.

    The next window comes from one of the open videos, chosen with the odds of
    what each has left; inside a video the order is random. `counts` are
    (place, frames) of each video, in the order of reading; the result is int64
    [N, 2], each window once.
    """
    rng = _random(seed, epoch)
    waiting = [(k, geometry.targets(n)) for k, n in reversed(counts)]
    left: list[tuple[int, list[int]]] = []
    order = []
    while left or waiting:
        while waiting and len(left) < OPEN_VIDEOS:
            place, targets = waiting.pop()
            if targets:
                left.append((place, rng.permutation(targets).tolist()))
        sizes = np.array([len(targets) for _, targets in left])
        drawn = int(rng.choice(len(left), p=sizes / sizes.sum()))
        place, remaining = left[drawn]
        order.append((place, remaining.pop()))
        if not remaining:
            del left[drawn]
    return np.array(order, np.int64).reshape(-1, 2)


class LiveWindows(TrainingWindows):
    """Windows of frames and flows out of TFDS videos, as they stream.

    The front end says how a frame is seen, and computes flow. `flip` mirrors
    half of the windows, others each epoch. The rest is as of `TrainingWindows`.
    """

    def __init__(
        self,
        data: dataset.Dataset,
        front_end: front_end_lib.FrontEnd,
        *,
        videos: Sequence[dataset.Key],
        geometry: windows.Geometry,
        flip: bool = False,
        maps: int = 1,
    ) -> None:
        frames = {video: data.frame_counts[video] for video in videos}
        super().__init__(frames, geometry, maps, int(flip))
        self._data = data
        self._front_end = front_end
        self._counts = tuple(enumerate(frames.values()))

    def order(self, seed: int, epoch: int) -> Windows:
        """All windows of an epoch, int64 [N, 2]; pure in (seed, epoch)."""
        return live_order(self._counts, self._geometry, seed=seed, epoch=epoch)

    def _epoch(
        self, steps: Sequence[Blocks]
    ) -> Generator[list[Batch], None, None]:
        chosen, seen = (
            np.concatenate(each)
            for each in zip(*itertools.chain(*steps), strict=True)
        )
        found = self._windows(chosen, seen)

        def read(step: Blocks) -> list[Batch]:
            return [
                _batch(list(itertools.islice(found, len(block))))
                for block, _ in step
            ]

        return read_ahead(read, steps, 1)

    def _windows(self, chosen: Windows, seen: np.ndarray) -> Iterator[Batch]:
        """Decode each video when it is first needed; drop it after its last."""
        keys = [self.videos[place] for place, _ in chosen.tolist()]
        last = {video: row for row, video in enumerate(keys)}
        source = self._data.videos(last)
        opened: dict[dataset.Key, tuple[dataset.Video, dict]] = {}
        for row, (video, target) in enumerate(
            zip(keys, chosen[:, 1].tolist(), strict=True)
        ):
            while video not in opened:
                fresh = next(source)
                opened[fresh.number] = fresh, self._signals(fresh)
            yield self._window(*opened[video], target, is_mirrored=seen[row])
            if last[video] == row:
                del opened[video]

    def _signals(self, video: dataset.Video) -> dict[str, np.ndarray]:
        """All of a video, and what is played before it: {stream: [T, …]}."""
        played = video.after(self._geometry.lead(video.num_frames))
        found = {}
        if "rgb" in self._front_end.streams:
            size = self._front_end.size
            found["rgb"] = np.stack(
                [preprocess.squeeze(frame, size) for frame in played.frames()]
            )
        if "flow" in self._front_end.streams:
            flows = list(self._front_end.flows(played.frames()))
            # Row k is flow k; there is no flow 0, and nobody reads that row.
            found["flow"] = np.stack([np.zeros_like(flows[0]), *flows])
        return found

    def _window(
        self,
        video: dataset.Video,
        signals: Mapping[str, np.ndarray],
        target: int,
        *,
        is_mirrored: bool,
    ) -> Batch:
        """What a window holds, and the truth of its last frames."""
        frames = self._geometry.window(target)
        lead = len(self._geometry.lead(video.num_frames))
        place = slice(frames.start + lead, frames.stop + lead)
        found = {stream: all_[place] for stream, all_ in signals.items()}
        truth = _truth(
            *(
                [decode_map(pngs[frame]) for frame in frames[-self._maps :]]
                for pngs in (video.maps, video.fixations)
            )
        )
        if is_mirrored:
            found = {s: preprocess.mirror(s, x) for s, x in found.items()}
            truth = truth[..., ::-1, :]
        return found, truth


def decode_map(png: bytes) -> np.ndarray:
    """A grey PNG: uint8 [H, W]."""
    image = maps_lib.decode(png)
    if image is None:
        raise dataset.DatasetError(
            "A map of the dataset cannot be decoded; build it again."
        )
    return image
