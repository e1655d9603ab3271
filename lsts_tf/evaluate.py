r"""Score maps of where people look: a trained model's, or any as files.

    python -m lsts_tf.evaluate --flagfile=RUN/experiment.flags
    python -m lsts_tf.evaluate --dataset=osie --test_videos=1001-1700/7
    python -m lsts_tf.evaluate --predictions=DIR --annotations=DIR \
        --protocol=dhf1k --output=scores.json
    python -m lsts_tf.evaluate --compare A B C --annotations=DIR

The first scores a run on `--test_videos`, the second the starter, the trained
model that comes with the package; frames without a window (the first
78 or 79) get a copy of the first map that exists (LSTS report, section 5.3).
The next scores a folder (`predictions`) against DHF1K's annotation or a
list of points (`annotations`); the last ranks several folders on the same
frames. All of them score by the benchmark's definitions (see `metrics`) and
beside a centre prior. Written are

    {"protocol", "seed", "frames", "overall": {metric: {"mean", "ci95",
     "n_valid", "mean_of_videos", "mean_of_videos_ci95"}}, "statistic",
     "first_frames": {"number", "first", "rest"}, "by_video": {video: {metric:
     mean}}, "centre_prior": ..., ...}

(of several folders the best, with all in "models", and "comparison"), a table
of each frame beside it, and pictures where `--plots` says.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING
from typing import Any

from absl import app
from absl import flags
from absl import logging
import numpy as np
import tqdm

from lsts_tf import experiment
from lsts_tf import program
from lsts_tf import windows
from lsts_tf.media import cores
from lsts_tf.media import files
from lsts_tf.media import images as maps_lib
from lsts_tf.scoring import annotations as annotations_lib
from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import fixations as fixations_lib
from lsts_tf.scoring import jobs
from lsts_tf.scoring import predictions as predictions_lib
from lsts_tf.scoring import scores as scores_lib

if TYPE_CHECKING:
    # TensorFlow takes seconds to import, and folders need none of it.
    from lsts_tf import predictor as predictor_lib
    from lsts_tf.features import extractor as extractor_lib
    from lsts_tf.scoring import scorer as scorer_lib

CENTRE_TITLE = "centre prior"
# How many lines of each kind of problem are shown.
_SHOWN = 40
# How many flags an error names.
_NAMED = 5
# Flags that one of the ways to score alone reads. Given with another one they
# would do nothing, which nobody expects who gives them.
_OF_A_RUN = (
    "model",
    *(
        field.name
        for field in dataclasses.fields(experiment.Experiment)
        if field.name != "seed"
    ),
)
_OF_FOLDERS = (
    "annotations",
    "videos",
    "allow_missing",
    "workers",
    "first_frames_count",
    "fixations",
    "density",
    "sigma",
    "map_size",
)
_OF_POINTS = ("density", "sigma", "map_size")
_OF_ANNOTATED_FILES = ("fixations",)
# Maps that a protocol has no metric for.
_OF_OTHER_PROTOCOLS = {
    "dhf1k": (),
    "paper": ("baseline",),
    "aim": ("sauc_map", "baseline"),
}


# === A run: maps from a model ===


def evaluate(settings: experiment.Experiment, *, model: str) -> dict[str, Any]:
    """Score a run; returns what `scores.json` holds."""
    scoring = jobs.Settings(seed=settings.seed)
    result, _ = evaluate_run(settings, model=model, scoring=scoring)
    return result


def evaluate_run(
    settings: experiment.Experiment,
    *,
    model: str,
    scoring: jobs.Settings,
    sources: Mapping[str, Sequence[str]] | None = None,
    name: str = "",
) -> tuple[dict[str, Any], scores_lib.Scores]:
    """What `scores.json` holds, and the scores of each frame, of a run.

    Args:
        settings: The run's, and what is scored.
        model: See `predictor.Predictor.load`.
        scoring: How to score.
        sources: See there.
        name: How the record calls the run, instead of by its folder.
    """
    from lsts_tf import predictor as predictor_lib
    from lsts_tf.features import dataset
    from lsts_tf.features import extractor as extractor_lib
    from lsts_tf.scoring import scorer as scorer_lib

    of_data, numbers = _scored(settings)
    predictor = predictor_lib.Predictor.load(
        settings.run_dir, model=model, sources=sources
    )
    data = dataset.Dataset(of_data, settings.data_dir)
    videos = sorted(data.choose(numbers, "scoring", settings.geometry()))
    kept = extractor_lib.ready_stores(
        pathlib.Path(settings.store_dir),
        data,
        videos,
        predictor.extractor,
        stride=1,
        purpose="scoring",
        short=settings.short_clips,
        command=settings.command("extract"),
    )
    scorer = scorer_lib.Scorer(
        fixations_lib.FixationSet.of_maps(
            (video, frame, kept.truth.fixations(video, [frame])[0])
            for video in videos
            for frame in range(kept.truth.length(video))
        ),
        protocol=scoring.protocol,
        seed=scoring.seed,
        negatives=scoring.negatives,
        baseline=scoring.baseline,
    )
    ours, centre = [], []
    for video in tqdm.tqdm(videos, desc="scoring", unit="video"):
        found = maps_of_store(predictor, kept, video)
        ours.append(_score_video(scorer, kept.truth, video, found))
        priors = _centre_priors(kept.truth, video)
        centre.append(_score_video(scorer, kept.truth, video, priors))
    scores = scores_lib.Scores.joined(ours)
    result = report(
        scores,
        scores_lib.Scores.joined(centre),
        first_frames=predictor.first_map,
        filled_by="copy of the first map"
        if settings.short_clips == "skip"
        else "copy of the first map; short clips are mirrored",
        scoring=scoring,
        about={
            "model": model,
            "run": name or settings.run_dir,
            "dataset": data.name,
            "videos": settings.test_videos,
            "front_end": predictor.extractor.describe(),
        },
        note=predictor.note,
    )
    return result, scores


def _scored(settings: experiment.Experiment) -> tuple[str, frozenset[int]]:
    """The dataset that is scored, and its videos."""
    named = settings.videos("test_videos")
    if len(named) > 1:
        raise ValueError(
            "One dataset is scored at a time. Received: --test_videos="
            f"{settings.test_videos}"
        )
    for name in settings.dataset_names:
        base = name.partition(":")[0]
        if base in named:
            return name, named[base]
    return settings.dataset_names[0], frozenset()


def _centre_priors(store: Any, video: int) -> np.ndarray:
    """Centre priors, uint8 [T, H, W], of the size of a video's truth."""
    from lsts_tf.features import preprocess

    size = store.maps(video, [0]).shape[1:]
    prior = preprocess.to_uint8(scores_lib.centre_prior(*size))
    return np.broadcast_to(prior, (store.length(video), *size))


def maps_of_store(
    predictor: "predictor_lib.Predictor",
    kept: "extractor_lib.Stores",
    video: int,
) -> np.ndarray:
    """Maps of every frame of a video whose features are stored.

    Returns:
        uint8 [T, 360, 640]; the frames before the first window carry a copy
        of its map, and short clips are mirrored where the stores' are.
    """
    from lsts_tf.features import preprocess

    total = kept.truth.length(video)
    short = next(iter(kept.geometry.values())).short
    geometry = dataclasses.replace(predictor.geometry, short=short)
    hops = geometry.hops(total, predictor.hop)
    if not hops:
        raise ValueError(
            f"Video {video} has {total} frames, fewer than a window; it "
            "cannot be scored by copying the first map."
        )

    def features() -> Iterator[dict[str, np.ndarray]]:
        rows = {
            stream: {int(t): r for r, t in enumerate(store.targets(video))}
            for stream, store in kept.features.items()
        }
        for target, _ in hops:
            yield {
                stream: store.read(video, [rows[stream][target]])[0]
                for stream, store in kept.features.items()
            }

    found: list[np.ndarray] = []
    each = predictor.of_windows(features())
    for (_, frames), saliency in zip(hops, each, strict=True):
        found.extend(preprocess.to_uint8(saliency[-len(frames) :]))
    return np.stack([found[0]] * hops[0][1].start + found)


def _score_video(
    scorer: "scorer_lib.Scorer", store: Any, video: int, found: np.ndarray
) -> scores_lib.Scores:
    rows = scorer.fixations.rows(video)
    parts = []
    for start in range(0, len(rows), jobs.CHUNK):
        frames = range(start, min(start + jobs.CHUNK, len(rows)))
        values = scorer.score(
            [rows[frame] for frame in frames],
            list(found[start : frames.stop]),
            list(store.maps(video, list(frames)))
            if scorer.needs_density
            else None,
        )
        parts.append(
            scores_lib.Scores(
                video=np.full(len(frames), video),
                frame=np.array(frames),
                values=values,
            )
        )
    return scores_lib.Scores.joined(parts)


# === Folders: maps of any model ===


class FilesError(ValueError):
    """Files are missing, too many, or cannot be read: up to 40 of a kind.

    Where there are more, they are all in a file, which the message names.
    """


def evaluate_folders(
    models: Mapping[str, str | os.PathLike],
    annotations: annotations_lib.Folder | annotations_lib.Points,
    *,
    scoring: jobs.Settings,
    parts: pathlib.Path,
    listed: pathlib.Path,
    videos: frozenset[int] = frozenset(),
    first_frames: int = 78,
    allow_missing: bool = False,
    workers: int = 1,
) -> tuple[dict[str, Any], dict[str, scores_lib.Scores]]:
    """Score folders of maps.

    Args:
        models: {name: folder}.
        annotations: Where people looked.
        scoring: How to score.
        parts: Folder for what is found on the way; see `jobs`.
        listed: File for the names of all files that something is wrong with,
            if they are too many for a message. An older one is removed.
        videos: Those to score; all that are annotated, if none is named.
        first_frames: How many frames of each video are also scored apart.
        allow_missing: Whether to go on with the frames that all models have
            and that can be read.
        workers: Number of processes.

    Returns:
        What `scores.json` holds, and {name: scores of each frame}.

    Raises:
        FilesError: See there.
        maps.MapError: A folder is missing, or holds no maps.
    """
    folders = {
        name: predictions_lib.Predictions(folder, videos)
        for name, folder in models.items()
    }
    listed.unlink(missing_ok=True)
    frames, problems = _matched(folders, annotations)
    _list_if_many(listed, problems)
    _refuse_or_warn(problems, allow_missing, listed)
    if not any(frames.values()):
        raise FilesError("No frame has both a map and an annotation.")
    work = jobs.Evaluation(
        annotations.clips,
        scoring,
        jobs.Parts(parts),
        workers=workers,
        allow_missing=allow_missing,
    )
    scores = work.run({n: f.clips for n, f in folders.items()}, frames)
    problems["unreadable"] += work.problems
    _list_if_many(listed, problems)
    _refuse_or_warn({"unreadable": work.problems}, allow_missing, listed)
    work.forget_others()
    centre = scores.pop(jobs.CENTRE)
    observers = scores.pop(jobs.OBSERVERS, None)
    if not len(centre.frame):
        raise FilesError("No frame could be read.")
    reports = {
        name: report(
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
                    "frames": sum(
                        len(c.frames) for c in annotations.clips.values()
                    )
                    - len(table.frame),
                },
            },
        )
        for name, table in scores.items()
    }
    if len(reports) == 1:
        return next(iter(reports.values())), scores
    comparison = scores_lib.compare(
        scores, seed=scoring.seed, statistic=scoring.statistic
    )
    best = next(iter(comparison.values()))["ranking"][0]
    return {
        **reports[best],
        "best": best,
        "models": reports,
        "comparison": comparison,
    }, scores


def _matched(
    folders: Mapping[str, predictions_lib.Predictions],
    annotations: annotations_lib.Folder | annotations_lib.Points,
) -> tuple[dict[int, list[int]], dict[str, list[str]]]:
    """Frames that all models have, and what is wrong with the files."""
    problems: dict[str, list[str]] = {
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
        for video in sorted(predictions.clips.keys() - frames.keys()):
            problems["extra"].append(
                f"{root}: video {video:04d} is not annotated"
            )
        for video, clip in annotations.clips.items():
            has = predictions.clips.get(video)
            if has is None:
                problems["missing"].append(f"{root}: video {video:04d}")
                frames[video] = []
                continue
            wanted, given = set(clip.frames), set(has.frames)
            where = f"{root}: video {video:04d}"
            hint = _shift_hint(wanted, given)
            if wanted - given:
                problems["missing"].append(
                    f"{where}: {_ranges(wanted - given)}{hint}"
                )
            if given - wanted:
                problems["extra"].append(
                    f"{where}: {_ranges(given - wanted)}{hint}"
                )
            frames[video] = [f for f in frames[video] if f in given]
    frames = {video: found for video, found in frames.items() if found}
    return frames, problems


def _shift_hint(wanted: set[int], given: set[int]) -> str:
    if {frame + 1 for frame in given} == wanted:
        return " (numbered from 0? The first frame's file is 0001)"
    return ""


def _ranges(frames: set[int]) -> str:
    """Frames as in file names: "frames 1-78, 100"."""
    numbers = sorted(frame + 1 for frame in frames)
    parts: list[str] = []
    start = last = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == last + 1:
            last = number
            continue
        parts.append(f"{start}-{last}" if last > start else f"{start}")
        if number is not None:
            start = last = number
    return f"frames {', '.join(parts)}"


def _list_if_many(
    path: pathlib.Path, problems: Mapping[str, Sequence[str]]
) -> None:
    """Writes all lines of all kinds, if a message does not hold them."""
    if all(len(found) <= _SHOWN for found in problems.values()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind, found in problems.items():
        if found:
            lines += [f"{kind} ({len(found)}):", *(f"  {x}" for x in found)]
    files.write_text(path, "\n".join([*lines, ""]))


def _refuse_or_warn(
    problems: Mapping[str, Sequence[str]],
    allow_missing: bool,
    listed: pathlib.Path,
) -> None:
    lines = []
    for kind, found in problems.items():
        if not found:
            continue
        lines.append(f"{kind} ({len(found)}):")
        lines += [f"  {line}" for line in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(
                f"  ... and {len(found) - _SHOWN} more, which are in {listed}"
            )
    if not lines:
        return
    text = "\n".join(lines)
    if problems.get("clashes"):
        raise FilesError(f"Two files have the same number; remove one.\n{text}")
    if not allow_missing:
        raise FilesError(
            f"Maps and annotation do not match.\n{text}\nName the videos by "
            "--videos, or go on without these files by --allow_missing."
        )
    logging.warning("Going on without some files.\n%s", text)


# === Both ===


def report(
    ours: scores_lib.Scores,
    centre: scores_lib.Scores,
    *,
    first_frames: int,
    scoring: jobs.Settings,
    about: Mapping[str, Any],
    observers: scores_lib.Scores | None = None,
    filled_by: str | None = None,
    note: str = "",
) -> dict[str, Any]:
    """What `scores.json` holds of one model."""
    seed = scoring.seed
    early = ours.frame < first_frames
    result = {
        "protocol": scoring.protocol,
        "seed": seed,
        "frames": len(ours.frame),
        "overall": ours.summary(seed=seed),
        "statistic": scoring.statistic,
        "first_frames": {
            "number": first_frames,
            **({"filled_by": filled_by} if filled_by else {}),
            "first": ours.where(early).summary(seed=seed),
            "rest": ours.where(~early).summary(seed=seed),
            "rest_centre_prior": centre.where(
                centre.frame >= first_frames
            ).summary(seed=seed),
        },
        "centre_prior": centre.summary(seed=seed),
        "other_fixations": scoring.other_fixations,
        "baseline": "centre prior"
        if scoring.baseline is None
        else "a fixed map",
        "by_video": ours.by_video(),
        **about,
        "note": "; ".join(filter(None, (note, scoring.note))),
    }
    if observers is not None:
        result["inter_observer"] = observers.summary(seed=seed)
    return result


def table_rows(result: Mapping[str, Any]) -> dict[str, Any]:
    """{title: summary} of the table."""
    if "models" in result:
        found = next(iter(result["comparison"].values()))
        rows = {
            name: result["models"][name]["overall"] for name in found["ranking"]
        }
    else:
        first = result["first_frames"]
        copied = " (copied)" if "filled_by" in first else ""
        rows = {
            "all frames": result["overall"],
            f"first {first['number']}{copied}": first["first"],
            "the rest": first["rest"],
            f"{CENTRE_TITLE}, the rest": first["rest_centre_prior"],
        }
    rows[CENTRE_TITLE] = result["centre_prior"]
    if "inter_observer" in result:
        rows["other observers"] = result["inter_observer"]
    return rows


def table(result: Mapping[str, Any]) -> str:
    """The report's means, for the terminal."""
    lines = [scores_lib.table(table_rows(result), result["statistic"])]
    for metric, found in result.get("comparison", {}).items():
        chance = [
            f"{p['better']} > {p['worse']}: p = {p['p_holm']:.4f}"
            for p in found["pairs"]
            if p["p_holm"] is not None
        ]
        lines.append(
            f"{metric}: {' > '.join(found['ranking'])}   {'; '.join(chance)}"
        )
    missing = result.get("missing", {})
    if missing.get("frames"):
        lines.append(
            f"{missing['frames']} annotated frames were left out, because "
            "maps are missing or cannot be read."
        )
    if result["note"]:
        lines.append(result["note"].upper())
    return "\n".join(lines)


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_enum(
        "model",
        "last",
        ["last", "best"],
        "Of a run: model after the last epoch, or the best in validation.",
    )
    flags.DEFINE_string(
        "output",
        "",
        "Where scores go; by default RUN/scores.json, or scores.json here.",
    )
    flags.DEFINE_string("predictions", "", "Folder of maps of any model.")
    flags.DEFINE_list(
        "compare",
        [],
        "Folders of maps of several models, which are ranked; NAME=FOLDER "
        "names one. More may follow as plain arguments.",
    )
    flags.DEFINE_string(
        "annotations",
        "",
        "DHF1K's annotation folder, or a JSON or CSV file of points.",
    )
    flags.DEFINE_enum(
        "protocol",
        "dhf1k",
        ["dhf1k", "paper", "aim"],
        "Whose definitions; see lsts_tf.scoring.metrics.",
    )
    flags.DEFINE_string(
        "videos", "", "Videos to score, as 601-700; all annotated by default."
    )
    flags.DEFINE_boolean(
        "allow_missing",
        False,
        "Score without files that are missing or cannot be read.",
    )
    flags.DEFINE_integer(
        "workers",
        0,
        "Processes; 0: as many as cores that may be used.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "first_frames_count",
        78,
        "How many first frames of each video are also scored apart.",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "fixations",
        "auto",
        ["auto", "png", "mat"],
        "DHF1K's fixations to read; auto: PNG where there are any.",
    )
    flags.DEFINE_enum(
        "density",
        "dhf1k",
        list(annotations_lib.RECIPES),
        "How density maps are made of points.",
    )
    flags.DEFINE_float(
        "sigma", density_lib.SIGMA, "Of the Gaussians of points, in pixels."
    )
    flags.DEFINE_string(
        "map_size", "640x360", "Width x height that points refer to."
    )
    flags.DEFINE_string(
        "sauc_map",
        "",
        "A map (PNG or NPY) whose pixels above 0 are the negatives of "
        "shuffled AUC; by default they are drawn as officially.",
    )
    flags.DEFINE_string(
        "baseline", "", "A map for information gain; the centre by default."
    )
    flags.DEFINE_multi_enum(
        "per_frame",
        ["csv"],
        ["csv", "parquet", "none"],
        "Table of each frame beside the output; may be repeated.",
    )
    flags.DEFINE_string(
        "plots", "", "Folder for pictures and a page that shows them."
    )


def write(
    path: pathlib.Path,
    result: Mapping[str, Any],
    scores: Mapping[str, scores_lib.Scores],
    *,
    per_frame: Sequence[str],
    plots: str,
) -> None:
    """Writes the tables of frames, pictures, and last the scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = {
        "csv": scores_lib.Scores.write_csv,
        "parquet": scores_lib.Scores.write_parquet,
    }
    for name, found in scores.items():
        part = f".{name}" if len(scores) > 1 else ""
        for kind in per_frame:
            if kind == "none":
                continue
            beside = path.with_name(f"{path.stem}{part}.{kind}")
            with files.replacing(beside) as temporary:
                writer[kind](found, temporary)
    if plots:
        from lsts_tf.scoring import charts

        charts.write(pathlib.Path(plots), result, scores, table_rows(result))
    text = json.dumps(result, indent=2, allow_nan=False)
    files.write_text(path, text + "\n")


def _named(folders: Sequence[str]) -> dict[str, str]:
    """{name: folder}: the last part of its path, or what was given.

    A path may hold "=" itself, as out/lr=1e-3.
    """
    result: dict[str, str] = {}
    for text in folders:
        name, given, folder = text.partition("=")
        is_path = os.sep in name or (os.altsep or os.sep) in name
        if not given or is_path or pathlib.Path(text).exists():
            folder = text
            name = pathlib.Path(text).resolve().name
        if name in result or name in (jobs.CENTRE, jobs.OBSERVERS):
            raise ValueError(
                f"Two models have the name {name!r}. Name them: "
                f"--compare one={folder} ..."
            )
        result[name] = folder
    return result


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) * int(height)):
        raise ValueError(
            f"--map_size is width x height, as 640x360. Received: {text!r}"
        )
    return int(height), int(width)


def _fixed_maps() -> dict[str, str]:
    """{flag: its file} of those that are given."""
    names = ("sauc_map", "baseline")
    return {n: path for n in names if (path := getattr(flags.FLAGS, n))}


def _about_fixed_maps() -> dict[str, dict[str, str]]:
    """{flag: which file it was}, for `scores.json`."""
    return {
        name: {
            "file": path,
            "sha256": hashlib.sha256(
                pathlib.Path(path).read_bytes()
            ).hexdigest(),
        }
        for name, path in _fixed_maps().items()
    }


def _refuse_idle(names: Sequence[str], why: str) -> None:
    """Raises ValueError if a flag is given that is not read."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if not given:
        return
    received = ", ".join(given[:_NAMED])
    if len(given) > _NAMED:
        received += f" and {len(given) - _NAMED} more"
    raise ValueError(f"{why} Received: {received}, which would do nothing.")


def _scoring(seed: int) -> jobs.Settings:
    protocol = flags.FLAGS.protocol
    _refuse_idle(
        _OF_OTHER_PROTOCOLS[protocol],
        f"--protocol={protocol} has no metric that looks at every map: "
        "--sauc_map is of shuffled AUC, --baseline of information gain.",
    )
    found = {n: maps_lib.read(path) for n, path in _fixed_maps().items()}
    return jobs.Settings(
        protocol=protocol,
        seed=seed,
        negatives=found.get("sauc_map"),
        baseline=found.get("baseline"),
    )


def _folders_of_flags(
    models: Mapping[str, str], path: pathlib.Path
) -> tuple[dict[str, Any], dict[str, scores_lib.Scores]]:
    values = flags.FLAGS
    if not values.annotations:
        raise ValueError(
            "--predictions and --compare need --annotations, a folder of "
            "DHF1K's layout or a file of points."
        )
    _refuse_idle(
        _OF_A_RUN,
        "--predictions and --compare score folders, with nothing of a run but "
        "--seed. Score the run by itself, or the maps that it predicted.",
    )
    if annotations_lib.is_list(values.annotations):
        _refuse_idle(
            _OF_ANNOTATED_FILES,
            "Points are their own fixations; --fixations is of folders in "
            "DHF1K's layout.",
        )
    else:
        _refuse_idle(
            _OF_POINTS,
            "Folders in DHF1K's layout have density maps; --density, --sigma "
            "and --map_size are of points.",
        )
    videos = windows.parse_ranges(values.videos)
    annotations = annotations_lib.open_annotations(
        values.annotations,
        fixations=values.fixations,
        size=_size(values.map_size),
        recipe=values.density,
        sigma=values.sigma,
        videos=videos,
    )
    return evaluate_folders(
        models,
        annotations,
        scoring=_scoring(values.seed),
        parts=path.with_name(f"{path.name}.parts"),
        listed=path.with_name(f"{path.stem}.problems.txt"),
        videos=videos,
        first_frames=values.first_frames_count,
        allow_missing=values.allow_missing,
        workers=values.workers or cores.usable(),
    )


def main(arguments: Sequence[str]) -> None:
    """Evaluate as the flags say."""
    values = flags.FLAGS
    folders = [*values.compare, *arguments[1:]]
    with program.terminable(), program.exit_codes():
        if values.predictions:
            folders.insert(0, values.predictions)
        if folders:
            path = pathlib.Path(values.output or "scores.json")
            result, scores = _folders_of_flags(_named(folders), path)
        else:
            _refuse_idle(
                _OF_FOLDERS,
                "A run is scored on its own dataset, all of --test_videos; "
                "maps in folders are by --predictions or --compare.",
            )
            run = experiment.chosen_run(values)
            # Not into the package.
            own = run.folder != experiment.STARTER
            place = run.folder / "scores.json" if own else "scores.json"
            path = pathlib.Path(values.output or place)
            result, of_run = evaluate_run(
                run.settings,
                model=values.model,
                scoring=_scoring(
                    run.settings.seed
                    if values["seed"].using_default_value
                    else values.seed
                ),
                sources=run.sources,
                name=run.name,
            )
            scores = {"scores": of_run}
        if about := _about_fixed_maps():
            result["fixed_maps"] = about
        write(
            path,
            result,
            scores,
            per_frame=values.per_frame,
            plots=values.plots,
        )
    sys.stdout.write(f"{table(result)}\n{path}\n")


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
