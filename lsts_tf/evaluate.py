"""Score saliency maps: those of a trained model, or any in files.

    python -m lsts_tf.evaluate --flagfile=RUN/experiment.flags
    python -m lsts_tf.evaluate --dataset=osie --test_videos=1001-1700/7
    python -m lsts_tf.evaluate --predictions=DIR --annotations=DIR
    python -m lsts_tf.evaluate --compare A B C --annotations=DIR

The first scores a run on `--test_videos`, the second the starter, the trained
model that comes with the package; the others score folders of maps. They write
`scores.json` (see `summary.report`), a table of all frames beside it, and, with
`--plots`, pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
import pathlib
import sys
from typing import Any

from absl import app, flags
import pandas as pd

from lsts_tf import experiment, option, program, windows
from lsts_tf.media import images
from lsts_tf.scoring import films, folders, metrics, scorer, summary, truth

# Flags that only one of the ways to score reads. With another one they would
# silently do nothing, so they are refused.
_OF_FOLDERS = (
    *("videos", "allow_missing", "workers", "first_frames_count"),
    *truth.FLAGS,
)
_OF_A_RUN = (
    "model",
    *(n for n in experiment.Experiment.__dataclass_fields__ if n != "seed"),
)
_FIXED_MAPS = ("sauc_map", "baseline")
_FLAGS: Mapping[str, Any] = {
    "output": option.field(
        "",
        "File for the scores; by default scores.json, in the run's folder if a "
        "run is scored.",
    ),
    "predictions": option.field("", "Folder of maps of any model."),
    "compare": option.field(
        (),
        "Folders of maps of several models, to be ranked; NAME=FOLDER names "
        "one. More may follow as arguments.",
    ),
    **experiment.MODEL_FLAG,
    "protocol": option.field(
        "dhf1k",
        "Definitions to score by; see lsts_tf.scoring.metrics.",
        choices=(*metrics.PROTOCOLS, films.PROTOCOL),
    ),
    "videos": option.field(
        "",
        "Videos to score, such as 601-700, or a split; by default, all.",
    ),
    "sauc_map": option.field(
        "",
        "A map (PNG or NPY) whose pixels above 0 are the negatives of "
        "shuffled AUC; by default they are drawn as in the benchmark.",
    ),
    "baseline": option.field(
        "",
        "A map (PNG or NPY) for information gain; by default the centre prior.",
    ),
    "plots": option.field("", "Folder for plots and a page that shows them."),
    "allow_missing": option.field(
        False, "Score what is there if files are missing or cannot be read."
    ),
    "workers": option.field(
        0, "Number of processes; 0 for one per core.", least=0
    ),
    "first_frames_count": option.field(
        78,
        "Number of first frames of each video to score separately, too.",
        least=0,
    ),
    **truth.FLAGS,
}


def define_flags() -> None:
    """Flags of this program."""
    option.define_flags(_FLAGS)
    flags.DEFINE_multi_enum(
        "per_frame",
        ["csv"],
        ["csv", "parquet", "none"],
        "Format of the table of all frames.",
    )


def evaluate(
    settings: experiment.Experiment,
    *,
    model: str = "last",
    scoring: scorer.Settings | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What `scores.json` holds, and the scores of each frame, of a run.

    Frames without a window (the first 78 or 79) get a copy of the first map
    that exists (LSTS report, section 5.3).
    """
    # TensorFlow takes seconds to import, and folders need none of it.
    from lsts_tf import predictor as predictor_lib
    from lsts_tf.features import dataset, fill

    scoring = scoring or scorer.Settings(seed=settings.seed)
    named = settings.videos("test_videos")
    if len(named) > 1:
        raise ValueError(
            "One dataset is scored at a time. Received: --test_videos="
            f"{settings.test_videos}"
        )
    names = settings.dataset_names
    name = next((n for n in names if n.partition(":")[0] in named), names[0])
    predictor = predictor_lib.Predictor.load(
        settings.folder, model=model, sources=settings.sources
    )
    data = dataset.Dataset(name, settings.data_dir)
    numbers = frozenset[int]().union(*named.values())
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
    ours, centre = scorer.score_videos(
        videos, kept.truth, lambda v: predictor.of_stores(kept, v), scoring
    )
    scores = pd.DataFrame(ours)
    is_mirrored = settings.short_clips == "mirror"
    result = summary.report(
        scores,
        pd.DataFrame(centre),
        first_frames=predictor.first_map,
        filled_by="copy of the first map"
        + "; short clips are mirrored" * is_mirrored,
        scoring=scoring,
        about={
            "model": model,
            "run": settings.run_name,
            "dataset": data.name,
            "videos": settings.test_videos,
            "front_end": predictor.extractor.describe(),
            "note": predictor.note,
        },
    )
    return result, scores


def evaluate_folders(
    models: Sequence[str], scoring: scorer.Settings
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The same of folders of maps, each by its name."""
    values = flags.FLAGS
    if scoring.protocol == films.PROTOCOL:
        return films.from_flags(values, folders.named(models))
    videos = windows.parse_ranges(values.videos)
    return folders.evaluate(
        folders.named(models),
        truth.from_flags(values, videos),
        scoring=scoring,
        videos=videos,
        first_frames=values.first_frames_count,
        allow_missing=values.allow_missing,
        workers=values.workers or len(os.sched_getaffinity(0)),
    )


def _refuse(names: Iterable[str], why: str) -> None:
    """Raises ValueError if a flag is given that is not read."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if given:
        raise ValueError(
            f"{why} Received: {', '.join(given)}, which would do nothing."
        )


def _scoring(seed: int) -> scorer.Settings:
    values = flags.FLAGS
    return scorer.Settings(
        protocol=values.protocol,
        seed=seed,
        negatives=images.read(values.sauc_map) if values.sauc_map else None,
        baseline=images.read(values.baseline) if values.baseline else None,
    )


def main(arguments: Sequence[str]) -> None:
    """Evaluate as the flags say."""
    values = flags.FLAGS
    models = [*filter(None, [values.predictions]), *values.compare]
    models += arguments[1:]
    place = pathlib.Path()
    with program.terminable(), program.exit_codes():
        if models:
            _refuse(_OF_A_RUN, "Folders of maps are scored without a run.")
            result, scores = evaluate_folders(models, _scoring(values.seed))
        else:
            _refuse(_OF_FOLDERS, "A run is scored on all of --test_videos.")
            films.refuse_run(values.protocol)
            run = experiment.chosen_run(values)
            is_given = values["seed"].present
            scoring = _scoring(values.seed if is_given else run.seed)
            result, of_run = evaluate(run, model=values.model, scoring=scoring)
            scores = {"scores": of_run}
            is_of_hub = values.run_dir.startswith(experiment.HUB)
            # Neither into the package nor into a cache.
            if run.folder != experiment.STARTER and not is_of_hub:
                place = run.folder
        result["fixed_maps"] = {n: values[n].value for n in _FIXED_MAPS}
        path = pathlib.Path(values.output or place / "scores.json")
        if values.plots:
            # Matplotlib takes a second to import.
            from lsts_tf.scoring import page

            page.write(pathlib.Path(values.plots), result, scores)
        summary.write(path, result, scores, values.per_frame)
    sys.stdout.write(f"{summary.text(result)}\n{path}\n")


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
