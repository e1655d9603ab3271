"""Scores of folders of maps, by all cores, a video at a time.

There are two passes: the fixations of all frames first, because the negatives
of shuffled AUC are drawn from all of them; then the scores. Memory holds a
frame and the fixations for each process.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pathlib
import signal
from typing import Any

from absl import logging
import cv2
import numpy as np
import pandas as pd
import tqdm

from lsts_tf.media import files
from lsts_tf.media import images
from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import predictions as predictions_lib
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import summary
from lsts_tf.scoring import truth as truth_lib

CENTRE = summary.CENTRE_TITLE
OBSERVERS = "one observer by the others"
# How many lines of each kind of problem are shown.
_SHOWN = 40

Truth = truth_lib.AnnotatedFiles | truth_lib.AnnotatedPoints
Problems = dict[str, list[str]]


class FilesError(ValueError):
    """Files are missing, too many, or cannot be read: up to 40 of a kind.

    Where there are more, they are all in a file, which the message names.
    """


def evaluate(
    models: Mapping[str, str | os.PathLike],
    annotations: truth_lib.Folder | truth_lib.Points,
    *,
    scoring: scorer_lib.Settings,
    listed: pathlib.Path,
    videos: frozenset[int] = frozenset(),
    first_frames: int = 78,
    allow_missing: bool = False,
    workers: int = 1,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Score folders of maps.

    Args:
        models: {name: folder}.
        annotations: Where people looked.
        scoring: How to score.
        listed: File for the names of all files that something is wrong with,
            if they are too many for a message. An older one is removed.
        videos: Those to score; all that are annotated, if none is named.
        first_frames: How many frames of each video are also scored apart.
        allow_missing: Whether to go on with the frames that all models have
            and that can be read.
        workers: Number of processes; 1 works in this one.

    Returns:
        What `scores.json` holds, and {name: scores of each frame}.

    Raises:
        FilesError: See there.
        images.MapError: A folder is missing, or holds no maps.
    """
    folders = {
        name: predictions_lib.Predictions(folder, videos)
        for name, folder in models.items()
    }
    listed.unlink(missing_ok=True)
    frames, problems = _matched(folders, annotations)
    _refuse_or_warn(problems, problems, allow_missing, listed)
    if not frames:
        raise FilesError("No frame has both a map and an annotation.")
    unreadable: list[str] = []
    rows = _fixations(annotations.clips, workers, unreadable)
    readable = {(video, frame) for video, frame, *_ in rows}
    scores: dict[str, pd.DataFrame] = {}
    if allow_missing or not unreadable:
        jobs = [
            _Job(
                video=video,
                frames=[n for n in of if (video, n) in readable],
                truth=annotations.clips[video],
                clips={name: f.clips[video] for name, f in folders.items()},
            )
            for video, of in frames.items()
        ]
        scorer = scorer_lib.Scorer(truth_lib.FixationSet(rows), scoring)
        scores = _scores(jobs, scorer, workers, unreadable)
    problems["unreadable"] += unreadable
    new = {"unreadable": unreadable}
    _refuse_or_warn(new, problems, allow_missing, listed)
    if not scores:
        raise FilesError("No frame could be read.")
    centre = scores.pop(CENTRE)
    observers = scores.pop(OBSERVERS, None)
    annotated = sum(len(clip.frames) for clip in annotations.clips.values())
    reports = {
        name: summary.report(
            table,
            centre,
            first_frames=first_frames,
            scoring=scoring,
            observers=observers,
            about={
                "predictions": str(folders[name].folder),
                "ground_truth": annotations.describe(),
                "missing": {
                    "allowed": allow_missing,
                    **{kind: len(lines) for kind, lines in problems.items()},
                    "frames": annotated - len(table),
                },
            },
        )
        for name, table in scores.items()
    }
    if len(reports) == 1:
        return next(iter(reports.values())), scores
    comparison = summary.compare(
        scores, seed=scoring.seed, statistic=scoring.statistic
    )
    best = next(iter(comparison.values()))["ranking"][0]
    return {
        **reports[best],
        "best": best,
        "models": reports,
        "comparison": comparison,
    }, scores


# === Which files belong together ===


def _matched(
    folders: Mapping[str, predictions_lib.Predictions],
    annotations: truth_lib.Folder | truth_lib.Points,
) -> tuple[dict[int, list[int]], Problems]:
    """Frames that all models have, and what is wrong with the files."""
    problems: Problems = {
        "missing": [],
        "extra": [],
        "unreadable": [],
        "clashes": list(annotations.clashes),
        "annotations": list(annotations.problems),
    }
    frames = {v: list(clip.frames) for v, clip in annotations.clips.items()}
    for predictions in folders.values():
        problems["extra"] += predictions.strays
        problems["clashes"] += predictions.clashes
        problems["unreadable"] += predictions.unreadable
        root = predictions.folder
        problems["extra"] += [
            f"{root}: video {video:04d} is not annotated"
            for video in sorted(predictions.clips.keys() - frames.keys())
        ]
        for video, clip in annotations.clips.items():
            where = f"{root}: video {video:04d}"
            has = predictions.clips.get(video)
            if has is None:
                problems["missing"].append(where)
                frames[video] = []
                continue
            wanted, given = set(clip.frames), set(has.frames)
            hint = ""
            if {frame + 1 for frame in given} == wanted:
                hint = " (numbered from 0? The first frame's file is 0001)"
            for kind, some in (
                ("missing", wanted - given),
                ("extra", given - wanted),
            ):
                if some:
                    problems[kind].append(f"{where}: {_ranges(some)}{hint}")
            frames[video] = [f for f in frames[video] if f in given]
    return {video: of for video, of in frames.items() if of}, problems


def _ranges(frames: set[int]) -> str:
    """Frames as in file names: "frames 1-78, 100"."""
    numbers = np.array(sorted(frames)) + 1
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
    return f"frames {', '.join(texts)}"


def _refuse_or_warn(
    new: Problems, problems: Problems, allowed: bool, listed: pathlib.Path
) -> None:
    """Stop, or warn that it goes on without some files.

    Args:
        new: What is said.
        problems: All so far, which are written down if they are many.
        allowed: Whether to go on.
        listed: The file for them.
    """
    if any(len(found) > _SHOWN for found in problems.values()):
        listed.parent.mkdir(parents=True, exist_ok=True)
        lines = _lines(problems, max(map(len, problems.values())), listed)
        files.write_text(listed, "\n".join([*lines, ""]))
    if not any(new.values()):
        return
    text = "\n".join(_lines(new, _SHOWN, listed))
    if new.get("clashes"):
        raise FilesError(f"Two files have the same number; remove one.\n{text}")
    if not allowed:
        raise FilesError(
            f"Maps and annotation do not match.\n{text}\nName the videos by "
            "--videos, or go on without these files by --allow_missing."
        )
    logging.warning("Going on without some files.\n%s", text)


def _lines(
    problems: Problems, most: int, listed: pathlib.Path
) -> Iterator[str]:
    for kind, found in problems.items():
        if found:
            yield f"{kind} ({len(found)}):"
        yield from (f"  {line}" for line in found[:most])
        if len(found) > most:
            yield (f"  ... and {len(found) - most} more, which are in {listed}")


# === What a process does ===


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """A video to score.

    Attributes:
        video: Its number.
        frames: Those to score.
        truth: Its annotation.
        clips: {model: its maps}.
    """

    video: int
    frames: Sequence[int]
    truth: Truth
    clips: Mapping[str, predictions_lib.Clip]


def _collect(job: _Job) -> tuple[list[tuple], list[str]]:
    """Rows of `truth.FixationSet`, and what cannot be read."""
    rows, problems = [], []
    for frame in job.frames:
        try:
            rows.append((job.video, frame, *job.truth.fixations(frame)))
        except images.MapError as error:
            problems.append(str(error))
    return rows, problems


# What scores in this process; see `_prepare`.
_scorer: scorer_lib.Scorer


def _prepare(scorer: scorer_lib.Scorer | None, is_worker: bool) -> None:
    """Before the first job of a process."""
    global _scorer  # noqa: PLW0603 - sent once, and not with each job
    if scorer is not None:
        _scorer = scorer
    if is_worker:
        # The parent stops them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cv2.setNumThreads(1)


def _score(job: _Job) -> tuple[pd.DataFrame, list[str]]:
    """Scores with a column "model", and what cannot be read.

    A frame is scored if its density and the maps of all models can be read.
    """
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    streams = {name: clip.read(job.frames) for name, clip in job.clips.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for frame in job.frames:
        row = _scorer.fixations.row(job.video, frame)
        size = _scorer.fixations.size(row)
        where = f"video {job.video:04d}, frame {frame + 1:04d}"
        given: dict[str, Any] = {
            name: next(stream) for name, stream in streams.items()
        }
        reasons = [
            _unfit(f"{name}: {where}", map_, size, shapes.get(name))
            for name, map_ in given.items()
        ]
        density = None
        if _scorer.needs_density:
            density, reason = _density(job.truth, frame, size, where)
            reasons.append(reason)
        for name, map_ in given.items():
            if isinstance(map_, np.ndarray):
                shapes.setdefault(name, map_.shape)
        if any(reasons):
            problems += filter(None, reasons)
            continue
        given[CENTRE] = _prior(size)
        scores = {
            name: _scorer.score(row, map_, density)
            for name, map_ in given.items()
        }
        if job.truth.observers:
            scores[OBSERVERS] = _by_the_others(row, job.truth, frame)
        lines += [
            {"model": name, "video": job.video, "frame": frame, **values}
            for name, values in scores.items()
        ]
    return pd.DataFrame(lines), problems


@functools.lru_cache(maxsize=8)
def _prior(size: tuple[int, int]) -> np.ndarray:
    # Rounded as `images.to_uint8` does.
    return np.rint(density_lib.centre_prior(*size) * 255.0).astype(np.uint8)


def _unfit(where: str, map_: Any, size: tuple[int, int], usual: Any) -> str:
    """Why a map cannot be scored, or ""."""
    if isinstance(map_, images.MapError):
        return str(map_)
    if map_.shape == size[::-1] != size:
        return (
            f"{where}: rows and columns are swapped: {list(map_.shape)}, the "
            f"ground truth has {list(size)}"
        )
    if map_.shape != (usual or map_.shape):
        return (
            f"{where}: has the size {list(map_.shape)}, the video's first "
            f"map {list(usual)}"
        )
    return ""


def _density(
    truth: Truth, frame: int, size: tuple[int, int], where: str
) -> tuple[np.ndarray | None, str]:
    """A density map, or why there is none."""
    try:
        density = truth.density(frame)
    except images.MapError as error:
        return None, str(error)
    if density.shape != size:
        return None, (
            f"{where}: the density map has the size {list(density.shape)}, "
            f"the fixations {list(size)}"
        )
    return density, ""


def _by_the_others(row: int, truth: Any, frame: int) -> dict[str, float]:
    """Mean over observers: the others' density against one's fixations."""
    points = truth.by_observer(frame)
    if len(points) < 2:
        return dict.fromkeys(_scorer.metrics, np.nan)
    each = [
        _scorer.score(
            row,
            truth.density_of(np.concatenate(points[:i] + points[i + 1 :])),
            truth.density_of(own) if _scorer.needs_density else None,
            own,
        )
        for i, own in enumerate(points)
    ]
    means = pd.DataFrame(each).mean()
    return {name: float(means[name]) for name in _scorer.metrics}


# === All videos ===


def _fixations(
    clips: Mapping[int, Truth], workers: int, problems: list[str]
) -> list[tuple]:
    """Rows of `truth.FixationSet`; what cannot be read goes to `problems`."""
    jobs = [
        _Job(video=video, frames=clip.frames, truth=clip, clips={})
        for video, clip in clips.items()
    ]
    rows = []
    for found, reasons in _results("fixations", _collect, jobs, workers):
        rows += found
        problems += reasons
    return rows


def _scores(
    jobs: Sequence[_Job],
    scorer: scorer_lib.Scorer,
    workers: int,
    problems: list[str],
) -> dict[str, pd.DataFrame]:
    """{name: scores}; what cannot be read goes to `problems`."""
    tables = []
    for found, reasons in _results("scoring", _score, jobs, workers, scorer):
        tables.append(found)
        problems += reasons
    table = pd.concat(tables)
    if not len(table):
        return {}
    table = table.sort_values(["video", "frame"], kind="stable")
    return {
        name: of.drop(columns="model").reset_index(drop=True)
        for name, of in table.groupby("model", sort=False)
    }


def _results(
    title: str,
    function: Callable[[_Job], tuple[Any, list[str]]],
    jobs: Iterable[_Job],
    workers: int,
    scorer: scorer_lib.Scorer | None = None,
) -> Iterator[tuple[Any, list[str]]]:
    """What a function returns for each job, in processes that have `scorer`."""
    # The longest first, so that all cores end together.
    jobs = sorted(jobs, key=lambda job: len(job.frames), reverse=True)
    results: Iterable[tuple[Any, list[str]]]
    with (
        contextlib.ExitStack() as stack,
        tqdm.tqdm(
            total=sum(len(job.frames) for job in jobs),
            desc=title,
            unit="frame",
        ) as bar,
    ):
        if workers == 1 or len(jobs) == 1:
            _prepare(scorer, is_worker=False)
            results = map(function, jobs)
        else:
            pool = futures.ProcessPoolExecutor(
                min(workers, len(jobs)),
                mp_context=_context(),
                initializer=_prepare,
                initargs=(scorer, True),
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(function, jobs)
        try:
            for job, result in zip(jobs, results, strict=True):
                yield result
                bar.update(len(job.frames))
        except process.BrokenProcessPool as error:
            raise RuntimeError(
                "A process was killed, perhaps because the memory was used "
                f"up. Received: --workers={workers}. Give fewer."
            ) from error


def _context() -> Any:
    """Processes that fork from a clean one, which has imported all once."""
    # One thread each, which their NumPy reads when it is loaded.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
