"""Train LSTS: makes the features that are missing, trains, saves, resumes.

    python -m lsts_tf.train --flagfile=experiments/rgb.flags
    python -m lsts_tf.train --flagfile=experiments/rgb.flags --dry_run

The run folder holds `experiment.flags`, `front_end.json` (what the features
come from), `checkpoints/`, `model.keras` (after the last epoch), `best.keras`
(highest CC of the mini-validation), `metrics.jsonl` and `logs/` for
TensorBoard. A killed run continues by the same command and ends as if it had
never been killed; SIGTERM and SIGINT save first and leave with 143 and 130. On
several machines the same command runs on each, and the first one writes.
"""

from collections.abc import Sequence
import contextlib
import json
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
import keras
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf import program
from lsts_tf.features import dataset
from lsts_tf.features import fill
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.features import views
from lsts_tf.media import files
from lsts_tf.training import devices
from lsts_tf.training import dry_run
from lsts_tf.training import input_pipeline
from lsts_tf.training import loop
from lsts_tf.training import trainer as trainer_lib


def run(settings: experiment.Experiment) -> int:
    """Train as `settings` say; returns the exit code."""
    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    trainer_lib.check_precision(settings)
    # Several workers find each other before anything else.
    strategy = devices.choose_strategy(settings.strategy)
    with devices.together(strategy), contextlib.ExitStack() as stack:
        if devices.is_chief(strategy):
            # Before anything there is taken for a dead run's and removed.
            stack.enter_context(files.alone(pathlib.Path(settings.run_dir)))
        return _run(settings, strategy)


def _run(
    settings: experiment.Experiment, strategy: tf.distribute.Strategy
) -> int:
    is_chief = devices.is_chief(strategy)
    with devices.chief_first(strategy):
        folder = claim_run_folder(settings, writes=is_chief)
    data = dataset.open_datasets(settings.dataset_names, settings.data_dir)
    train_videos, val_videos = input_pipeline.choose_videos(data, settings)
    live = settings.features == "live"
    # Only live features are computed by the replicas.
    with strategy.scope() if live else contextlib.nullcontext():
        extractor = front_end_lib.load(**settings.front_end_arguments())
    shapes: dict[str, Any] = {
        "feature_shape": extractor.decoder_shape,
        "skip_shapes": extractor.skip_shapes,
    }
    init = None
    if settings.init and not (folder / "checkpoints").exists():
        # Before days of extraction; a run that continues needs it no more.
        init = trainer_lib.read_init(settings, **shapes)
    with devices.chief_first(strategy):
        _describe_front_end(folder, extractor, writes=is_chief)
        validation = _stored(
            settings, data, extractor, val_videos, purpose="validation"
        )
        training: input_pipeline.TrainingWindows
        if live:
            training = _live(settings, data, extractor, train_videos)
        else:
            training = _stored(
                settings, data, extractor, train_videos, purpose="training"
            )
    trainer = trainer_lib.Trainer(
        settings,
        strategy,
        **shapes,
        networks=extractor.networks,
        encode=trainer_lib.live_encoder(extractor) if live else None,
        steps=settings.epochs
        * input_pipeline.steps_per_epoch(len(training), settings.batch_size),
    )
    if init:
        trainer.start_from(init)
    return loop.Run(
        settings,
        folder,
        trainer,
        training=training,
        validation=validation,
        data=data,
        note=extractor.note,
    ).train()


def claim_run_folder(
    settings: experiment.Experiment, *, writes: bool = True
) -> pathlib.Path:
    """The run folder, with this experiment's flagfile in it.

    Args:
        settings: The experiment.
        writes: Whether this process writes into it.

    Raises:
        ValueError: Another experiment lives there.
    """
    folder = pathlib.Path(settings.run_dir)
    flagfile = folder / experiment.FLAGFILE
    if flagfile.exists():
        there = experiment.load(flagfile)
        if differences := settings.differences(there):
            raise ValueError(
                f"Run folder {folder} belongs to another experiment: "
                + "; ".join(differences)
                + ". Choose another --run_dir, or remove the folder."
            )
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        # What `files.replacing` leaves of a process that was killed.
        for path in folder.glob(".*.[0-9]*.*"):
            path.unlink()
        settings.save(flagfile)
    return folder


def _describe_front_end(
    folder: pathlib.Path, extractor: front_end_lib.FrontEnd, *, writes: bool
) -> None:
    """Keep in the run folder what its features come from."""
    path = folder / front_end_lib.DESCRIPTION
    described = extractor.describe()
    if path.exists():
        there = json.loads(path.read_text())
        if differences := front_end_lib.differences(there, described):
            raise ValueError(
                f"{path} says that this run was trained on other features: "
                f"{differences} Or choose another --run_dir."
            )
    if writes:
        files.write_text(path, json.dumps(described, indent=2) + "\n")


def _stored(
    settings: experiment.Experiment,
    data: dataset.Dataset,
    extractor: front_end_lib.FrontEnd,
    videos: Sequence[dataset.Key],
    *,
    purpose: str,
) -> input_pipeline.StoredWindows:
    """Windows whose features are stored; made where they are missing."""
    stride = settings.val_stride
    others: Sequence[views.View] = ()
    if purpose == "training":
        stride = settings.train_stride
        others = views.chosen(flip=settings.flip, crops=settings.views)
    kept, *more = (
        fill.ready_stores(
            pathlib.Path(settings.store_dir),
            data,
            videos,
            extractor,
            stride=stride,
            purpose=purpose,
            short=settings.short_clips,
            view=view,
            command=settings.command("extract"),
        )
        for view in (views.WHOLE, *others)
    )
    return input_pipeline.StoredWindows(
        kept.features,
        kept.truth,
        videos=videos,
        geometry=settings.geometry(stride),
        others={found.view: found.features for found in more},
        maps=settings.targets,
    )


def _live(
    settings: experiment.Experiment,
    data: dataset.Dataset,
    extractor: front_end_lib.FrontEnd,
    videos: Sequence[dataset.Key],
) -> input_pipeline.LiveWindows:
    """Windows of frames and flows, computed as they stream."""
    return input_pipeline.LiveWindows(
        data,
        videos=videos,
        streams=settings.streams,
        geometry=settings.geometry(settings.train_stride),
        flows=lambda video: extractor.flows(video.frames()),
        flip=settings.flip,
        size=extractor.size,
        maps=settings.targets,
    )


def define_flags() -> None:
    """Define the flags that are not settings of an experiment."""
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Count windows, steps, gigabytes and parameters; train nothing.",
    )


def main(_: Sequence[str]) -> None:
    """Train as the flags say."""
    settings = experiment.from_flags(flags.FLAGS)
    if settings.deterministic:
        # The order of sums depends on it.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with program.exit_codes():
        if flags.FLAGS.dry_run:
            for line in dry_run.lines(settings):
                sys.stdout.write(line + "\n")
            return
        sys.exit(run(settings))


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
