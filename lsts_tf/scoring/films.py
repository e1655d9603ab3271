"""Scores of films of maps, by the program of AIM 2024, NTIRE 2026 and CrowdSAL.

Where people looked is a film too, beside a list of points (`media.msu_files`).
Films are decoded side by side, a frame at a time, and each process takes one
video at a time: nothing is unpacked, and memory holds a frame of each.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

from absl import flags
import cv2
import numpy as np
import pandas as pd

from lsts_tf import windows
from lsts_tf.media import files, images, msu_files, video
from lsts_tf.scoring import density, folders, msu, scorer, summary, truth

PROTOCOL = "msu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """A video to score.

    Attributes:
        clip: Where people looked.
        maps: {model: its film, or its folder of pictures}.
        frames: Those to score; before they are counted, one.
    """

    clip: msu_files.Clip
    maps: Mapping[str, str]
    frames: Sequence[int] = range(1)

    @property
    def name(self) -> str:
        """What a message calls the video."""
        return self.clip.name


def evaluate(
    models: Mapping[str, str | os.PathLike],
    annotations: str | os.PathLike,
    *,
    videos: str = "",
    seed: int = 0,
    first_frames: int = 78,
    allow_missing: bool = False,
    workers: int = 1,
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Score folders of films.

    Args:
        models: {name: folder}, with NAME.mp4 or a folder NAME of pictures
            (0001.png is frame 0) for each clip.
        annotations: See `msu_files.find`.
        videos: Those to score: a split such as "public_test", or numbers such
            as "3001-5000"; by default all whose saliency is there.
        seed: Of the confidence intervals.
        first_frames: How many frames of each video are also scored apart.
        allow_missing: Whether to go on without videos that lack something or
            cannot be read.
        workers: Number of processes; 1 works in this one.

    Returns:
        What `scores.json` holds, and {name: scores of each frame}.

    Raises:
        folders.FilesError: Something is missing, cannot be read, or differs in
            its number of frames; the message names the videos and the counts.
        files.FileError: There is no such folder.
    """
    jobs, problems = _jobs(models, _chosen(msu_files.find(annotations), videos))
    folders.refuse_or_warn({"videos": problems}, allow_missing)
    if jobs:
        jobs, wrong = folders.results("counting", _counted, jobs, workers)
        problems += wrong
        folders.refuse_or_warn({"videos": wrong}, allow_missing)
    if not jobs:
        raise folders.FilesError("No video can be scored.")
    scores, more = folders.scored(_score, jobs, workers)
    folders.refuse_or_warn({"videos": more}, allow_missing)
    if not scores:
        raise folders.FilesError("No video could be read.")
    centre = scores.pop(folders.CENTRE)
    missing = len([*problems, *more])
    about = {
        "ground_truth": str(annotations),
        "missing": {"allowed": allow_missing, "videos": missing},
    }
    scoring = scorer.Settings(protocol=PROTOCOL, seed=seed)
    names = {f"{job.clip.number:04d}": job.clip.name for job in jobs}
    reports = {}
    for name, of in scores.items():
        report = summary.report(
            of,
            centre,
            first_frames=first_frames,
            scoring=scoring,
            about={"predictions": str(models[name]), **about},
        )
        report["by_video"] = {
            names[number]: means for number, means in report["by_video"].items()
        }
        reports[name] = report
    return summary.joint_report(reports, scores), scores


def from_flags(
    values: flags.FlagValues, models: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """As `evaluate`, by the flags of the program."""
    _, *others = truth.FLAGS
    given = [f"--{name}" for name in others if values[name].present]
    if given or not values.annotations:
        raise ValueError(
            f"--protocol={PROTOCOL} reads --annotations, the folder of a "
            "dataset's films and fixations, and nothing else that says where "
            f"people looked. Received: {', '.join(given) or 'none'}"
        )
    return evaluate(
        models,
        values.annotations,
        videos=values.videos,
        seed=values.seed,
        first_frames=values.first_frames_count,
        allow_missing=values.allow_missing,
        workers=values.workers or len(os.sched_getaffinity(0)),
    )


def refuse_run(protocol: str) -> None:
    """Raises ValueError if a run is to be scored by this protocol."""
    if protocol == PROTOCOL:
        raise ValueError(
            f"--protocol={PROTOCOL} scores films: write them with `predict "
            "--outputs=msu`, and name their folder with --predictions."
        )


# === Which files belong together ===


def _chosen(found: msu_files.Files, videos: str) -> Sequence[msu_files.Clip]:
    """The clips that `--videos` names."""
    if videos in found.splits:
        names = set(found.splits[videos])
        return [c for c in found.clips.values() if c.name in names]
    try:
        numbers = windows.parse_ranges(videos)
    except ValueError as error:
        raise ValueError(
            "--videos names a split or numbers. The splits are "
            f"{', '.join(found.splits) or 'not known'}. Received: {videos!r}"
        ) from error
    return [
        clip
        for clip in found.clips.values()
        if (clip.number in numbers if numbers else clip.saliency)
    ]


def _jobs(
    models: Mapping[str, str | os.PathLike], clips: Sequence[msu_files.Clip]
) -> tuple[list[_Job], list[str]]:
    """What can be scored, and what is missing."""
    if not clips:
        raise ValueError("None of the named videos has a saliency film.")
    found = {name: _films(pathlib.Path(at)) for name, at in models.items()}
    jobs, problems = [], []
    for clip in clips:
        lacks = [
            kind
            for kind, file in (
                ("saliency film", clip.saliency),
                ("fixations", clip.fixations),
                *(
                    (f"film of {m}", of.get(clip.name))
                    for m, of in found.items()
                ),
            )
            if file is None
        ]
        if lacks:
            problems.append(f"{clip.name}: no {', no '.join(lacks)}")
        else:
            maps = {model: of[clip.name] for model, of in found.items()}
            jobs.append(_Job(clip=clip, maps=maps))
    return jobs, problems


def _films(folder: pathlib.Path) -> dict[str, str]:
    """{clip: its film, or its folder of pictures}."""
    if not folder.is_dir():
        raise files.FileError(folder, "no such folder.")
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        is_film = path.suffix.lower() in video.SUFFIXES
        if path.name.startswith(".") or not (is_film or path.is_dir()):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise files.FileError(
                path, f"{found[name]} has the same name; remove one."
            )
        found[name] = str(path)
    return found


# === What a process does ===


def _counted(job: _Job) -> tuple[list[_Job], list[str]]:
    """The job with its frames, or what is wrong with their number."""
    try:
        counts: dict[str, Any] = {
            "saliency": job.clip.saliency.film().num_frames,  # type: ignore
            "fixations": len(job.clip.points()),
            **{model: _count(path) for model, path in job.maps.items()},
        }
    except files.FileError as error:
        return [], [f"{job.clip.name}: {error}"]
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        return [], [f"{job.clip.name}: the numbers of frames differ: {told}"]
    return [dataclasses.replace(job, frames=range(counts["fixations"]))], []


def _count(path: str) -> int:
    """Number of frames of a film or a folder."""
    if not pathlib.Path(path).is_dir():
        return video.count_frames(path)
    found = images.numbered(path, images.SUFFIXES).entries
    if list(found) != list(range(1, len(found) + 1)):
        raise files.FileError(
            path,
            "frames must be numbered from 1 without a gap. Received: "
            f"{len(found)} pictures, up to {max(found, default=0)}",
        )
    return len(found)


def _read(path: str) -> Iterator[np.ndarray]:
    """Maps of a film or a folder: [H, W], or [H, W, channels] of pictures."""
    if not pathlib.Path(path).is_dir():
        yield from video.Video(path, grey=True)
        return
    for file in images.numbered(path, images.SUFFIXES).entries.values():
        map_: np.ndarray | None
        if file.endswith(".npy"):
            map_ = images.read(file)
        else:
            data = pathlib.Path(file).read_bytes()
            map_ = images.decode(data, cv2.IMREAD_UNCHANGED)
        if map_ is None:
            raise images.MapError(file, "not a picture, or a damaged one.")
        yield map_


def _score(job: _Job) -> tuple[list[pd.DataFrame], list[str]]:
    """Scores with a column "model", or what is wrong with the video."""
    models = [folders.CENTRE, *job.maps]
    streams = [_read(path) for path in job.maps.values()]
    truths = job.clip.saliency.film(grey=True)  # type: ignore
    lines: list[dict[str, Any]] = []
    frame = 0
    try:
        for frame, (true, points, *maps) in enumerate(
            zip(truths, job.clip.points(), *streams, strict=True)
        ):
            stretched = msu.Map(true)
            given = [_prior(*stretched.levels.shape), *map(msu.Map, maps)]
            each = msu.scores(given, stretched, points)
            lines += [
                {"model": model, "video": job.clip.number, "frame": frame, **of}
                for model, of in zip(models, each, strict=True)
            ]
    except (files.FileError, ValueError) as error:
        where = f"{job.clip.name}, frame {frame} (counted from 0) or later"
        return [], [f"{where}: {error}"]
    return [pd.DataFrame(lines)], []


@functools.lru_cache(maxsize=8)
def _prior(height: int, width: int) -> msu.Map:
    prior = density.centre_prior(height, width)
    return msu.Map(np.rint(prior * 1023.0).astype(np.uint16))
