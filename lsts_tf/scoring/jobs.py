"""Scores of folders of maps, by all cores, a video at a time.

What has been found out of a video is kept in a folder of parts, whole or
absent: its fixations, and the scores of each model. A part's name is a hash of
everything that it follows from, the files' sizes and times among it, so the
same command goes on where it stopped, and nothing old is taken for new. What
lacks a file that could not be read has another name, under which nobody looks
for it later: it is made, and the file named, again.

Two passes: the fixations of all frames first, because the negatives of
shuffled AUC are drawn from all of them; then the scores. Memory holds a chunk
of maps for each core, and the fixations once.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
from typing import Any

import cv2
import numpy as np
import tqdm

from lsts_tf.media import files
from lsts_tf.media import images as maps
from lsts_tf.scoring import annotations as annotations_lib
from lsts_tf.scoring import fixations as fixations_lib
from lsts_tf.scoring import predictions as predictions_lib
from lsts_tf.scoring import scores as scores_lib

CHUNK = 16
CENTRE = "centre prior"
OBSERVERS = "one observer by the others"
# End of the name of a part that lacks what could not be read.
_LACKING = ".lacking.npz"
_PACKAGE = pathlib.Path(__file__).parents[1]
# Part of every hash: a new version of these makes all parts anew.
_SOURCES = (
    "media/images.py",
    "media/video.py",
    "scoring/annotations.py",
    "scoring/density.py",
    "scoring/fixations.py",
    "scoring/jobs.py",
    "scoring/metrics.py",
    "scoring/predictions.py",
    "scoring/scorer.py",
    "scoring/scores.py",
)
# Where the negatives of shuffled AUC come from.
_NEGATIVES = {
    "dhf1k": "ten random frames of the scored videos, seeded",
    "paper": "the next frame of the video (of the last, the one before)",
    "aim": "none",
}
_NOTES = {
    "dhf1k": "",
    "paper": "protocol of the LSTS report: not comparable with other papers",
    "aim": "the AIM 2024 and NTIRE 2026 challenges average over videos: "
    "mean_of_videos",
}
# Which mean is a protocol's figure; see `scores.STATISTICS`.
_STATISTICS = {
    "dhf1k": "mean",
    "paper": "mean",
    "aim": "mean_of_videos",
}
# One thread each, before NumPy and OpenCV are loaded in a worker.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}

Truth = annotations_lib.AnnotatedFiles | annotations_lib.AnnotatedPoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to score; see `scorer.Scorer`.

    Attributes:
        protocol: Name of the protocol.
        seed: Of the draw of other frames.
        negatives: Map for shuffled AUC, or None.
        baseline: Map for information gain, or None.
    """

    protocol: str = "dhf1k"
    seed: int = 0
    negatives: np.ndarray | None = None
    baseline: np.ndarray | None = None

    @property
    def note(self) -> str:
        """What must stand beside scores of this protocol, or ""."""
        return _NOTES[self.protocol]

    @property
    def statistic(self) -> str:
        """Which mean is the figure that is shown, ranked and tested."""
        return _STATISTICS[self.protocol]

    @property
    def other_fixations(self) -> str:
        """Where the negatives of shuffled AUC come from."""
        if self.negatives is not None and self.protocol != "aim":
            return "a fixed map"
        return _NEGATIVES[self.protocol]

    def signature(self) -> list[Any]:
        """What the scores follow from."""
        return [
            [name, array.dtype.str, array.shape, array.tobytes().hex()]
            for name, array in self.arrays().items()
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays, without what is None."""
        return {
            field.name: np.asarray(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }


# === Parts ===


class Parts:
    """Arrays in files that are whole or absent."""

    def __init__(self, folder: pathlib.Path):
        """Makes the folder.

        Args:
            folder: For the parts alone.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._code = _code_digest()

    def path(self, kind: str, *about: Any) -> pathlib.Path:
        """Where the part that follows from `about` lies."""
        text = json.dumps([self._code, kind, about])
        name = hashlib.sha256(text.encode()).hexdigest()[:40]
        return self.folder / f"{kind}-{name}.npz"

    def remove_lacking(self) -> None:
        """Removes the parts that lack something."""
        for path in self.folder.glob(f"*{_LACKING}"):
            path.unlink(missing_ok=True)

    def forget(self, used: Iterable[pathlib.Path]) -> None:
        """Removes all parts but these."""
        keep = {path.name for path in used}
        for path in self.folder.glob("*.npz"):
            if path.name not in keep:
                path.unlink(missing_ok=True)
        # Of runs that were killed.
        for left in self.folder.glob("set-*"):
            shutil.rmtree(left, ignore_errors=True)


@functools.cache
def _code_digest() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((_PACKAGE / name).read_bytes())
    return digest.hexdigest()


def _load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as data:
            return dict(data)
    except FileNotFoundError:
        return None
    except Exception:  # A damaged part is as good as none.
        return None


def _save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _save_found(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    problems: Sequence[str],
) -> None:
    """Saves a part, under another name if it lacks something.

    The worker chooses the name and not the parent, who may be stopped before
    it hears of the problems.
    """
    _save(_lacking(path) if problems else path, arrays)


def _lacking(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(_LACKING)


# === What a worker does ===


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FixationJob:
    video: int
    truth: Truth
    path: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScoreJob:
    video: int
    frames: Sequence[int]
    truth: Truth
    set_folder: pathlib.Path
    # {name: (its clip or None, file of its scores)}
    models: Mapping[str, tuple[predictions_lib.Clip | None, pathlib.Path]]


def _collect(job: _FixationJob) -> list[str]:
    """Writes the fixations of a video; returns what cannot be read."""
    points, sizes, frames, problems = [], [], [], []
    for frame in job.truth.frames:
        try:
            found, size = job.truth.fixations(frame)
        except maps.MapError as error:
            problems.append(str(error))
            continue
        points.append(found)
        sizes.append(size)
        frames.append(frame)
    _save_found(
        job.path,
        {
            "frames": np.array(frames, np.int32),
            "sizes": np.array(sizes, np.int32).reshape(-1, 2),
            "counts": np.array([len(p) for p in points], np.int64),
            "points": np.concatenate(
                [np.zeros((0, 2), np.int16), *points]
            ).astype(np.int16),
        },
        problems,
    )
    return problems


def _prepare() -> None:
    """In a worker, before its first job."""
    # The parent stops them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


@functools.lru_cache(maxsize=1)
def _scorer_of(folder: pathlib.Path) -> Any:
    from lsts_tf.scoring import scorer

    with np.load(folder / "settings.npz", allow_pickle=False) as settings:
        return scorer.Scorer(
            fixations_lib.FixationSet.load(folder),
            protocol=str(settings["protocol"]),
            seed=int(settings["seed"]),
            negatives=settings.get("negatives"),
            baseline=settings.get("baseline"),
        )


def _score(job: _ScoreJob) -> list[str]:
    """Writes the scores of a video; returns what cannot be read.

    Frames that cannot be read are absent from a model's scores.
    """
    scorer = _scorer_of(job.set_folder)
    first = scorer.fixations.rows(job.video)
    rows = dict(
        zip(
            scorer.fixations.frames[first.start : first.stop].tolist(),
            first,
            strict=True,
        )
    )
    streams = {
        name: _maps_of(name, clip, job, scorer, rows)
        for name, (clip, _) in job.models.items()
    }
    found: dict[str, list[dict]] = {name: [] for name in job.models}
    problems: list[str] = []
    shapes: dict[str, tuple] = {}
    for start in range(0, len(job.frames), CHUNK):
        frames = job.frames[start : start + CHUNK]
        numbers = [rows[frame] for frame in frames]
        densities = _densities(job, scorer, frames, numbers, problems)
        for name, stream in streams.items():
            chosen, chunk = [], []
            for i, frame in enumerate(frames):
                map_ = next(stream)
                reason = _unfit(name, frame, map_, shapes, scorer, numbers[i])
                if reason:
                    problems.append(reason)
                elif densities is None or densities[i] is not None:
                    chosen.append(i)
                    chunk.append(map_)
            if chosen:
                found[name].append(
                    _scored(
                        name,
                        job,
                        scorer,
                        [frames[i] for i in chosen],
                        [numbers[i] for i in chosen],
                        chunk,
                        densities and [densities[i] for i in chosen],
                    )
                )
    for name, (_, path) in job.models.items():
        parts = found[name]
        names = ("frame", *scorer.metrics)
        table = {
            key: np.concatenate([part[key] for part in parts])
            if parts
            else np.zeros(0)
            for key in names
        }
        _save_found(path, table, problems)
    return problems


def _maps_of(
    name: str,
    clip: predictions_lib.Clip | None,
    job: _ScoreJob,
    scorer: Any,
    rows: Mapping[int, int],
) -> Iterator[Any]:
    if clip is not None:
        yield from clip.read(job.frames)
        return
    for frame in job.frames:
        yield _prior(scorer.fixations.size(rows[frame]))


@functools.lru_cache(maxsize=8)
def _prior(size: tuple[int, int]) -> np.ndarray:
    # Rounded as `preprocess.to_uint8` does.
    prior = scores_lib.centre_prior(*size) * 255.0
    return np.rint(prior).astype(np.uint8)


def _unfit(
    name: str,
    frame: int,
    map_: Any,
    shapes: dict[str, tuple],
    scorer: Any,
    row: int,
) -> str:
    """Why a map cannot be scored, or ""."""
    if isinstance(map_, maps.MapError):
        return str(map_)
    video = int(scorer.fixations.videos[row])
    where = f"{name}: video {video:04d}, frame {frame + 1:04d}"
    size = scorer.fixations.size(row)
    if map_.shape == size[::-1] != size:
        return (
            f"{where}: rows and columns are swapped: {list(map_.shape)}, the "
            f"ground truth has {list(size)}"
        )
    usual = shapes.setdefault(name, map_.shape)
    if map_.shape != usual:
        return (
            f"{where}: has the size {list(map_.shape)}, the video's first "
            f"map {list(usual)}"
        )
    return ""


def _densities(
    job: _ScoreJob,
    scorer: Any,
    frames: Sequence[int],
    rows: Sequence[int],
    problems: list[str],
) -> list[np.ndarray | None] | None:
    if not scorer.needs_density:
        return None
    found: list[np.ndarray | None] = []
    for frame, row in zip(frames, rows, strict=True):
        density: np.ndarray | None = None
        try:
            density = job.truth.density(frame)
            size = scorer.fixations.size(row)
            if density.shape != size:
                problems.append(
                    f"video {job.video:04d}, frame {frame + 1:04d}: the "
                    f"density map has the size {list(density.shape)}, the "
                    f"fixations {list(size)}"
                )
                density = None
        except maps.MapError as error:
            problems.append(str(error))
        found.append(density)
    return found


def _scored(
    name: str,
    job: _ScoreJob,
    scorer: Any,
    frames: Sequence[int],
    rows: Sequence[int],
    chunk: Sequence[np.ndarray],
    densities: Sequence[Any] | None,
) -> dict[str, np.ndarray]:
    if name != OBSERVERS:
        values = scorer.score(rows, chunk, densities)
    else:
        one_by_one = [
            _by_the_others(scorer, row, job.truth, frame)
            for frame, row in zip(frames, rows, strict=True)
        ]
        values = {
            key: np.array([each[key] for each in one_by_one])
            for key in scorer.metrics
        }
    return {"frame": np.array(frames, np.int64), **values}


def _by_the_others(
    scorer: Any, row: int, truth: Any, frame: int
) -> dict[str, float]:
    """Mean over observers: the others' density against one's fixations."""
    points = truth.by_observer(frame)
    if len(points) < 2:
        return dict.fromkeys(scorer.metrics, np.nan)
    rest = [
        np.unique(np.concatenate(points[:i] + points[i + 1 :]), axis=0)
        for i in range(len(points))
    ]
    values = scorer.score(
        [row] * len(points),
        [truth.density_of(others) for others in rest],
        [truth.density_of(own) for own in points]
        if scorer.needs_density
        else None,
        points,
    )
    return {
        name: float(row[np.isfinite(row)].mean())
        if np.isfinite(row).any()
        else np.nan
        for name, row in values.items()
    }


# === All videos ===


class Evaluation:
    """Scores of some models on the same frames.

    Attributes:
        problems: What could not be read, so far.
    """

    def __init__(
        self,
        truths: Mapping[int, Truth],
        settings: Settings,
        parts: Parts,
        *,
        workers: int,
        allow_missing: bool = False,
    ):
        """Prepares; starts no process.

        Args:
            truths: {video: its annotation}.
            settings: How to score.
            parts: Where what is found is kept.
            workers: Number of processes; 1 works in this one.
            allow_missing: Whether to go on without what cannot be read.
        """
        self._truths = truths
        self._settings = settings
        self._parts = parts
        self._workers = workers
        self._allow_missing = allow_missing
        self._used: list[pathlib.Path] = []
        self._incomplete: set[pathlib.Path] = set()
        self.problems: list[str] = []

    def run(
        self,
        models: Mapping[str, Mapping[int, predictions_lib.Clip]],
        frames: Mapping[int, Sequence[int]],
    ) -> dict[str, scores_lib.Scores]:
        """Scores of each model, and of the rows beside them.

        Args:
            models: {name: {video: clip}}.
            frames: {video: frames to score}; all models have them.

        Returns:
            {name: scores} of the frames that could be read of all. Nothing if
            there are `problems` that are not allowed.
        """
        signatures = {
            video: truth.signature() for video, truth in self._truths.items()
        }
        with contextlib.ExitStack() as stack:
            stack.callback(self._parts.remove_lacking)
            work = _Work(stack, self._workers)
            found = self._collect(work, signatures)
            if self.problems and not self._allow_missing:
                return {}
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="set-", dir=self._parts.folder
                )
            )
            self._save_set(found, pathlib.Path(folder))
            truth = hashlib.sha256(
                json.dumps(
                    [list(signatures.items()), sorted(self.problems)]
                ).encode()
            ).hexdigest()
            result = self._score(
                work,
                models,
                _readable(frames, found),
                truth,
                pathlib.Path(folder),
            )
            if self.problems and not self._allow_missing:
                return {}
            return result

    def forget_others(self) -> None:
        """Removes the parts that this evaluation did not use."""
        self._parts.forget(self._used)

    def _reload(self, path: pathlib.Path) -> dict[str, np.ndarray]:
        return _reload(_lacking(path) if path in self._incomplete else path)

    def _collect(self, work: "_Work", signatures: Mapping[int, Any]) -> dict:
        jobs = [
            _FixationJob(
                video=video,
                truth=truth,
                path=self._parts.path("fixations", signatures[video]),
            )
            for video, truth in self._truths.items()
        ]
        self._used += [job.path for job in jobs]
        missing = [job for job in jobs if not job.path.exists()]
        for job, problems in work.done("fixations", _collect, missing):
            self.problems += problems
            if problems:
                self._incomplete.add(job.path)
        return {job.video: self._reload(job.path) for job in jobs}

    def _save_set(self, found: Mapping[int, Any], folder: pathlib.Path) -> None:
        parts = [found[video] for video in sorted(found)]
        counts = [len(part["frames"]) for part in parts]
        points = np.concatenate([part["counts"] for part in parts])
        fixations_lib.FixationSet(
            videos=np.repeat(np.array(sorted(found), np.int32), counts),
            frames=np.concatenate([part["frames"] for part in parts]),
            sizes=np.concatenate([part["sizes"] for part in parts]),
            starts=np.cumsum([0, *points], dtype=np.int64),
            points=np.concatenate([part["points"] for part in parts]),
        ).save(folder)
        _save(folder / "settings.npz", self._settings.arrays())

    def _score(
        self,
        work: "_Work",
        models: Mapping[str, Mapping[int, predictions_lib.Clip]],
        frames: Mapping[int, Sequence[int]],
        truth: str,
        folder: pathlib.Path,
    ) -> dict[str, scores_lib.Scores]:
        names = [*models, CENTRE]
        if all(t.observers for t in self._truths.values()):
            names.append(OBSERVERS)
        about = [truth, self._settings.signature()]
        files: dict[str, dict[int, pathlib.Path]] = {n: {} for n in names}
        jobs = []
        for video, wanted in frames.items():
            missing = {}
            for name in names:
                clip = models[name][video] if name in models else None
                signature = clip.signature() if clip else name
                path = self._parts.path(
                    "scores", *about, video, wanted, signature
                )
                files[name][video] = path
                if not path.exists():
                    missing[name] = (clip, path)
            if missing:
                jobs.append(
                    _ScoreJob(
                        video=video,
                        frames=wanted,
                        truth=self._truths[video],
                        set_folder=folder,
                        models=missing,
                    )
                )
        self._used += [p for of in files.values() for p in of.values()]
        for job, problems in work.done("scoring", _score, jobs):
            self.problems += problems
            if problems:
                self._incomplete |= {path for _, path in job.models.values()}
        return _common(
            {
                name: {v: self._reload(path) for v, path in of.items()}
                for name, of in files.items()
            }
        )


class _Work:
    """Jobs done by some processes, which live as long as `stack`."""

    def __init__(self, stack: contextlib.ExitStack, workers: int):
        self._stack = stack
        self._workers = workers
        self._pool: futures.ProcessPoolExecutor | None = None

    def done(
        self,
        title: str,
        function: Callable[[Any], list[str]],
        jobs: Sequence[Any],
    ) -> Iterator[tuple[Any, list[str]]]:
        """Jobs and what they return, as they come."""
        if not jobs:
            return
        with tqdm.tqdm(
            total=sum(map(_length, jobs)), desc=title, unit="frame"
        ) as bar:
            for job, result in self._results(function, jobs):
                yield job, result
                bar.update(_length(job))

    def _results(
        self, function: Callable[[Any], list[str]], jobs: Sequence[Any]
    ) -> Iterator[tuple[Any, list[str]]]:
        if self._workers == 1 or len(jobs) == 1:
            for job in jobs:
                yield job, function(job)
            return
        if self._pool is None:
            self._pool = self._start()
        # The longest first, so that all cores end together.
        order = sorted(jobs, key=_length, reverse=True)
        running = {self._pool.submit(function, job): job for job in order}
        for future in futures.as_completed(running):
            yield running[future], future.result()

    def _start(self) -> futures.ProcessPoolExecutor:
        self._stack.enter_context(_environment(_WORKER_ENVIRONMENT))
        pool = futures.ProcessPoolExecutor(
            self._workers, mp_context=_context(), initializer=_prepare
        )
        self._stack.callback(pool.shutdown, cancel_futures=True)
        return pool


def _length(job: _FixationJob | _ScoreJob) -> int:
    """Number of its frames."""
    if isinstance(job, _ScoreJob):
        return len(job.frames)
    return len(job.truth.frames)


def _context() -> Any:
    """Processes that fork from a clean one, which has imported all once.

    TensorFlow comes with the metrics and takes seconds to import, and a
    process that has used it must not be forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["lsts_tf.scoring.scorer", "lsts_tf.scoring.jobs"]
    )
    return context


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _readable(
    frames: Mapping[int, Sequence[int]], found: Mapping[int, Any]
) -> dict[int, list[int]]:
    """Those of each video's frames whose fixations could be read."""
    # Once a video: a set for each frame would be quadratic.
    read = {
        video: set(part["frames"].tolist()) for video, part in found.items()
    }
    return {
        video: [frame for frame in of if frame in read[video]]
        for video, of in frames.items()
    }


def _reload(path: pathlib.Path) -> dict[str, np.ndarray]:
    found = _load(path)
    if found is None:
        path.unlink(missing_ok=True)
        raise OSError(
            f"{path} is damaged and was removed. Start the same command again."
        )
    return found


def _common(
    tables: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
) -> dict[str, scores_lib.Scores]:
    """Scores of the frames that all models have."""
    videos = sorted(next(iter(tables.values())))
    result: dict[str, list[scores_lib.Scores]] = {name: [] for name in tables}
    for video in videos:
        frames = functools.reduce(
            np.intersect1d, [of[video]["frame"] for of in tables.values()]
        )
        for name, of in tables.items():
            table = of[video]
            at = np.isin(table["frame"], frames)
            result[name].append(
                scores_lib.Scores(
                    video=np.full(len(frames), video),
                    frame=table["frame"][at].astype(np.int64),
                    values={
                        key: values[at]
                        for key, values in table.items()
                        if key != "frame"
                    },
                )
            )
    return {
        name: scores_lib.Scores.joined(parts) for name, parts in result.items()
    }
