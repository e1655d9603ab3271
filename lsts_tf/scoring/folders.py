"""Scores of folders of maps, by all cores, a video at a time.

There are two passes: the fixations of all frames first, because the negatives
of shuffled AUC are drawn from all of them; then the scores. Memory holds a
frame and the fixations for each process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import multiprocessing
import os
import pathlib
import signal
from typing import Any, NamedTuple

from absl import logging
import cv2
import numpy as np
import pandas as pd
import tqdm

from lsts_tf.media import images
from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import predictions, summary
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import truth as truth_lib

CENTRE = summary.CENTRE_TITLE
OBSERVERS = "one observer by the others"
DENSITY = "density map"
# How many lines of each kind of problem are shown.
_SHOWN = 40

Problems = dict[str, list[str]]


class FilesError(ValueError):
    """Files are missing, too many, or cannot be read: up to 40 of a kind."""


def evaluate(
    models: Mapping[str, str | os.PathLike],
    annotations: truth_lib.Annotations,
    *,
    scoring: scorer_lib.Settings,
    videos: frozenset[int] = frozenset(),
    first_frames: int = 78,
    allow_missing: bool = False,
    workers: int = 1,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Scores folders of maps, {name: folder}, on the frames that all have.

    Of `videos`, or of all that are annotated; the `first_frames` of each are
    also scored apart. Files that are missing or cannot be read are left out if
    `allow_missing`. One worker is this process.

    Returns:
        What `scores.json` holds, and {name: scores of each frame}.

    Raises:
        FilesError, images.MapError: Files are missing or cannot be read.
    """
    found, frames, problems = _matched(models, annotations, videos)
    refuse_or_warn(problems, allow_missing)
    if not any(frames.values()):
        raise FilesError("No frame has both a map and an annotation.")
    jobs = [
        _Job(video, clip.frames, clip, {})
        for video, clip in annotations.clips.items()
    ]
    rows, unreadable = results("fixations", _collect, jobs, workers)
    refuse_or_warn({"unreadable": unreadable}, allow_missing)
    readable = {(video, frame) for video, frame, *_ in rows}
    jobs = [
        _Job(
            video,
            [n for n in of if (video, n) in readable],
            annotations.clips[video],
            {name: clips[video] for name, clips in found.items()},
        )
        for video, of in frames.items()
        if of
    ]
    scorer = scorer_lib.Scorer(truth_lib.FixationSet(rows), scoring)
    scores, more = scored(_score, jobs, workers, scorer)
    refuse_or_warn({"unreadable": more}, allow_missing)
    problems["unreadable"] += [*unreadable, *more]
    if not scores:
        raise FilesError("No frame could be read.")
    centre, observers = scores.pop(CENTRE), scores.pop(OBSERVERS, None)
    annotated = sum(len(clip.frames) for clip in annotations.clips.values())
    missing = {
        "allowed": allow_missing,
        **{kind: len(lines) for kind, lines in problems.items()},
        "frames": annotated - len(centre),
    }
    reports = {
        name: summary.report(
            table,
            centre,
            first_frames=first_frames,
            scoring=scoring,
            observers=observers,
            about={
                "predictions": str(pathlib.Path(models[name])),
                "ground_truth": annotations.about,
                "missing": missing,
            },
        )
        for name, table in scores.items()
    }
    return summary.joint_report(reports, scores), scores


def _matched(
    models: Mapping[str, str | os.PathLike],
    annotations: truth_lib.Annotations,
    videos: frozenset[int],
) -> tuple[
    dict[str, dict[int, predictions.Clip]], dict[int, list[int]], Problems
]:
    """Maps by model and video, the frames that all have, and what is wrong."""
    problems: Problems = {
        kind: list(annotations.problems.get(kind, ()))
        for kind in ("missing", "extra", "unreadable", "clashes", "annotations")
    }
    found = {
        name: predictions.find(folder, problems, videos)
        for name, folder in models.items()
    }
    frames = {
        video: _common(video, clip.frames, models, found, problems)
        for video, clip in annotations.clips.items()
    }
    for name, clips in found.items():
        problems["extra"] += [
            f"{models[name]}: video {video:04d} is not annotated"
            for video in sorted(clips.keys() - frames.keys())
        ]
    return found, frames, problems


def named(folders: Sequence[str]) -> dict[str, str]:
    """{name: folder} of texts such as "ours=out/maps" and "out/maps".

    The second is called like the last part of its path. A path may hold "="
    itself, as out/lr=1e-3.
    """
    result: dict[str, str] = {}
    for text in folders:
        name, given, folder = text.partition("=")
        if not given or os.sep in name or pathlib.Path(text).exists():
            folder = text
            name = pathlib.Path(text).resolve().name
        if name in {*result, CENTRE, OBSERVERS, DENSITY}:
            raise ValueError(
                f"Two models have the name {name!r}. Name them: "
                f"--compare one={folder} ..."
            )
        result[name] = folder
    return result


# === Which files belong together ===


def _common(
    video: int,
    annotated: Sequence[int],
    models: Mapping[str, str | os.PathLike],
    found: Mapping[str, Mapping[int, predictions.Clip]],
    problems: Problems,
) -> list[int]:
    """Frames of a video that are annotated and that all models have."""
    common = wanted = set(annotated)
    for name, clips in found.items():
        where = f"{models[name]}: video {video:04d}"
        if video not in clips:
            problems["missing"].append(where)
            common = set()
            continue
        given = set(clips[video].frames)
        hint = ""
        if {frame + 1 for frame in given} == wanted:
            hint = " (numbered from 0? The first frame's file is 0001)"
        lacks = {"missing": wanted - given, "extra": given - wanted}
        for kind, some in lacks.items():
            if some:
                problems[kind].append(f"{where}: {_ranges(some)}{hint}")
        common = common & given
    return sorted(common)


def _ranges(frames: set[int]) -> str:
    """Frames as in file names: "frames 1-78, 100"."""
    numbers = np.array(sorted(frames)) + 1
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    texts = [f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
    return f"frames {', '.join(texts)}"


def refuse_or_warn(problems: Problems, is_allowed: bool) -> None:
    """Raises FilesError, or warns that it goes on without some files.

    Problems are {kind: what is wrong}; "clashes" are never allowed.
    """
    lines: list[str] = []
    for kind, found in problems.items():
        if found:
            lines += [f"{kind} ({len(found)}):", *found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"... and {len(found) - _SHOWN} more")
    if not lines:
        return
    text = "\n".join(lines)
    if problems.get("clashes"):
        raise FilesError(f"Two files have the same number; remove one.\n{text}")
    if not is_allowed:
        raise FilesError(
            "Maps and annotation do not match.\n"
            f"{text}\n"
            "Choose videos with --videos, or leave these files out with "
            "--allow_missing."
        )
    logging.warning("Continuing without some files.\n%s", text)


# === What a process does ===


class _Job(NamedTuple):
    """Frames of a video to score, by {model: its maps}."""

    video: int
    frames: Sequence[int]
    truth: truth_lib.AnnotatedFiles | truth_lib.AnnotatedPoints
    clips: Mapping[str, predictions.Clip]

    @property
    def name(self) -> str:
        """What a message calls the video."""
        return f"{self.video:04d}"


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


def _score(job: _Job) -> tuple[list[pd.DataFrame], list[str]]:
    """A table with a column "model", and what cannot be read.

    A frame is scored if its density and the maps of all models can be read.
    """
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    streams = {name: clip.read(job.frames) for name, clip in job.clips.items()}
    shapes: dict[str, Any] = {}
    for frame in job.frames:
        row = _scorer.fixations.row(job.video, frame)
        size = _scorer.fixations.size(row)
        given: dict[str, Any] = {n: next(maps) for n, maps in streams.items()}
        if _scorer.needs_density:
            shapes[DENSITY] = size
            try:
                given[DENSITY] = job.truth.density(frame)
            except images.MapError as error:
                given[DENSITY] = error
        reasons = []
        for name, map_ in given.items():
            shapes[name] = shapes.get(name) or getattr(map_, "shape", None)
            where = f"{name}: video {job.video:04d}, frame {frame + 1:04d}"
            reasons.append(_unfit(where, map_, size, shapes[name]))
        if any(reasons):
            problems += filter(None, reasons)
            continue
        density = given.pop(DENSITY, None)
        given[CENTRE] = density_lib.centre_map(*size)
        scores = {n: _scorer.score(row, m, density) for n, m in given.items()}
        if job.truth.observers:
            scores[OBSERVERS] = _by_the_others(row, job.truth, frame)
        lines += [
            {"model": name, "video": job.video, "frame": frame, **values}
            for name, values in scores.items()
        ]
    return [pd.DataFrame(lines)] if lines else [], problems


def _unfit(where: str, map_: Any, size: tuple[int, int], usual: Any) -> str:
    """Why a map cannot be scored, or ""."""
    if isinstance(map_, images.MapError):
        return str(map_)
    if map_.shape == size[::-1] != size:
        return (
            f"{where}: rows and columns are swapped: {list(map_.shape)}, the "
            f"ground truth has {list(size)}"
        )
    if map_.shape != usual:
        return (
            f"{where}: has the size {list(map_.shape)}, not {list(usual)} like "
            "the others of its video"
        )
    return ""


def _by_the_others(row: int, truth: Any, frame: int) -> dict[str, float]:
    """Mean over observers: the others' density against one's fixations."""
    points = truth.by_observer(frame)
    if len(points) < 2:
        return dict.fromkeys(_scorer.metrics, np.nan)
    each = []
    for i, own in enumerate(points):
        others = truth.density_of(np.concatenate(points[:i] + points[i + 1 :]))
        density = truth.density_of(own) if _scorer.needs_density else None
        each.append(_scorer.score(row, others, density, own))
    return {str(n): v for n, v in pd.DataFrame(each).mean().items()}


# === All videos ===


def scored(
    function: Callable[[Any], tuple[list, list[str]]],
    jobs: Sequence[Any],
    workers: int,
    scorer: scorer_lib.Scorer | None = None,
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """{name: scores} of `results` with a column "model", and what is wrong."""
    tables, problems = results("scoring", function, jobs, workers, scorer)
    if not tables:
        return {}, problems
    table = pd.concat(tables).sort_values(["video", "frame"], kind="stable")
    return {
        str(name): of.drop(columns="model").reset_index(drop=True)
        for name, of in table.groupby("model", sort=False)
    }, problems


def results(
    title: str,
    function: Callable[[Any], tuple[list, list[str]]],
    jobs: Sequence[Any],
    workers: int,
    scorer: scorer_lib.Scorer | None = None,
) -> tuple[list, list[str]]:
    """All that a function returns, in processes that have `scorer`.

    It takes a job, and returns what it found and what is wrong. There is one
    job at least; each has a `name`, and `frames`, which the bar counts.
    """
    # The longest first, so that all cores end together.
    jobs = sorted(jobs, key=lambda job: len(job.frames), reverse=True)
    total = sum(len(job.frames) for job in jobs)
    found: list = []
    problems: list[str] = []
    with (
        contextlib.ExitStack() as stack,
        tqdm.tqdm(total=total, desc=title, unit="frame") as bar,
    ):
        if workers == 1 or len(jobs) == 1:
            _prepare(scorer, is_worker=False)
            each: Iterable = map(function, jobs)
        else:
            # They fork from a clean one, which has imported all once. One
            # thread each, which their NumPy reads when it is loaded.
            for name in ("OMP", "OPENBLAS", "MKL"):
                os.environ.setdefault(f"{name}_NUM_THREADS", "1")
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            pool = futures.ProcessPoolExecutor(
                min(workers, len(jobs)),
                mp_context=context,
                initializer=_prepare,
                initargs=(scorer, True),
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            calls = [pool.submit(function, job) for job in jobs]
            each = (call.result() for call in calls)
        try:
            for job, (lines, reasons) in zip(jobs, each, strict=True):
                found += lines
                problems += reasons
                bar.update(len(job.frames))
        except process.BrokenProcessPool as error:
            # They are begun in this order.
            ends = zip(jobs, calls, strict=True)
            lost = [job.name for job, call in ends if call.exception()]
            raise RuntimeError(
                "A process was killed at one of the videos "
                f"{', '.join(lost[:workers])}, perhaps because memory ran out. "
                f"Received: --workers={workers}. Use fewer."
            ) from error
    return found, problems
