"""tf.data: batches of stored features, and windows of frames as they stream.

A window is a pair (place, target): its video's place among those that were
chosen, and a frame. An epoch is an order of windows: a pure function of (seed,
epoch), so that a run can go on at any step without replaying what came before.

* Stored: a batch is ({stream: [B, *feature shape] float16}, truth). One read
  a batch, on as many threads as asked for; never one an example.
* Live: a batch is ({"rgb": uint8 [B, length, 224, 224, 3], "flow": float16
  [B, length, 112, 112, 2]}, truth). Each video is decoded once an epoch; a
  few videos are open at a time, and windows are drawn from them at random.
* truth is uint8 [B, 360, 640, 2]: density map, fixation map; see
  `preprocess.target`. With several `maps` of a window it is [B, maps, 360,
  640, 2], of the window's last frames in order of time. Videos of another
  size are brought to this one.

A batch may be read in equal parts, one for each replica: part k of n holds
rows k B / n and following. A `Part` names those that one reader reads.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lsts_tf import parts
from lsts_tf import windows
from lsts_tf.features import dataset
from lsts_tf.features import preprocess
from lsts_tf.features import stores
from lsts_tf.features import views
from lsts_tf.media import images as maps_lib
from lsts_tf.scoring import truth as truth_lib

# A window of frames has 12 MB, a video some 90: never shuffle whole windows.
OPEN_VIDEOS = 8

Windows = np.ndarray  # int64 [N, 2]: place of the video, target


class Part(NamedTuple):
    """Which part of every batch one reader reads.

    Attributes:
        first: Number of its first part.
        here: Parts that it reads, one after the other.
        total: Equal parts of a batch, over all readers.
    """

    first: int = 0
    here: int = 1
    total: int = 1

    def rows(self, batch_size: int) -> list[slice]:
        """Rows of a batch of each part that is read.

        >>> Part(first=2, here=2, total=4).rows(8)
        [slice(4, 6, None), slice(6, 8, None)]

        Raises:
            ValueError: A batch has no equal parts.
        """
        size, rest = divmod(batch_size, self.total)
        if rest or not size:
            raise ValueError(
                "--batch_size must be a multiple of the number of replicas, "
                f"{self.total}. Received: {batch_size}"
            )
        numbers = range(self.first, self.first + self.here)
        return [slice(k * size, (k + 1) * size) for k in numbers]


WHOLE = Part()


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` things in one epoch.

    Args:
        count: How many.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        int64 [count], each of 0 … count - 1 once.
    """
    bits = np.random.Philox(key=[seed, epoch])
    return np.random.Generator(bits).permutation(count)


def step_windows(
    chosen: Windows, *, batch_size: int, seed: int, step: int
) -> Windows:
    """Windows of one training step; what does not fill a batch is left out.

    Args:
        chosen: The windows of an epoch, int64 [N, 2].
        batch_size: Windows in a step.
        seed: Seed of the run.
        step: Number of the step from the start of the run, from 0.

    Returns:
        int64 [batch_size, 2].

    Raises:
        ValueError: A batch is larger than all windows together.
    """
    epoch, place = divmod(step, steps_per_epoch(len(chosen), batch_size))
    order = _permutation(len(chosen), seed, epoch)
    return chosen[order[place * batch_size : (place + 1) * batch_size]]


_permutation = functools.lru_cache(maxsize=2)(permutation)


def step_views(
    count: int, *, num_views: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
    """Which view of each window a training step takes: int64 [batch_size].

    A pure function, as the order is; others each epoch.

    Args:
        count: Windows of an epoch.
        num_views: Views besides the whole frame, which is view 0.
        batch_size: Windows in a step.
        seed: Seed of the run.
        step: Number of the step from the start of the run, from 0.
    """
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    view_indices = _views(count, num_views, seed, epoch)
    return view_indices[place * batch_size : (place + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _views(count: int, num_views: int, seed: int, epoch: int) -> np.ndarray:
    # Another stream of numbers than the order's, of the same key.
    bits = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1])
    shares = np.random.Generator(bits).random(count)
    # From the last one on, so that of two views the first half is view 1.
    return num_views - (shares * (num_views + 1)).astype(np.int64)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Whole batches in `count` windows.

    Raises:
        ValueError: There is not one.
    """
    if count < batch_size:
        raise ValueError(
            f"A batch of {batch_size} windows is larger than the data, which "
            f"has {count}. Lower --batch_size, or name more videos by "
            "--train_videos."
        )
    return count // batch_size


class StoredWindows:
    """Windows whose features and truth are stored.

    Args:
        features: A feature store for each stream.
        truth: The store of density and fixation maps.
        videos: Keys of the videos to take.
        geometry: Which of their windows to take.
        others: The same stores of other views of the videos; training then
            takes a window in one of its views, another one each epoch.
        maps: Of how many of a window's last frames there is truth.

    Attributes:
        failures: What reading raised, see `own_errors`.

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
        self._features = dict(features)
        self._others = dict(others or {})
        self._truth = truth
        self._maps = maps
        self.videos = list(videos)
        self.failures: list[Exception] = []
        self._rows: dict[str, dict[tuple[int, int], int]] = {}
        wanted = [
            (place, target)
            for place, video in enumerate(videos)
            for target in geometry.targets(truth.length(video))
        ]
        for stream, store in self._features.items():
            self._rows[stream] = {
                (place, target): row
                for place, video in enumerate(videos)
                for row, target in enumerate(store.targets(video))
            }
            missing = [w for w in wanted if w not in self._rows[stream]]
            if missing:
                raise ValueError(
                    f"The {stream} features lack {len(missing)} of "
                    f"{len(wanted)} windows, first (video:frame) "
                    f"{label(self.videos, missing[0])}. Make them with "
                    f"`{store.command}`."
                )
        self.windows: Windows = np.array(wanted, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.windows)

    def some(self, count: int) -> "StoredWindows":
        """At most `count` of the windows, at even distances."""
        part = copy.copy(self)
        rows = np.linspace(0, len(self) - 1, min(count, len(self)))
        part.windows = self.windows[rows.astype(int)]
        return part

    def read(
        self, chosen: Windows, view_indices: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features and truth of windows [B, 2]: one batch as above.

        Args:
            chosen: The windows.
            view_indices: Which view of each, int [B], 0 for the whole frame;
                None for that of all.
        """
        pairs = [(int(place), int(target)) for place, target in chosen]
        if view_indices is None:
            view_indices = np.zeros(len(pairs), int)
        seen = (views.WHOLE, *self._others)
        features = {
            stream: np.empty((len(pairs), *store.shape), store.dtype)
            for stream, store in self._features.items()
        }
        several = () if self._maps == 1 else (self._maps,)
        truth = np.empty((len(pairs), *several, *preprocess.MAP_SIZE, 2), "u1")
        for index in np.unique(view_indices):
            places = np.flatnonzero(view_indices == index)
            some = [pairs[place] for place in places]
            view = seen[index]
            truth[places] = self._read_truth(some, view)
            for stream, store in self._others.get(view, self._features).items():
                features[stream][places] = store.read_batch(
                    [
                        (self.videos[p], self._rows[stream][p, t])
                        for p, t in some
                    ]
                )
        return features, truth

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

    def _read_truth(
        self, pairs: Sequence[tuple[int, int]], view: views.View
    ) -> np.ndarray:
        frames = [
            (self.videos[place], frame)
            for place, frame in self.frames(np.array(pairs))
        ]
        found = read_truth(self._truth, frames, view)
        if self._maps == 1:
            return found
        return found.reshape(len(pairs), -1, *found.shape[1:])

    def training(
        self,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        threads: int = 4,
        part: Part = WHOLE,
    ) -> tf.data.Dataset:
        """Batches of the steps `first_step` … `last_step` - 1, in order.

        Args:
            batch_size: Windows in a step, over all parts.
            seed: Seed of the run.
            first_step: First step.
            last_step: The step after the last.
            threads: Batches that are read at a time.
            part: Which part of each batch to read; each of its parts comes as
                a batch of its own.
        """
        rows = part.rows(batch_size)

        def load(number: np.ndarray) -> list[np.ndarray]:
            step, place = divmod(int(number), part.here)
            chosen = self.step_windows(
                batch_size=batch_size, seed=seed, step=step
            )
            return self._flat(
                chosen[rows[place]],
                self.step_views(batch_size=batch_size, seed=seed, step=step)[
                    rows[place]
                ],
            )

        steps_per_epoch(len(self), batch_size)
        numbers = tf.data.Dataset.range(
            first_step * part.here, last_step * part.here
        )
        return self._mapped(numbers, load, batch_size // part.total, threads)

    def step_windows(self, *, batch_size: int, seed: int, step: int) -> Windows:
        """Windows of a training step, int64 [batch_size, 2]."""
        return step_windows(
            self.windows, batch_size=batch_size, seed=seed, step=step
        )

    def step_views(
        self, *, batch_size: int, seed: int, step: int
    ) -> np.ndarray:
        """Which view of each window a step takes: int64 [batch_size]."""
        return step_views(
            len(self),
            num_views=len(self._others),
            batch_size=batch_size,
            seed=seed,
            step=step,
        )

    def in_order(
        self, batch_size: int, threads: int = 2, part: Part = WHOLE
    ) -> tf.data.Dataset:
        """All windows once, in order, with a weight each.

        Yields:
            ((features, truth), weight [rows] float32, place [rows] int64)
            for each part that is asked for. `place` is the window's number
            in `windows`. The last batch is filled up with windows of weight
            0, so that every batch has one shape and no replica is ever left
            empty.
        """
        count = len(self)
        batches = -(-count // batch_size)
        slices = part.rows(batch_size)
        rows = np.arange(batches * batch_size).reshape(batches, batch_size)
        rows = np.concatenate([rows[:, s][:, None] for s in slices], axis=1)
        rows = rows.reshape(-1, batch_size // part.total)
        weights = (rows < count).astype(np.float32)
        places = np.minimum(rows, count - 1)

        def load(number: np.ndarray) -> list[np.ndarray]:
            chosen = places[int(number)]
            return self._flat(self.windows[chosen], None)

        data = self._mapped(
            tf.data.Dataset.range(len(rows)), load, rows.shape[1], threads
        )
        each = tf.data.Dataset.from_tensor_slices((weights, places))
        return tf.data.Dataset.zip((data, each)).map(
            lambda batch, each: (batch, *each)
        )

    def _flat(
        self, chosen: Windows, view_indices: np.ndarray | None
    ) -> list[np.ndarray]:
        features, truth = self.read(chosen, view_indices)
        return [*features.values(), truth]

    def _mapped(
        self,
        numbers: tf.data.Dataset,
        load: Callable[[np.ndarray], list[np.ndarray]],
        batch_size: int,
        threads: int,
    ) -> tf.data.Dataset:
        shapes = [
            (tf.as_dtype(store.dtype), (batch_size, *store.shape))
            for store in self._features.values()
        ]
        several = () if self._maps == 1 else (self._maps,)
        truth = (batch_size, *several, *preprocess.MAP_SIZE, 2)
        shapes.append((tf.uint8, truth))

        def kept(number: np.ndarray) -> list[np.ndarray]:
            with _keeping(self.failures):
                return load(number)

        def graph(number: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            flat = tf.numpy_function(kept, [number], [d for d, _ in shapes])
            for tensor, (_, shape) in zip(flat, shapes, strict=True):
                tensor.set_shape(shape)
            return dict(zip(self._features, flat, strict=False)), flat[-1]

        return numbers.map(
            graph, num_parallel_calls=threads, deterministic=True
        ).prefetch(2)


@contextlib.contextmanager
def own_errors(*read: "StoredWindows | LiveWindows") -> Iterator[None]:
    """Raises what reading these windows raised, such as `stores.StoreError`.

    TensorFlow makes errors of its own of what its threads raise: they have
    the text, but are of other classes, and have a traceback in their message.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for each in read:
            if each.failures:
                raise each.failures[0] from error
        raise


@contextlib.contextmanager
def _keeping(failures: list[Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures.append(error)
        raise


def read_truth(
    truth: stores.TruthStore,
    pairs: Sequence[tuple[dataset.Key, int]],
    view: views.View = views.WHOLE,
) -> np.ndarray:
    """Density and fixation map of (video, frame) pairs: uint8 [B, H, W, 2]."""
    batch = np.empty((len(pairs), *preprocess.MAP_SIZE, 2), np.uint8)
    for row, (video, frame) in enumerate(pairs):
        number = dataset.number_of(video)
        map_ = view.of(number, truth.maps(video, [frame])[0])
        fixated = view.of(number, truth.fixations(video, [frame])[0])
        batch[row, ..., 0] = preprocess.density(map_)
        batch[row, ..., 1] = preprocess.fixations(fixated)
    return batch


def label(videos: Sequence[dataset.Key], window: Sequence[int]) -> str:
    """A window in a message: video:frame."""
    place, target = window
    return f"{dataset.label(videos[place])}:{target}"


def live_order(
    counts: Sequence[tuple[int, int]],
    geometry: windows.Geometry,
    *,
    seed: int,
    epoch: int,
    open_videos: int = OPEN_VIDEOS,
) -> Iterator[tuple[int, int]]:
    """Order of an epoch in which only a few videos are open at a time.

    Args:
        counts: (place, frames) of each video, in the order of reading.
        geometry: Which windows a video has.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        open_videos: Videos that are open at a time.

    Yields:
        (place, target), each window once. The next window comes from one of
        the open videos, chosen with the odds of what each has left; inside a
        video the order is random.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    waiting = iter(counts)
    left: list[tuple[int, list[int]]] = []
    while True:
        while len(left) < open_videos:
            place, frames = next(waiting, (None, 0))
            if place is None:
                break
            targets = rng.permutation(geometry.targets(frames)).tolist()
            if targets:
                left.append((place, targets))
        if not left:
            return
        sizes = np.array([len(targets) for _, targets in left])
        drawn = int(rng.choice(len(left), p=sizes / sizes.sum()))
        place, targets = left[drawn]
        yield place, targets.pop()
        if not targets:
            del left[drawn]


FlowOfVideo = Callable[[dataset.Video], Iterable[np.ndarray]]


class LiveWindows:
    """Windows of frames and flows out of TFDS videos, as they stream.

    Args:
        data: The dataset.
        videos: Keys of the videos to take.
        streams: What a window holds.
        geometry: Which windows to take.
        flows: Flows 1 … T - 1 of a video, float [112, 112, 2] each; needed
            where "flow" is a stream.
        open_videos: Videos held in memory, some 150 KB a frame and stream.
        flip: Mirror half of the windows, others each epoch.
        size: Rows and columns of a frame as the network sees it.
        maps: Of how many of a window's last frames there is truth.

    Attributes:
        failures: What reading raised, see `own_errors`.
    """

    def __init__(
        self,
        data: dataset.Dataset,
        *,
        videos: Sequence[dataset.Key],
        streams: Sequence[str],
        geometry: windows.Geometry,
        flows: FlowOfVideo | None = None,
        open_videos: int = OPEN_VIDEOS,
        flip: bool = False,
        size: tuple[int, int] = parts.SIZE,
        maps: int = 1,
    ) -> None:
        if "flow" in streams and flows is None:
            raise ValueError("Windows of flow need `flows`. Received: None")
        self._data = data
        self._streams = tuple(streams)
        self._geometry = geometry
        self._flows = flows
        self._open_videos = open_videos
        self._flip = flip
        self._size = size
        self._maps = maps
        self.failures: list[Exception] = []
        self.videos = list(videos)
        self._counts = [
            (place, data.frame_counts[video])
            for place, video in enumerate(videos)
        ]
        self._total = windows.num_windows(
            (count for _, count in self._counts), geometry
        )
        self._ordered: tuple[tuple[int, int] | None, Windows] = (
            None,
            np.empty((0, 2), np.int64),
        )

    def __len__(self) -> int:
        return self._total

    def training(
        self,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        part: Part = WHOLE,
    ) -> tf.data.Dataset:
        """Batches of the steps `first_step` … `last_step` - 1, in order.

        `part` is as of `StoredWindows.training`: only videos of those windows
        are decoded.
        """
        in_epoch = steps_per_epoch(len(self), batch_size)
        rows = part.rows(batch_size)

        def examples() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
            step = first_step
            while step < last_step:
                end = min(step - step % in_epoch + in_epoch, last_step)
                chosen: list[tuple[int, int]] = []
                view_indices: list[int] = []
                for each in range(step, end):
                    whole = self.step_windows(
                        batch_size=batch_size, seed=seed, step=each
                    )
                    seen = self.step_views(
                        batch_size=batch_size, seed=seed, step=each
                    )
                    for place in rows:
                        chosen.extend(map(tuple, whole[place].tolist()))
                        view_indices.extend(seen[place].tolist())
                with _keeping(self.failures):
                    yield from self._load(chosen, view_indices)
                step = end

        return (
            tf.data.Dataset.from_generator(
                examples, output_signature=self._signature()
            )
            .batch(batch_size // part.total, drop_remainder=True)
            .prefetch(1)
        )

    def step_windows(self, *, batch_size: int, seed: int, step: int) -> Windows:
        """Windows of a training step, int64 [batch_size, 2]."""
        epoch, place = divmod(step, steps_per_epoch(len(self), batch_size))
        order = self._order(seed, epoch)
        return order[place * batch_size : (place + 1) * batch_size]

    def step_views(
        self, *, batch_size: int, seed: int, step: int
    ) -> np.ndarray:
        """Which windows of a step are mirrored: 0 or 1, int64 [batch_size]."""
        return step_views(
            len(self),
            num_views=int(self._flip),
            batch_size=batch_size,
            seed=seed,
            step=step,
        )

    def _order(self, seed: int, epoch: int) -> Windows:
        if self._ordered[0] != (seed, epoch):
            order = live_order(
                self._counts,
                self._geometry,
                seed=seed,
                epoch=epoch,
                open_videos=self._open_videos,
            )
            self._ordered = (
                (seed, epoch),
                np.array(list(order), np.int64).reshape(-1, 2),
            )
        return self._ordered[1]

    def _signature(self) -> tuple[dict[str, tf.TensorSpec], tf.TensorSpec]:
        length, small = self._geometry.length, parts.half(self._size)
        specs = {
            "rgb": tf.TensorSpec((length, *self._size, 3), tf.uint8),
            "flow": tf.TensorSpec((length, *small, 2), tf.float16),
        }
        several = () if self._maps == 1 else (self._maps,)
        truth = tf.TensorSpec((*several, *preprocess.MAP_SIZE, 2), tf.uint8)
        return {s: specs[s] for s in self._streams}, truth

    def _load(
        self, chosen: Sequence[tuple[int, int]], view_indices: Sequence[int]
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Decode each video when it is first needed; drop it after its last."""
        keys = [self.videos[place] for place, _ in chosen]
        last = {video: row for row, video in enumerate(keys)}
        source = self._data.videos(last)
        opened: dict[dataset.Key, _OpenVideo] = {}
        for row, (video, (_, target)) in enumerate(
            zip(keys, chosen, strict=True)
        ):
            while video not in opened:
                fresh = next(source)
                opened[fresh.number] = _OpenVideo(
                    fresh,
                    self._streams,
                    self._flows,
                    self._geometry,
                    self._size,
                )
            window = opened[video].window(
                self._geometry.window(target), self._maps
            )
            yield mirror(window) if view_indices[row] else window
            if last[video] == row:
                del opened[video]


class _OpenVideo:
    """A video decoded once, at the size of the network."""

    def __init__(
        self,
        video: dataset.Video,
        streams: Sequence[str],
        flows: FlowOfVideo | None,
        geometry: windows.Geometry,
        size: tuple[int, int],
    ) -> None:
        self._video = video
        self._signals: dict[str, np.ndarray] = {}
        lead = geometry.lead(video.num_frames)
        self._lead = len(lead)
        played = video.after(lead)
        if "rgb" in streams:
            self._signals["rgb"] = np.stack(
                [preprocess.squeeze(frame, size) for frame in played.frames()]
            )
        if "flow" in streams and flows is not None:
            rows = [flow.astype(np.float16) for flow in flows(played)]
            # Row k is flow k; there is no flow 0, and nobody reads that row.
            self._signals["flow"] = np.stack([np.zeros_like(rows[0]), *rows])

    def window(
        self, frames: range, maps: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        place = slice(frames.start + self._lead, frames.stop + self._lead)
        truth = np.stack([self._truth(frame) for frame in frames[-maps:]])
        signals = {s: v[place] for s, v in self._signals.items()}
        return signals, truth[0] if maps == 1 else truth

    def _truth(self, frame: int) -> np.ndarray:
        density = decode_map(self._video.maps[frame])
        fixated = decode_map(self._video.fixations[frame])
        return np.stack(
            [preprocess.density(density), preprocess.fixations(fixated)],
            axis=-1,
        )


def mirror(
    window: tuple[dict[str, np.ndarray], np.ndarray],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A window of a live batch, left and right exchanged all over the clip.

    What moved to the right moves to the left then.
    """
    signals, truth = window
    return (
        {s: preprocess.mirror(s, signal) for s, signal in signals.items()},
        truth[..., ::-1, :],
    )


def decode_map(png: bytes) -> np.ndarray:
    """A grey PNG: uint8 [H, W]."""
    image = maps_lib.decode(png)
    if image is None:
        raise dataset.DatasetError(
            "A map of the dataset cannot be decoded; build it again."
        )
    return image
