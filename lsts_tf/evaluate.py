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
list of points (`truth`); the last ranks several folders on the same
frames. All of them score by the benchmark's definitions (see `metrics`) and
beside a centre prior. Written are `scores.json` (see `summary.report`; of
several folders the best, with all in "models", and "comparison"), a table of
all frames beside it, and pictures where `--plots` says.
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
import numpy as np
import pandas as pd
import tqdm

from lsts_tf import experiment
from lsts_tf import program
from lsts_tf import windows
from lsts_tf.media import cores
from lsts_tf.media import files
from lsts_tf.media import images as maps_lib
from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import films as films_lib
from lsts_tf.scoring import folders as folders_lib
from lsts_tf.scoring import metrics
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import summary
from lsts_tf.scoring import truth as truth_lib

if TYPE_CHECKING:
    # TensorFlow takes seconds to import, and folders need none of it.
    from lsts_tf import predictor as predictor_lib
    from lsts_tf.features import fill

# How many flags an error names.
_NAMED = 5
# Flags that only one of the ways to score reads. With another one they would
# silently do nothing, so they are refused.
_OF_A_RUN = (
    "model",
    *(
        field.name
        for field in dataclasses.fields(experiment.Experiment)
        if field.name != "seed"
    ),
)
_OF_POINTS = ("density", "sigma", "map_size")
_OF_ANNOTATED_FILES = ("fixations",)
_OF_FOLDERS = (
    "annotations",
    "videos",
    "allow_missing",
    "workers",
    "first_frames_count",
    *_OF_ANNOTATED_FILES,
    *_OF_POINTS,
)
_FIXED_MAPS = ("sauc_map", "baseline")
# Those of them that a protocol has no metric for.
_OF_OTHER_PROTOCOLS = {
    "dhf1k": (),
    "paper": ("baseline",),
    "aim": ("sauc_map", "baseline"),
}


def evaluate(settings: experiment.Experiment, *, model: str) -> dict[str, Any]:
    """Score a run; returns what `scores.json` holds."""
    scoring = scorer_lib.Settings(seed=settings.seed)
    return evaluate_run(settings, model=model, scoring=scoring)[0]


def evaluate_run(
    settings: experiment.Experiment,
    *,
    model: str,
    scoring: scorer_lib.Settings,
    sources: Mapping[str, Sequence[str]] | None = None,
    name: str = "",
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What `scores.json` holds, and the scores of each frame, of a run.

    Args:
        settings: The run's, and what is scored.
        model: See `predictor.Predictor.load`.
        scoring: How to score.
        sources: See `predictor.Predictor.load`.
        name: How the record calls the run, instead of by its folder.
    """
    from lsts_tf import predictor as predictor_lib
    from lsts_tf.features import dataset
    from lsts_tf.features import fill
    from lsts_tf.features import preprocess

    of_data, numbers = _scored(settings)
    predictor = predictor_lib.Predictor.load(
        settings.run_dir, model=model, sources=sources
    )
    data = dataset.Dataset(of_data, settings.data_dir)
    videos = sorted(data.choose(numbers, "scoring", settings.geometry()))
    kept = fill.ready_stores(
        pathlib.Path(settings.store_dir),
        data,
        videos,
        predictor.extractor,
        stride=1,
        purpose="scoring",
        short=settings.short_clips,
        command=settings.command("extract"),
    )
    fixations = truth_lib.FixationSet.of_maps(
        (video, frame, kept.truth.fixations(video, [frame])[0])
        for video in videos
        for frame in range(kept.truth.length(video))
    )
    scorer = scorer_lib.Scorer(fixations, scoring)
    ours, centre = [], []
    for video in tqdm.tqdm(videos, desc="scoring", unit="video"):
        found = maps_of_store(predictor, kept, video)
        ours.append(_score_video(scorer, kept.truth, video, found))
        size = kept.truth.maps(video, [0]).shape[1:]
        prior = preprocess.to_uint8(density_lib.centre_prior(*size))
        priors = np.broadcast_to(prior, (len(found), *size))
        centre.append(_score_video(scorer, kept.truth, video, priors))
    scores = pd.concat(ours, ignore_index=True)
    mirrored = (
        "" if settings.short_clips == "skip" else "; short clips are mirrored"
    )
    result = summary.report(
        scores,
        pd.concat(centre, ignore_index=True),
        first_frames=predictor.first_map,
        filled_by=f"copy of the first map{mirrored}",
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


def maps_of_store(
    predictor: "predictor_lib.Predictor",
    kept: "fill.Stores",
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
    scorer: scorer_lib.Scorer, store: Any, video: int, found: np.ndarray
) -> pd.DataFrame:
    """Scores of a video's frames, whose maps are uint8 [T, H, W]."""
    lines = []
    for frame, row in enumerate(scorer.fixations.rows(video)):
        density = None
        if scorer.needs_density:
            density = store.maps(video, [frame])[0]
        values = scorer.score(row, found[frame], density)
        lines.append({"video": video, "frame": frame, **values})
    return pd.DataFrame(lines)


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_enum(
        "model",
        "last",
        ["last", "best"],
        "Model of a run: after the last epoch, or the best in validation.",
    )
    flags.DEFINE_string(
        "output",
        "",
        "File for the scores; by default scores.json, in the run's folder if "
        "a run is scored.",
    )
    flags.DEFINE_string("predictions", "", "Folder of maps of any model.")
    flags.DEFINE_list(
        "compare",
        [],
        "Folders of maps of several models, to be ranked; NAME=FOLDER "
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
        [*metrics.PROTOCOLS, films_lib.PROTOCOL],
        "Definitions to score by; see lsts_tf.scoring.metrics.",
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
        "Number of processes; 0 stands for that of usable cores.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "first_frames_count",
        78,
        "Number of first frames of each video that are also scored apart.",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "fixations",
        "auto",
        ["auto", "png", "mat"],
        "Files of DHF1K's fixations to read; auto prefers PNG.",
    )
    flags.DEFINE_enum(
        "density",
        "dhf1k",
        list(truth_lib.RECIPES),
        "Recipe for density maps of points.",
    )
    flags.DEFINE_float(
        "sigma",
        density_lib.SIGMA,
        "Standard deviation of the Gaussian at each point, in pixels.",
    )
    flags.DEFINE_string(
        "map_size", "640x360", "Width x height of the maps that points lie in."
    )
    flags.DEFINE_string(
        "sauc_map",
        "",
        "A map (PNG or NPY) whose pixels above 0 are the negatives of "
        "shuffled AUC; by default they are drawn as officially.",
    )
    flags.DEFINE_string(
        "baseline",
        "",
        "A map (PNG or NPY) for information gain; by default the centre prior.",
    )
    flags.DEFINE_multi_enum(
        "per_frame",
        ["csv"],
        ["csv", "parquet", "none"],
        "Format of the table of all frames; may be repeated.",
    )
    flags.DEFINE_string(
        "plots", "", "Folder for pictures and a page that shows them."
    )


def write(
    path: pathlib.Path,
    result: Mapping[str, Any],
    scores: Mapping[str, pd.DataFrame],
    *,
    per_frame: Sequence[str],
    plots: str,
) -> None:
    """Writes the tables of frames, pictures, and last the scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, found in scores.items():
        model = f".{name}" if len(scores) > 1 else ""
        for kind in per_frame:
            if kind != "none":
                beside = path.with_name(f"{path.stem}{model}.{kind}")
                with files.replacing(beside) as temporary:
                    summary.write(found, temporary)
    if plots:
        from lsts_tf.scoring import page

        page.write(pathlib.Path(plots), result, scores)
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
        if name in result or name in (
            folders_lib.CENTRE,
            folders_lib.OBSERVERS,
        ):
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


def _refuse_idle(names: Sequence[str], why: str) -> None:
    """Raises ValueError if a flag is given that is not read."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if not given:
        return
    received = ", ".join(given[:_NAMED])
    if len(given) > _NAMED:
        received += f" and {len(given) - _NAMED} more"
    raise ValueError(f"{why} Received: {received}, which would do nothing.")


def _scoring(seed: int) -> scorer_lib.Settings:
    protocol = flags.FLAGS.protocol
    _refuse_idle(
        _OF_OTHER_PROTOCOLS[protocol],
        f"--protocol={protocol} has no metric that looks at every map: "
        "--sauc_map is of shuffled AUC, --baseline of information gain.",
    )
    found = {
        name: maps_lib.read(path)
        for name in _FIXED_MAPS
        if (path := flags.FLAGS[name].value)
    }
    return scorer_lib.Settings(
        protocol=protocol,
        seed=seed,
        negatives=found.get("sauc_map"),
        baseline=found.get("baseline"),
    )


def _folders_of_flags(
    models: Mapping[str, str], path: pathlib.Path
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
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
    if values.protocol == films_lib.PROTOCOL:
        _refuse_idle(
            (*_OF_ANNOTATED_FILES, *_OF_POINTS, *_FIXED_MAPS),
            f"--protocol={films_lib.PROTOCOL} reads films and lists of points.",
        )
        return films_lib.evaluate(
            models,
            values.annotations,
            videos=values.videos,
            seed=values.seed,
            first_frames=values.first_frames_count,
            allow_missing=values.allow_missing,
            workers=values.workers or cores.usable(),
        )
    if truth_lib.is_list(values.annotations):
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
    annotations = truth_lib.open_annotations(
        values.annotations,
        fixations=values.fixations,
        size=_size(values.map_size),
        recipe=values.density,
        sigma=values.sigma,
        videos=videos,
    )
    return folders_lib.evaluate(
        models,
        annotations,
        scoring=_scoring(values.seed),
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
            if values.protocol == films_lib.PROTOCOL:
                raise ValueError(
                    f"--protocol={films_lib.PROTOCOL} scores films of maps: "
                    "write them by `predict --outputs=msu` and name their "
                    "folder by --predictions."
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
        fixed = {
            name: {
                "file": values[name].value,
                "sha256": hashlib.sha256(
                    pathlib.Path(values[name].value).read_bytes()
                ).hexdigest(),
            }
            for name in _FIXED_MAPS
            if values[name].value
        }
        if fixed:
            result["fixed_maps"] = fixed
        write(
            path,
            result,
            scores,
            per_frame=values.per_frame,
            plots=values.plots,
        )
    sys.stdout.write(f"{summary.text(result)}\n{path}\n")


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
