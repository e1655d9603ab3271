"""One run of training, from its settings to its last epoch.

    resume · (train a step · log · save) · at an epoch's end: validate · save

At the end of an epoch the checkpoint comes first, then validation, models and,
last of all, the epoch's line in `metrics.jsonl`. A run that continues at the
end of an epoch whose line is missing validates again, so a kill at any moment
costs repeated work and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import signal
import time
from typing import Any

from absl import logging
import keras
import numpy as np
import tensorflow as tf
import tqdm

from lsts_tf import experiment
from lsts_tf.features import dataset, fill, preprocess, views
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.media import files
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.training import checkpoints, devices, input_pipeline, monitor
from lsts_tf.training import trainer as trainer_lib
from lsts_tf.training import validation as validation_lib

# Steps before a profile: the first ones compile.
WARM = 10
# Windows of the training set that are scored after each epoch, unchanged.
WATCHED = 256


@contextlib.contextmanager
def remembered_signals() -> Iterator[list[int]]:
    """Inside, collects the signal that asks the run to stop.

    A second one is not collected: it ends the process at once.
    """
    received: list[int] = []
    stopping = (signal.SIGTERM, signal.SIGINT)

    def remember(number: int, _: Any) -> None:
        received.append(number)
        for each in stopping:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, remember) for each in stopping}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclasses.dataclass(kw_only=True)
class Run:
    """One run of training; `note` is said on every picture."""

    settings: experiment.Experiment
    folder: pathlib.Path
    trainer: trainer_lib.Trainer
    training: input_pipeline.TrainingWindows
    validation: input_pipeline.StoredWindows
    data: dataset.Dataset
    note: str = ""

    def __post_init__(self) -> None:
        self._strategy = self.trainer.strategy
        self._is_chief = devices.is_chief(self._strategy)
        self._in_epoch = input_pipeline.steps_per_epoch(
            len(self.training), self.settings.batch_size
        )
        self._last_step = self._in_epoch * self.settings.epochs
        # Seconds of each step since the last log: waiting for data, and all.
        self._times: list[tuple[float, float]] = []
        self._checkpoints = checkpoints.Checkpoints(
            self.folder / "checkpoints",
            self.trainer.checkpoint(),
            keep=self.settings.keep,
            writes=self._is_chief,
        )

    def train(self) -> int:
        """Train to the end, or until asked to stop; returns the exit code."""
        first_step = self._resume()
        # The chief decides: others may not see its newest files yet.
        due = self._any_worker(
            self._is_chief and self._is_unvalidated(first_step)
        )
        self._watch = self._open_monitor(first_step)
        self._choose_pictures()
        with contextlib.closing(self._watch), remembered_signals() as received:
            if due:
                self._end_epoch(first_step)
            is_over = self._train_from(first_step, received)
        if not is_over:
            # Another worker may be the one that was asked.
            number = received[0] if received else signal.SIGTERM
            logging.warning(
                "Stopped by signal %d at step %d; the same command continues.",
                number,
                int(self.trainer.step.numpy()),
            )
            return 128 + number
        logging.info("Trained: %s", self.folder / "model.keras")
        return 0

    def _resume(self) -> int:
        """Restore the newest checkpoint; the step that it is of."""
        with devices.chief_first(self._strategy):
            self._checkpoints.restore()
        step = int(self.trainer.step.numpy())
        restored = devices.gathered(self._strategy, step)
        if len(set(restored)) > 1:
            steps = ", ".join(f"{each:g}" for each in restored)
            raise checkpoints.StoppedError(
                "All workers must continue from one checkpoint, so --run_dir "
                "must be a folder that all of them share. Received: "
                f"checkpoints of the steps {steps}, worker by worker; the "
                f"folder of this one is {self.folder.resolve()}. Give all of "
                "them the same folder on a file system that all machines see, "
                "and start all of them again."
            )
        logging.info(
            "Training on %d windows, %d steps of %d an epoch, from step %d to "
            "%d; validating on %d windows.",
            len(self.training),
            self._in_epoch,
            self.settings.batch_size,
            step,
            self._last_step,
            len(self.validation),
        )
        return step

    def _is_unvalidated(self, step: int) -> bool:
        """Whether an epoch ends at a step, and has no line of scores."""
        if not step or step % self._in_epoch:
            return False
        return all(record["step"] != step for record in self._records())

    def _records(self) -> list[dict[str, Any]]:
        """Lines of `metrics.jsonl`."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def _open_monitor(self, step: int) -> monitor.Monitor:
        watch = monitor.Monitor(
            self.folder / "logs" if self._is_chief else None,
            first_step=step,
            note=self.note,
        )
        watch.text(step, "experiment", self.settings.flagfile_text())
        watch.text(step, "environment", monitor.environment())
        watch.settings(step, dataclasses.asdict(self.settings))
        return watch

    def _choose_pictures(self) -> None:
        """A few validation windows, the same over the whole run."""
        count = self.settings.image_windows if self._is_chief else 0
        self._shown = self.validation.some(count).windows
        self._frames = monitor.frames_of(
            self.data,
            [
                (self.validation.videos[place], target)
                for place, target in self._shown.tolist()
            ],
        )

    def _train_from(self, first_step: int, received: list[int]) -> bool:
        """Train to the end, True; or until a worker is asked to stop."""
        steps = self._last_step - first_step
        if self.settings.profile_steps and steps <= WARM:
            logging.warning(
                "--profile_steps=%d writes no profile: the first %d steps are "
                "left out, and this run has %d. Raise --epochs, or leave the "
                "flag out.",
                self.settings.profile_steps,
                WARM,
                steps,
            )
        batches = self.training.training(
            devices.rows(
                self._strategy,
                self.settings.batch_size,
                self.settings.accumulate,
            ),
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            first_step=first_step,
            last_step=self._last_step,
        )
        with (
            contextlib.closing(batches),
            contextlib.ExitStack() as profile,
            tqdm.tqdm(
                total=self._last_step,
                initial=first_step,
                desc="training",
                unit="step",
                disable=not self._is_chief,
            ) as bar,
        ):
            begin = time.perf_counter()
            for step, blocks in enumerate(batches, first_step):
                waited = time.perf_counter() - begin
                self._profile(step - first_step - WARM, profile)
                if self.settings.graph and step == first_step:
                    self._watch.graph(self.trainer.graph(blocks))
                values = self._step(blocks, step)
                bar.update()
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                self._times.append((waited, time.perf_counter() - begin))
                self._log(step + 1, values)
                asked = self._any_worker(received)
                self._save(step + 1, at_once=asked)
                if asked:
                    return False
                if (step + 1) % self._in_epoch == 0:
                    self._end_epoch(step + 1)
                begin = time.perf_counter()
        return True

    def _profile(self, step: int, profile: contextlib.ExitStack) -> None:
        """Begin or end a profile; steps count from the first that may be."""
        count = self.settings.profile_steps if self._is_chief else 0
        if step == 0 < count:
            logs = str(self.folder / "logs")
            profile.enter_context(tf.profiler.experimental.Profile(logs))
        elif step == count:
            profile.close()

    def _step(
        self, blocks: Sequence[input_pipeline.Batch], step: int
    ) -> dict[str, float]:
        """Train one step, or stop before what is not finite is applied."""
        try:
            return self.trainer.train_step(blocks)
        except trainer_lib.NotFiniteError as error:
            chosen, _ = self.training.step(
                step,
                batch_size=self.settings.batch_size,
                seed=self.settings.seed,
            )
            labels = [
                input_pipeline.label(self.training.videos, window)
                for window in chosen.tolist()
            ]
            raise checkpoints.StoppedError(
                f"The loss or its gradient is not finite at step {step + 1}: "
                f"{error}. Its batch holds the windows (video:frame) "
                f"{files.named(labels, 8)}. The checkpoint before it is in "
                f"{self.folder / 'checkpoints'}; look at these windows, or "
                "lower --learning_rate."
            ) from error

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if step % self.settings.log_steps and step != self._last_step:
            return
        rate = {"learning_rate": self.trainer.learning_rate}
        self._watch.scalars(step, "train", {**values, **rate})
        waited, spent = map(sum, zip(*self._times, strict=True))
        count = len(self._times) * self.settings.batch_size
        speed = {
            "windows_a_second": count / spent,
            "share_of_waiting": waited / spent,
        }
        self._watch.scalars(step, "speed", speed)
        self._times.clear()

    def _save(self, step: int, *, at_once: bool) -> None:
        """Save where it is time to, or asked for."""
        every = (self._in_epoch, self.settings.checkpoint_steps)
        if at_once or any(step % each == 0 for each in every):
            # First what was logged: a checkpoint says that it was.
            self._watch.flush()
            self._checkpoints.save(step)

    def _any_worker(self, holds: Any) -> bool:
        """Whether something holds on any worker; all of them ask at once."""
        return bool(devices.total(self._strategy, bool(holds)) > 0)

    def _end_epoch(self, step: int) -> None:
        """Validate, log, and save the models."""
        with self.trainer.averaged():
            seen, scores = self._validate(step)
            if not self._is_chief:
                return
            self._watch.scalars(step, "train", seen)
            self._watch.scalars(step, "validation", scores)
            self._log_pictures(step)
            records = [r for r in self._records() if r["step"] < step]
            epoch = step // self._in_epoch
            logging.info(
                "Epoch %d: %s",
                epoch,
                ", ".join(f"{k} {v:.4f}" for k, v in scores.items()),
            )
            with checkpoints.writing(self.folder):
                save_model(self.trainer.model, self.folder / "model.keras")
                if is_best(scores["cc"], [r["cc"] for r in records]):
                    save_model(self.trainer.model, self.folder / "best.keras")
        if self.settings.histograms:
            weights = {v.path: v.numpy() for v in self.trainer.model.weights}
            self._watch.histograms(step, weights)
        self._watch.flush()
        records.append({"epoch": epoch, "step": step, **scores})
        with checkpoints.writing(self.folder):
            files.write_text(
                self.folder / "metrics.jsonl",
                "".join(json.dumps(record) + "\n" for record in records),
            )

    def _validate(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """Scores of some training windows, and of the mini-validation."""
        at_once = self.settings.batch_size // self.settings.accumulate
        seen: dict[str, float] = {}
        if isinstance(self.training, input_pipeline.StoredWindows):
            seen = validation_lib.validate(
                self.trainer, self.training.some(WATCHED), at_once
            )
            # The curve of the loss has every step.
            del seen["loss"]
        scorer = None
        if step == self._last_step:
            # Once, because these need the fixations of all frames.
            scorer = scorer_lib.Scorer(
                self.validation.fixations(),
                scorer_lib.Settings(seed=self.settings.seed),
            )
        scores = validation_lib.validate(
            self.trainer, self.validation, at_once, scorer=scorer
        )
        return seen, scores

    def _log_pictures(self, step: int) -> None:
        if not len(self._shown):
            return
        features, truth = self.validation.read(self._shown)
        target = np.asarray(preprocess.target(truth))[..., 0]
        maps = np.asarray(self.trainer.model(features, training=False))
        maps = maps[..., 0]
        if maps.ndim == 4:
            maps, target = maps[:, -1], target[:, -1]
        self._watch.pictures(step, self._frames, target, maps)


def is_best(score: float, before: Sequence[float]) -> bool:
    """Whether a score is above all before it that are numbers.

    Where none is, the newest counts, so that there always is a best one.
    """
    numbers = [value for value in before if not math.isnan(value)]
    return not numbers or score > max(numbers)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Write a `.keras` file, whole or not at all."""
    with files.replacing(path, lasting=True) as temporary:
        model.save(temporary)


# === From settings to a run ===


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
            stack.enter_context(files.alone(settings.folder))
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
            training = input_pipeline.LiveWindows(
                data,
                extractor,
                videos=train_videos,
                geometry=settings.geometry(settings.train_stride),
                flip=settings.flip,
                maps=settings.targets,
            )
        else:
            training = _stored(
                settings, data, extractor, train_videos, purpose="training"
            )
    trainer = trainer_lib.Trainer(
        settings,
        strategy,
        **shapes,
        front_end=extractor,
        encode=functools.partial(trainer_lib.encode_each, extractor)
        if live
        else None,
        steps=settings.epochs
        * input_pipeline.steps_per_epoch(len(training), settings.batch_size),
    )
    if init:
        trainer.start_from(init)
    return Run(
        settings=settings,
        folder=folder,
        trainer=trainer,
        training=training,
        validation=validation,
        data=data,
        note=extractor.note,
    ).train()


def claim_run_folder(
    settings: experiment.Experiment, *, writes: bool = True
) -> pathlib.Path:
    """The run folder; a process that writes has its flagfile there.

    Raises:
        ValueError: Another experiment lives there.
    """
    folder = settings.folder
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
