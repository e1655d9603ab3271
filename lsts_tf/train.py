"""Train LSTS: makes the features that are missing, trains, saves, resumes.

    python -m lsts_tf.train --flagfile=experiments/rgb.flags
    python -m lsts_tf.train --flagfile=experiments/rgb.flags --dry_run

The run folder holds `experiment.flags`, `front_end.json` (what the features
come from), `checkpoints/`, `model.keras` (after the last epoch), `best.keras`
(highest CC of the mini-validation), `metrics.jsonl` and `logs/` for
TensorBoard. A killed run goes on where its last checkpoint stands by the same
command, and ends as if it had never been killed; SIGTERM and SIGINT save first
and leave with 143 and 130. On several machines the same command runs on each
(`devices`), and the first one writes.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import sys
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import keras
import numpy as np
import tensorflow as tf
import tqdm

from lsts_tf import experiment
from lsts_tf import program
from lsts_tf.features import dataset
from lsts_tf.features import fill
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.features import preprocess
from lsts_tf.features import views
from lsts_tf.media import files
from lsts_tf.scoring import metrics
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import truth as truth_lib
from lsts_tf.training import checkpoints
from lsts_tf.training import devices
from lsts_tf.training import forecast
from lsts_tf.training import input_pipeline
from lsts_tf.training import monitor
from lsts_tf.training import trainer as trainer_lib

Training = input_pipeline.StoredWindows | input_pipeline.LiveWindows

# What the mini-validation reports besides the loss.
VALIDATION_METRICS = ("auc_judd", "nss", "cc", "sim", "kld")
# Steps before a profile: the first ones compile.
WARM = 10
# What `files.replacing` leaves of a process that was killed.
UNFINISHED = ".*.[0-9]*.*"
# Windows that an error names.
NAMED = 8
# Windows of the training set that are scored after each epoch, unchanged.
WATCHED = 256
# Curves with a point at each step; all others are of the ends of epochs.
OF_STEPS = ("train/loss", "train/gradient_norm", "train/learning_rate")
# Names the step that was saved without its validation.
DUE = "validation.due"


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
        for path in folder.glob(UNFINISHED):
            path.unlink()
        settings.save(flagfile)
    return folder


class _Signals:
    """Remembers, while it is entered, that the run was asked to stop."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: Any) -> None:
        if self.received is not None:
            # Asked twice: do not insist on saving.
            if number == signal.SIGTERM:
                raise program.Terminated
            raise KeyboardInterrupt
        self.received = number


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
    with devices.chief_first(strategy):
        folder = claim_run_folder(settings, writes=devices.is_chief(strategy))
    data = dataset.open_datasets(settings.dataset_names, settings.data_dir)
    train_videos = data.choose(
        data.numbers(settings.videos("train_videos"), otherwise="train"),
        "training",
        settings.geometry(),
    )
    val_videos = data.choose(
        data.numbers(settings.videos("val_videos")),
        "validation",
        settings.geometry(),
    )
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
        # Before days of extraction; a run that goes on needs it no more.
        init = trainer_lib.read_init(settings, **shapes)
    with devices.chief_first(strategy):
        _describe_front_end(
            folder, extractor, writes=devices.is_chief(strategy)
        )
        validation = _stored(
            settings,
            data,
            extractor,
            val_videos,
            settings.val_stride,
            "validation",
        )
        training: Training
        if live:
            training = input_pipeline.LiveWindows(
                data,
                videos=train_videos,
                streams=settings.streams,
                geometry=settings.geometry(settings.train_stride),
                flows=lambda video: extractor.flows(video.frames()),
                flip=settings.flip,
                size=extractor.size,
                maps=settings.targets,
            )
        else:
            training = _stored(
                settings,
                data,
                extractor,
                train_videos,
                settings.train_stride,
                "training",
                others=views.chosen(flip=settings.flip, crops=settings.views),
            )
    steps = settings.epochs * input_pipeline.steps_per_epoch(
        len(training), settings.batch_size
    )
    trainer = trainer_lib.Trainer(
        settings,
        strategy,
        **shapes,
        networks=extractor.networks,
        encode=trainer_lib.live_encoder(extractor) if live else None,
        steps=steps,
    )
    if init:
        trainer.start_from(init)
    return _train(
        settings, folder, trainer, training, validation, data, extractor.note
    )


def _stored(
    settings: experiment.Experiment,
    data: dataset.Dataset,
    extractor: front_end_lib.FrontEnd,
    videos: Sequence[int],
    stride: int,
    purpose: str,
    *,
    others: Sequence[views.View] = (),
) -> input_pipeline.StoredWindows:
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


def _train(
    settings: experiment.Experiment,
    folder: pathlib.Path,
    trainer: trainer_lib.Trainer,
    training: Training,
    validation: input_pipeline.StoredWindows,
    data: dataset.Dataset,
    note: str,
) -> int:
    chief = devices.is_chief(trainer.strategy)
    in_epoch = input_pipeline.steps_per_epoch(
        len(training), settings.batch_size
    )
    last_step = in_epoch * settings.epochs
    saved = checkpoints.Checkpoints(
        folder / "checkpoints",
        trainer.checkpoint(),
        keep=settings.keep,
        writes=chief,
    )
    with devices.chief_first(trainer.strategy):
        saved.restore()
    first_step = int(trainer.step.numpy())
    restored = (first_step, trainer.checksum())
    _require_agreement(folder, devices.gathered(trainer.strategy, restored))
    logging.info(
        "Training on %d windows, %d steps of %d an epoch, from step %d to %d; "
        "validating on %d windows.",
        len(training),
        in_epoch,
        settings.batch_size,
        first_step,
        last_step,
        len(validation),
    )
    watched = None
    if isinstance(training, input_pipeline.StoredWindows):
        watched = training.some(WATCHED)
    logs = folder / "logs"
    due = folder / DUE
    is_due = due.exists() and due.read_text() == str(first_step)
    # The chief's word counts, whatever the others see yet.
    is_due = bool(devices.gathered(trainer.strategy, [is_due])[0, 0])
    watch = monitor.Monitor(
        logs if chief else None,
        first_step=first_step,
        note=note,
        again=_is_of_epochs if is_due else None,
    )
    watch.text(first_step, "experiment", settings.flagfile_text())
    watch.text(first_step, "environment", monitor.environment())
    watch.settings(first_step, dataclasses.asdict(settings))
    pictures = _Pictures(
        settings.image_windows if chief else 0, validation, data
    )
    profile = monitor.Profile(
        logs,
        first=first_step + WARM,
        count=settings.profile_steps if chief else 0,
    )
    if chief and settings.profile_steps and last_step - first_step <= WARM:
        logging.warning(
            "--profile_steps=%d writes no profile: the first %d steps are "
            "left out, and this run has %d. Raise --epochs, or leave it out.",
            settings.profile_steps,
            WARM,
            last_step - first_step,
        )
    clock = _Clock(settings.batch_size)
    at_once = settings.batch_size // settings.accumulate
    step = first_step
    with (
        contextlib.closing(saved),
        contextlib.closing(watch),
        contextlib.closing(profile),
        input_pipeline.own_errors(training, validation),
        _Signals() as signals,
        tqdm.tqdm(
            total=last_step,
            initial=first_step,
            desc="training",
            unit="step",
            disable=not chief,
        ) as bar,
    ):

        def asks() -> bool:
            received = signals.received or 0
            if devices.worker_count(trainer.strategy) == 1:
                # Alone, one need not ask the others.
                return received > 0
            return trainer.stops(received)

        def end_epoch(step: int) -> bool:
            """Validate, log, save models; False if asked to stop."""
            scorer = None
            if step == last_step:
                # Once, because these need the fixations of all frames.
                scorer = scorer_lib.Scorer(
                    validation.fixations(),
                    scorer_lib.Settings(seed=settings.seed),
                )
            with trainer.averaged():
                seen = {}
                try:
                    if watched:
                        seen = validate(trainer, watched, at_once, asks=asks)
                        # The curve of the loss has every step.
                        del seen["loss"]
                    scores = validate(
                        trainer, validation, at_once, scorer, asks=asks
                    )
                except _AskedToStopError:
                    return False
                if chief:
                    watch.scalars(
                        step, {f"train/{k}": v for k, v in seen.items()}
                    )
                    _finish_epoch(
                        folder, trainer, watch, scores, step, in_epoch
                    )
                    pictures.show(watch, trainer, step)
            if chief and settings.histograms:
                watch.histograms(
                    step,
                    {v.path: v.numpy() for v in trainer.model.weights},
                )
            return True

        if is_due:
            clock.pause()
            if not end_epoch(step):
                return _stopped(signals, step)
            # Only now: a kill before this makes all of it again.
            watch.flush()
            if chief:
                due.unlink()
        batches = devices.distribute(
            trainer.strategy,
            lambda part: training.training(
                batch_size=settings.batch_size,
                seed=settings.seed,
                first_step=first_step,
                last_step=last_step,
                part=part,
            ),
        )
        for batch in clock.waiting(batches):
            profile.before(step)
            if chief and settings.graph and not watch.has_graph:
                watch.graph(trainer.graph(batch))
            values = trainer.train_step(batch, stop=signals.received or 0)
            asked = values.pop("stop") > 0
            _require_finite(settings, folder, training, step, values)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            if step % settings.log_steps == 0 or step == last_step:
                rate = trainer.learning_rate
                watch.scalars(
                    step,
                    {f"train/{k}": v for k, v in values.items()}
                    | {"train/learning_rate": rate}
                    | clock.read(),
                )
            clock.pause()
            ends_epoch = step % in_epoch == 0
            is_whole = not ends_epoch or end_epoch(step)
            if devices.worker_count(trainer.strategy) == 1:
                # Alone, one need not ask the others.
                asked = signals.received is not None
            stops = not is_whole or (asked and step < last_step)
            if chief and not is_whole:
                with checkpoints.writing(folder):
                    files.write_text(due, str(step))
            if ends_epoch or stops or step % settings.checkpoint_steps == 0:
                # First what was logged: a checkpoint says that it was.
                watch.flush()
                saved.save(step)
            if chief and ends_epoch and is_whole:
                # Of a run that was killed between the mark and the saving.
                due.unlink(missing_ok=True)
            if stops:
                return _stopped(signals, step)
    logging.info("Trained: %s", folder / "model.keras")
    return 0


class _AskedToStopError(Exception):
    """A worker was asked to stop while all of them validate."""


def _stopped(signals: _Signals, step: int) -> int:
    """Say so; the exit code."""
    # Another worker may be the one that was asked.
    received = signals.received or signal.SIGTERM
    logging.warning(
        "Stopped by signal %d at step %d; the same command goes on.",
        received,
        step,
    )
    return 128 + received


def _is_of_epochs(tag: str) -> bool:
    return tag not in OF_STEPS and not tag.startswith("speed/")


def _require_agreement(folder: pathlib.Path, restored: np.ndarray) -> None:
    """Stop where workers do not go on from the same checkpoint.

    Args:
        folder: This worker's run folder.
        restored: Step and checksum of each worker, float64 [workers, 2].

    Raises:
        StoppedError: They differ.
    """
    each = [(int(step), int(checksum)) for step, checksum in restored]
    if len(set(each)) == 1:
        return
    told = "; ".join(
        f"worker {number}: step {step}, checksum {checksum:08x}"
        for number, (step, checksum) in enumerate(each)
    )
    raise checkpoints.StoppedError(
        "All workers must go on from one checkpoint, so --run_dir must be a "
        f"folder that all of them share. Restored by {told}. This worker's is "
        f"{folder.resolve()}. Give all of them the same folder on a file "
        "system that all machines see, and start all of them again."
    )


def _require_finite(
    settings: experiment.Experiment,
    folder: pathlib.Path,
    training: Training,
    step: int,
    values: Mapping[str, float],
) -> None:
    """Stop before weights that are not finite reach a checkpoint."""
    checked = dict(values)
    if settings.precision == "mixed_float16":
        # Loss scaling skips the steps whose gradient overflows.
        del checked["gradient_norm"]
    if all(map(math.isfinite, checked.values())):
        return
    chosen = training.step_windows(
        batch_size=settings.batch_size, seed=settings.seed, step=step
    ).tolist()
    named = ", ".join(
        input_pipeline.label(training.videos, each) for each in chosen[:NAMED]
    )
    if len(chosen) > NAMED:
        named += f" and {len(chosen) - NAMED} more"
    raise checkpoints.StoppedError(
        f"The loss or its gradient is not finite at step {step + 1}: "
        f"{values}. Its batch holds the windows (video:frame) {named}. The "
        f"checkpoint before it stands in {folder / 'checkpoints'}; look at "
        "these windows, or lower --learning_rate."
    )


def validate(
    trainer: trainer_lib.Trainer,
    validation: input_pipeline.StoredWindows,
    batch_size: int,
    scorer: scorer_lib.Scorer | None = None,
    *,
    asks: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Loss and scores of the mini-validation, means over its windows.

    Scores are those of `evaluate`, on maps of 8 bits. Each worker scores the
    windows of its replicas, and every worker gets the means.

    Args:
        trainer: The model.
        validation: The windows.
        batch_size: Windows at a time, over all replicas.
        scorer: Of `validation.fixations()`, for all of the benchmark's
            metrics; without it those that need no other frames.
        asks: Whether a worker was asked to stop, the same on all of them.

    Raises:
        _AskedToStopError: One was; looked at before each batch.
    """
    names = ("loss", *(scorer.metrics if scorer else VALIDATION_METRICS))
    found = np.zeros((len(names), len(validation)))
    batches = devices.distribute(
        trainer.strategy,
        lambda part: validation.in_order(batch_size, part=part),
    )
    for batch, weight, place in batches:
        if asks():
            raise _AskedToStopError
        maps, loss = trainer.predict(batch)
        real = trainer.local(weight) > 0
        if not real.any():
            continue
        numbers = trainer.local(place)[real]
        # Each frame is scored, of several maps of a window too.
        levels = preprocess.to_uint8(maps)[real]
        levels = levels.reshape(-1, *levels.shape[-2:])
        truth = trainer.local(batch[1])[real]
        truth = truth.reshape(-1, *truth.shape[-3:])
        frames = validation.frames(validation.windows[numbers])
        each = [
            _scores(pair, map_, both, scorer)
            for pair, map_, both in zip(frames, levels, truth, strict=True)
        ]
        found[0, numbers] = loss[real]
        for row, name in enumerate(names[1:], start=1):
            values = np.array([scores[name] for scores in each])
            values = values.reshape(len(numbers), -1)
            found[row, numbers] = np.nanmean(values, axis=1)
    totals = devices.total(trainer.strategy, found)
    means = map(float, np.nanmean(totals, axis=1))
    return dict(zip(names, means, strict=True))


def _scores(
    pair: tuple[int, int],
    map_: np.ndarray,
    truth: np.ndarray,
    scorer: scorer_lib.Scorer | None,
) -> dict[str, float]:
    """Scores of a (video, frame); truth is uint8 [H, W, 2]."""
    if scorer is not None:
        return scorer.score(scorer.fixations.row(*pair), map_, truth[..., 0])
    return metrics.score(
        map_,
        truth[..., 0],
        truth_lib.coordinates(truth[..., 1]),
        metrics=VALIDATION_METRICS,
    )


def _finish_epoch(
    folder: pathlib.Path,
    trainer: trainer_lib.Trainer,
    watch: monitor.Monitor,
    scores: Mapping[str, float],
    step: int,
    in_epoch: int,
) -> None:
    """Log the scores; save the model, and the best one so far."""
    epoch = step // in_epoch
    watch.scalars(step, {f"validation/{k}": v for k, v in scores.items()})
    logging.info(
        "Epoch %d: %s",
        epoch,
        ", ".join(f"{k} {v:.4f}" for k, v in scores.items()),
    )
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # A run that was killed after this line says it again.
    before = [r for r in map(json.loads, lines) if r["step"] < step]
    records = [*before, {"epoch": epoch, "step": step, **scores}]
    with checkpoints.writing(folder):
        save_model(trainer.model, folder / "model.keras")
        if _is_best(scores["cc"], [r["cc"] for r in before]):
            save_model(trainer.model, folder / "best.keras")
        files.write_text(path, "".join(json.dumps(r) + "\n" for r in records))


def _is_best(score: float, before: Sequence[float]) -> bool:
    """Whether a score is above all before it that are numbers.

    Where none is, the newest counts, so that there always is a best one.
    """
    numbers = [value for value in before if not math.isnan(value)]
    return not numbers or score > max(numbers)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Write a `.keras` file, whole or not at all."""
    with files.replacing(path, lasting=True) as temporary:
        model.save(temporary)


class _Clock:
    """Windows a second, and the share of time spent waiting for data.

    From a pause until the next batch is asked for, no time passes.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._paused: float | None = None
        self._waited = 0.0
        self._steps = 0

    def pause(self) -> None:
        self._paused = time.perf_counter()

    def waiting(self, batches: Any) -> Iterator[Any]:
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            if self._paused is not None:
                self._start += before - self._paused
                self._paused = None
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            self._steps += 1
            yield batch

    def read(self) -> dict[str, float]:
        """Figures since the last reading."""
        spent = time.perf_counter() - self._start
        values = {
            "speed/windows_a_second": self._steps * self._batch_size / spent,
            "speed/share_of_waiting": self._waited / spent,
        }
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0
        return values


class _Pictures:
    """A few validation windows, the same over the whole run."""

    def __init__(
        self,
        count: int,
        validation: input_pipeline.StoredWindows,
        data: dataset.Dataset,
    ) -> None:
        count = min(count, len(validation))
        rows = np.linspace(0, len(validation) - 1, count).astype(int)
        self._chosen = validation.windows[rows]
        self._frames = monitor.frames_of(
            data,
            [(validation.videos[place], t) for place, t in self._chosen],
        )
        self._validation = validation

    def show(
        self, watch: monitor.Monitor, trainer: trainer_lib.Trainer, step: int
    ) -> None:
        if not self._frames:
            return
        features, truth = self._validation.read(self._chosen)
        target = np.asarray(preprocess.target(truth))[..., 0]
        if target.ndim == 4:
            target = target[:, -1]
        watch.pictures(step, self._frames, target, trainer.maps(features))


def main(_: Sequence[str]) -> None:
    """Train as the flags say."""
    settings = experiment.from_flags(flags.FLAGS)
    if settings.deterministic:
        # The order of sums depends on it.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with program.exit_codes():
        if flags.FLAGS.dry_run:
            for line in forecast.lines(settings):
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            return
        sys.exit(run(settings))


if __name__ == "__main__":
    experiment.define_flags()
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Say what would happen and what it takes, by a short measurement, "
        "and leave without training.",
    )
    app.run(main)
