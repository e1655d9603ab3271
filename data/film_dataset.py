"""What AViMoS, NTIRE 2026 and CrowdSAL share: films, and films of gaze.

Their layout is in `lsts_tf.media.msu_files`. What an example holds:

* `frames`: the film's frames, shrunk by area to fit 640x360, with their aspect
  and even sides.
* `maps`: the film of where people looked at that size; each frame is stretched
  to 0 … 255 by its own extremes, as the challenges' program does.
* `fixations`: how many fixations fall on each pixel, 0 … 255.

A build takes many hours, so it can be broken off: several processes write one
file a video, whole or not at all, into a hidden folder beside the dataset. The
same command goes on with those that are missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import pathlib
import shutil
import threading
from typing import Any, ClassVar

from absl import logging
import cv2
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm

import gaze_dataset
from lsts_tf.media import files, msu_files

# (width, height) that frames fit.
WITHIN = (640, 360)
PROCESSES = len(os.sched_getaffinity(0))
# TensorFlow has threads, which a fork would not have.
START = "spawn"

INSTRUCTIONS = """
    The files are at https://huggingface.co/datasets/ANDRYHA/{hub},
    for anybody. Put them into one folder, packed or unpacked:
{layout}
    The manual folder is the one given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`. Any part of the films will do. A build that
    is broken off goes on where it was.
    """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A video to write.

    Attributes:
        clip: Its files.
        annotated: Whether it is known where people looked.
        path: The file to write, without the number of its frames.
        within: (width, height) that frames fit.
    """

    clip: msu_files.Clip
    annotated: bool
    path: pathlib.Path
    within: tuple[int, int]


class FilmBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Reads such a dataset, unpacked or out of its archives.

    Args:
        within: (width, height) that frames fit.
        **kwargs: Of TFDS' builders.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": (
            "Whole videos within 640x360: frames as JPEG of quality 95, maps "
            "as PNG of 8 bits, fixations as counts."
        ),
    }

    # On GitHub, and on Hugging Face.
    REPOSITORY = HUB = ""
    LAYOUT = """
        <manual_dir>/TrainTestSplit.json
        <manual_dir>/Videos.zip
        <manual_dir>/SaliencyTrain.zip, SaliencyTest.zip
        <manual_dir>/FixationsTrain.zip, FixationsTest.zip
"""
    # Numbers of each split, where no `TrainTestSplit.json` tells the names.
    SPLITS: ClassVar[Mapping[str, Sequence[int]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format(
            hub=cls.HUB, layout=cls.LAYOUT
        )

    def __init__(
        self, *, within: tuple[int, int] = WITHIN, **kwargs: Any
    ) -> None:
        self._within = within
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=gaze_dataset.features(name=tfds.features.Text()),
            homepage=f"https://github.com/{self.REPOSITORY}",
            license="CC BY (each video's own is in the distribution)",
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Any]]:
        raise NotImplementedError("Shards are written by several processes.")

    def download_and_prepare(self, **kwargs: Any) -> None:
        """Builds the dataset, or goes on with a build that was broken off."""
        target = pathlib.Path(self.data_dir)
        width, height = self._within
        self._kept = target.parent / f".{target.name}-{width}x{height}"
        super().download_and_prepare(**kwargs)
        shutil.rmtree(self._kept, ignore_errors=True)

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: Any = None,
    ) -> None:
        del download_config  # Nothing of it applies to shards.
        with files.alone(self._kept):
            own = pathlib.Path(self.data_dir)
            # Left by killed builds: links to what is kept.
            for folder in own.parent.glob(f"incomplete.*_{self.version}"):
                if folder != own:
                    shutil.rmtree(folder)
            self._build(pathlib.Path(os.fspath(dl_manager.manual_dir)))

    def _build(self, manual_dir: pathlib.Path) -> None:
        splits = {
            split: [self._job(split, clip, known) for clip in clips]
            for split, clips, known in self._splits(msu_files.find(manual_dir))
        }
        every = [job for jobs in splits.values() for job in jobs]
        if not every:
            raise ValueError(
                "There must be at least one film, such as Videos/NAME.mp4. "
                f"Received: none in {manual_dir}."
            )
        done = _written(every)
        _fill([job for job in every if job not in done])
        done = _written(every)
        infos = [
            self._finish(split, [done[job] for job in jobs])
            for split, jobs in splits.items()
        ]
        self.info.set_splits(tfds.core.SplitDict(infos))

    def _splits(
        self, found: msu_files.Files
    ) -> Iterator[tuple[str, list[msu_files.Clip], bool]]:
        """Each split that has films: its clips, and whether gaze is known.

        Any part of the films will do. A split whose gaze is not there at all is
        built without; otherwise each of its films needs its own.
        """
        names = found.splits or {
            split: [c.name for c in found.clips.values() if c.number in numbers]
            for split, numbers in self.SPLITS.items()
        }
        films = {n: clip for n, clip in found.clips.items() if clip.videos}
        listed = {name for of in names.values() for name in of}
        if strays := sorted(films.keys() - listed):
            raise ValueError(
                "Each film must belong to a split "
                f"({', '.join(names) or 'TrainTestSplit.json is missing'}). "
                f"Received: splits without {files.named(strays)}."
            )
        for split, of in names.items():
            wanted = set(of)
            clips = [clip for name, clip in films.items() if name in wanted]
            known = [c for c in clips if c.saliency and c.fixations]
            if known and len(known) < len(clips):
                lacking = next(c for c in clips if c not in known)
                raise ValueError(
                    f"Video {lacking.name} needs its saliency film and its "
                    f"fixations. Received: {lacking.saliency} and "
                    f"{lacking.fixations}; {len(known)} of {len(clips)} films "
                    f"of {split} have both. Unpack the archives again, or "
                    "remove the film."
                )
            if clips:
                yield split, clips, bool(known)

    def _job(self, split: str, clip: msu_files.Clip, known: bool) -> _Job:
        """What a video is made from tells its file from an older one."""
        sources = [clip.videos, clip.saliency, clip.fixations]
        about = [
            (str(file), found.st_size, found.st_mtime_ns)
            for file in sources
            if file is not None
            for found in [pathlib.Path(file.path).stat()]
        ]
        digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        path = self._kept / f"{split}-{clip.number:05d}-{digest}"
        return _Job(clip=clip, annotated=known, path=path, within=self._within)

    def _finish(self, split: str, written: Sequence[pathlib.Path]) -> Any:
        """Links files into the dataset's folder.

        Their names are SPLIT-NUMBER-DIGEST.FRAMES.
        """
        template = self._get_filename_template(split_name=split)
        frames, size = {}, 0
        for index, source in enumerate(written):
            target = template.sharded_filepath(
                shard_index=index, num_shards=len(written)
            )
            _link(source, pathlib.Path(target))
            number = int(source.stem.split("-")[-2])
            frames[number] = int(source.suffix[1:])
            size += source.stat().st_size
        # So that nobody has to read all films to know how long they are.
        self.info.metadata.setdefault("num_frames", {})[split] = frames
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[1] * len(written),
            num_bytes=size,
            filename_template=template,
        )


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # A file system without links.
        shutil.copyfile(source, target)


# === Several processes ===


def _written(jobs: Sequence[_Job]) -> dict[_Job, pathlib.Path]:
    """Files of videos that are there."""
    found = {path.stem: path for path in jobs[0].path.parent.glob("[!.]*.*")}
    return {job: found[job.path.name] for job in jobs if job.path.name in found}


def _fill(jobs: Sequence[_Job]) -> None:
    """Writes videos, several at a time."""
    bar = tqdm.tqdm(total=len(jobs), desc="films", unit="film")
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        if PROCESSES == 1 or len(jobs) < 2:
            done = map(_write, jobs)
        else:
            pool = futures.ProcessPoolExecutor(
                min(PROCESSES, len(jobs)),
                mp_context=multiprocessing.get_context(START),
                initializer=_end_with_parent,
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            done = pool.map(_write, jobs)
        for name in done:
            logging.info("%s is written.", name)
            bar.update()


def _end_with_parent() -> None:
    """In a process: it ends when the build is killed."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(job: _Job) -> str:
    """Writes a video's file, whole or not at all; returns its name."""
    try:
        example = _read(job)
    except ValueError as error:
        raise ValueError(f"Video {job.clip.name}: {error}") from error
    features = gaze_dataset.features(name=tfds.features.Text())
    serialized = features.serialize_example(example)
    # In one order, so that the same films make the same bytes.
    proto = tf.train.Example.FromString(serialized)
    path = job.path.with_name(f"{job.path.name}.{example['num_frames']}")
    with (
        files.replacing(path) as temporary,
        tf.io.TFRecordWriter(str(temporary)) as writer,
    ):
        writer.write(proto.SerializeToString(deterministic=True))
    return job.clip.name


# === One video ===


def _read(job: _Job) -> gaze_dataset.Example:
    """An example of all that a clip's files hold.

    Raises:
        ValueError: A file is damaged, or frames, maps and fixations differ in
            number; it names the counts.
    """
    clip = job.clip
    film = clip.videos.film()
    size = fitted(film.size, job.within)
    frames = [gaze_dataset.jpeg(_shrunk(frame, size)) for frame in film]
    maps, fixations = [], []
    if job.annotated:
        looked_at = clip.saliency.film(grey=True)
        maps = [
            gaze_dataset.png(_levels(_shrunk(map_, size))) for map_ in looked_at
        ]
        points = clip.points()
        if not len(frames) == len(maps) == len(points):
            raise ValueError(
                "there must be a map and a list of fixations for each frame. "
                f"Received: {len(frames)} frames, {len(maps)} maps, fixations "
                f"of {len(points)} frames. Download its files again."
            )
        fixations = [
            gaze_dataset.png(counts(seen, looked_at.size, size))
            for seen in points
        ]
    return gaze_dataset.example(
        clip.number, film.fps, frames, maps, fixations, name=clip.name
    )


def fitted(size: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    """The largest even (width, height) that fits, of a film's aspect.

    A small film is not enlarged.
    """
    scale = min(1.0, within[0] / size[0], within[1] / size[1])
    width, height = (max(2, 2 * int(side * scale / 2 + 1e-6)) for side in size)
    return width, height


def counts(
    points: np.ndarray, size: tuple[int, int], target: tuple[int, int]
) -> np.ndarray:
    """How many fixations fall on each pixel, at another size.

    Args:
        points: Integers [N, 2], (row, column).
        size: (width, height) that they lie in.
        target: Wanted (width, height).

    Returns:
        uint8 [height, width]; more than 255 count as 255.

    Raises:
        ValueError: One lies outside.
    """
    shape, wanted = np.array(size[::-1]), np.array(target[::-1])
    if len(points) and not ((points >= 0) & (points < shape)).all():
        raise ValueError(
            f"fixations must lie inside {size[0]}x{size[1]}. Received: (row, "
            f"column) from {points.min(axis=0)} to {points.max(axis=0)}."
        )
    # Each to the pixel that its centre falls into, in integers.
    moved = (2 * points + 1) * wanted // (2 * shape)
    found = np.zeros(wanted, np.int64)
    np.add.at(found, tuple(moved.T), 1)
    return np.minimum(found, 255).astype(np.uint8)


def _shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _levels(map_: np.ndarray) -> np.ndarray:
    """A map stretched to 0 … 255; a constant one is 0."""
    low, high = int(map_.min()), int(map_.max())
    scale = 255.0 / max(high - low, 1)
    return np.rint((map_.astype(np.float32) - low) * scale).astype(np.uint8)
