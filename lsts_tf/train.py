"""Train LSTS: makes the features that are missing, trains, saves, resumes.

    python -m lsts_tf.train --flagfile=experiments/rgb.flags

The run folder holds `experiment.flags`, `front_end.json` (what the features
come from), `checkpoints/`, `model.keras` (after the last epoch), `best.keras`
(highest CC of the mini-validation), `metrics.jsonl` and `logs/` for
TensorBoard. A killed run goes on where its last checkpoint stands by the same
command; SIGTERM and SIGINT save first and leave with 143 and 130.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
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

from lsts_tf import dataset
from lsts_tf import decoder
from lsts_tf import experiment
from lsts_tf import extractor as extractor_lib
from lsts_tf import files
from lsts_tf import input_pipeline
from lsts_tf import joint
from lsts_tf import losses
from lsts_tf import metrics
from lsts_tf import monitor
from lsts_tf import optimizers
from lsts_tf import preprocess
from lsts_tf import program

Batch = tuple[Mapping[str, Any], Any]

# What the mini-validation reports besides the loss.
VALIDATION_METRICS = ("auc_judd", "nss", "cc", "sim", "kld")


class StoppedError(RuntimeError):
    """A run cannot go on; its last good checkpoint stands."""


class Trainer:
    """A decoder, its optimiser, and one step of training.

    Args:
        settings: The experiment.
        strategy: Devices to train on.
        feature_shape: Shape of a feature, [5, 5, 5, 1024].
        encode: What turns a batch's inputs into features; None where they are
            features already.

    Raises:
        ValueError: The batch cannot be shared evenly by the replicas.
    """

    def __init__(
        self,
        settings: experiment.Experiment,
        strategy: tf.distribute.Strategy,
        *,
        feature_shape: Sequence[int],
        encode: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        replicas = strategy.num_replicas_in_sync
        if settings.batch_size % replicas:
            raise ValueError(
                f"--batch_size must be a multiple of the {replicas} replicas. "
                f"Received: {settings.batch_size}"
            )
        self.strategy = strategy
        self._encode = encode or (lambda inputs: inputs)
        self._loss = losses.weighted(settings.loss)
        with strategy.scope():
            self.model = decoder.build(
                settings.streams,
                head=settings.head,
                feature_shape=tuple(feature_shape),
                synchronized=replicas > 1,
                dtype=settings.precision,
                seed=settings.seed,
            )
            self.optimizer = _optimizer(settings)
            self.optimizer.build(self.model.trainable_variables)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._train = tf.function(self._distributed_step)
        self._predict = tf.function(self._distributed_predict)

    def checkpoint(self) -> tf.train.Checkpoint:
        """Everything that the next step depends on.

        Variables are listed: handing over the model leaves out the state of
        seed generators.
        """
        return tf.train.Checkpoint(
            model=[v.value for v in self.model.variables],
            optimizer=[v.value for v in self.optimizer.variables],
            step=self.step,
        )

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One update; returns the loss and the gradient's norm before it."""
        loss, norm = self._train(batch)
        return {"loss": float(loss), "gradient_norm": float(norm)}

    def predict(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Maps float32 [B, 360, 640] and losses float32 [B] of features."""
        maps, loss = self._predict(batch)
        results = self.strategy.experimental_local_results
        return (
            np.concatenate([m.numpy() for m in results(maps)])[..., 0],
            np.concatenate([x.numpy() for x in results(loss)]),
        )

    def _distributed_step(self, batch: Batch) -> tuple[Any, Any]:
        loss, norm = self.strategy.run(self._replica_step, args=batch)
        self.step.assign_add(1)
        total = self.strategy.reduce("SUM", loss, axis=None)
        return total, self.strategy.reduce("MEAN", norm, axis=None)

    def _replica_step(
        self, inputs: Mapping[str, Any], truth: Any
    ) -> tuple[Any, Any]:
        context = tf.distribute.get_replica_context()
        count = context.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.cast(tf.shape(truth)[0], tf.float32)
        )
        features = self._encode(inputs)
        target = preprocess.target(truth)
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            maps = self.model(features, training=True)
            # The mean over the whole batch, whatever the replicas' shares.
            loss = tf.reduce_sum(self._loss(target, maps)) / count
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        self.optimizer.apply(gradients, variables)
        return loss, tf.linalg.global_norm(gradients)

    def _distributed_predict(self, batch: Batch) -> tuple[Any, Any]:
        return self.strategy.run(self._replica_predict, args=batch)

    def _replica_predict(
        self, inputs: Mapping[str, Any], truth: Any
    ) -> tuple[Any, Any]:
        maps = self.model(inputs, training=False)
        return maps, self._loss(preprocess.target(truth), maps)


def _optimizer(settings: experiment.Experiment) -> keras.optimizers.Optimizer:
    rate: Any = settings.learning_rate
    if settings.lr_halving_steps:
        rate = optimizers.halving(rate, steps=settings.lr_halving_steps)
    optimizer = optimizers.RMSprop(rate, l2=settings.weight_decay)
    if settings.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def live_encoder(
    extractor: extractor_lib.Extractor,
) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Windows of frames and flows to features, one window at a time.

    One at a time, because the first layers of a window take half a gigabyte.
    """

    def encode(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {
            stream: keras.ops.map(
                lambda clip, s=stream: extractor.encode(s, clip), clips
            )
            for stream, clips in inputs.items()
        }

    return encode


@functools.cache
def choose_strategy(name: str) -> tf.distribute.Strategy:
    """The devices of `--strategy`.

    "auto" is one device, or a MirroredStrategy over all GPUs where there are
    several; "mirrored" mirrors over all GPUs or, without any, over all
    logical CPUs. One strategy a process: a second one's collectives would
    be taken for the first one's.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([d.name for d in devices])


def claim_run_folder(settings: experiment.Experiment) -> pathlib.Path:
    """The run folder, with this experiment's flagfile in it.

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
    folder.mkdir(parents=True, exist_ok=True)
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
            raise KeyboardInterrupt
        self.received = number


def run(settings: experiment.Experiment) -> int:
    """Train as `settings` say; returns the exit code."""
    folder = claim_run_folder(settings)
    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = choose_strategy(settings.strategy)
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
    with strategy.scope():
        extractor = extractor_lib.Extractor(**settings.front_end_arguments())
    _describe_front_end(folder, extractor)

    validation = _stored(
        settings, data, extractor, val_videos, settings.val_stride, "validation"
    )
    training: input_pipeline.StoredWindows | input_pipeline.LiveWindows
    encode = None
    if settings.features == "stored":
        training = _stored(
            settings,
            data,
            extractor,
            train_videos,
            settings.train_stride,
            "training",
        )
    else:
        encode = live_encoder(extractor)
        training = input_pipeline.LiveWindows(
            data,
            videos=train_videos,
            streams=settings.streams,
            geometry=settings.geometry(settings.train_stride),
            flows=lambda video: extractor.flows(video.frames()),
        )
    trainer = Trainer(
        settings,
        strategy,
        feature_shape=extractor.feature_shape,
        encode=encode,
    )
    return _train(
        settings,
        folder,
        trainer,
        training,
        validation,
        data,
        extractor.note,
    )


def _stored(
    settings: experiment.Experiment,
    data: dataset.Dataset,
    extractor: extractor_lib.Extractor,
    videos: Sequence[int],
    stride: int,
    purpose: str,
) -> input_pipeline.StoredWindows:
    kept = joint.ready_stores(
        pathlib.Path(settings.store_dir),
        data,
        videos,
        extractor,
        stride=stride,
        purpose=purpose,
        short=settings.short_clips,
    )
    return input_pipeline.StoredWindows(
        kept.features,
        kept.truth,
        videos=videos,
        geometry=settings.geometry(stride),
    )


def _describe_front_end(
    folder: pathlib.Path, extractor: extractor_lib.Extractor
) -> None:
    """Keep in the run folder what its features come from."""
    path = folder / extractor_lib.DESCRIPTION
    described = extractor.describe()
    if path.exists():
        there = json.loads(path.read_text())
        if there != json.loads(json.dumps(described)):
            raise ValueError(
                f"{path} says that this run was trained on other features: "
                f"{json.dumps(there)}. Received: {json.dumps(described)}. "
                "Give it the weights that it had, or choose another --run_dir."
            )
    files.write_text(path, json.dumps(described, indent=2) + "\n")


def _train(
    settings: experiment.Experiment,
    folder: pathlib.Path,
    trainer: Trainer,
    training: input_pipeline.StoredWindows | input_pipeline.LiveWindows,
    validation: input_pipeline.StoredWindows,
    data: dataset.Dataset,
    note: str,
) -> int:
    in_epoch = input_pipeline.steps_per_epoch(
        len(training), settings.batch_size
    )
    last_step = in_epoch * settings.epochs
    manager = tf.train.CheckpointManager(
        trainer.checkpoint(),
        str(folder / "checkpoints"),
        max_to_keep=settings.keep,
        checkpoint_name="step",
    )
    restore(manager)
    first_step = int(trainer.step.numpy())
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
    watch = monitor.Monitor(folder / "logs", first_step=first_step, note=note)
    watch.text(first_step, "experiment", settings.flagfile_text())
    pictures = _Pictures(settings, validation, data)
    batches = trainer.strategy.experimental_distribute_dataset(
        _unsharded(
            training.training(
                batch_size=settings.batch_size,
                seed=settings.seed,
                first_step=first_step,
                last_step=last_step,
            )
        )
    )
    clock = _Clock(settings.batch_size)
    step = first_step
    with (
        contextlib.closing(watch),
        _Signals() as signals,
        tqdm.tqdm(
            total=last_step, initial=first_step, desc="training", unit="step"
        ) as bar,
    ):
        for batch in clock.waiting(batches):
            values = trainer.train_step(batch)
            step += 1
            _require_finite(settings, folder, step, values)
            bar.update()
            bar.set_postfix(loss=f"{values['loss']:.4f}")
            if step % settings.log_steps == 0 or step == last_step:
                rate = float(trainer.optimizer.learning_rate)
                watch.scalars(
                    step,
                    {f"train/{k}": v for k, v in values.items()}
                    | {"train/learning_rate": rate}
                    | clock.read(),
                )
            ends_epoch = step % in_epoch == 0
            if ends_epoch:
                scores = validate(trainer, validation, settings.batch_size)
                _finish_epoch(folder, trainer, watch, scores, step, in_epoch)
                pictures.show(watch, trainer, step)
            stops = signals.received is not None and step < last_step
            if ends_epoch or stops or step % settings.checkpoint_steps == 0:
                manager.save(checkpoint_number=step)
                watch.flush()
            if stops:
                logging.warning(
                    "Stopped by signal %d at step %d; the same command goes "
                    "on.",
                    signals.received,
                    step,
                )
                return 128 + (signals.received or 0)
    logging.info("Trained: %s", folder / "model.keras")
    return 0


def _require_finite(
    settings: experiment.Experiment,
    folder: pathlib.Path,
    step: int,
    values: Mapping[str, float],
) -> None:
    """Stop before weights that are not finite reach a checkpoint."""
    checked = dict(values)
    if settings.precision == "mixed_float16":
        # Loss scaling skips the steps whose gradient overflows.
        del checked["gradient_norm"]
    if not all(map(math.isfinite, checked.values())):
        raise StoppedError(
            f"The loss or its gradient is not finite at step {step}: "
            f"{values}. The checkpoint before it stands in "
            f"{folder / 'checkpoints'}; lower --learning_rate."
        )


def restore(manager: tf.train.CheckpointManager) -> None:
    """Restore the newest checkpoint that can be read, if there is one."""
    for path in reversed(manager.checkpoints):
        try:
            status = manager.checkpoint.restore(path)
            status.assert_existing_objects_matched()
        except (
            tf.errors.OpError,
            IndexError,  # TensorFlow's, for a file that is too short.
            ValueError,
            AssertionError,
        ) as error:
            logging.warning(
                "Checkpoint %s is damaged (%s); trying the one before it.",
                path,
                str(error).splitlines()[0],
            )
        else:
            return
    if manager.checkpoints:
        raise StoppedError(
            f"None of the checkpoints in {manager.directory} can be read. "
            "Remove the folder to train from the start."
        )


def validate(
    trainer: Trainer,
    validation: input_pipeline.StoredWindows,
    batch_size: int,
) -> dict[str, float]:
    """Loss and scores of the mini-validation, means over its windows.

    Scores are the benchmark's, on maps of 8 bits (see `metrics`).
    """
    found: dict[str, list[np.ndarray]] = {}
    for (features, truth), weight in validation.in_order(batch_size):
        (distributed,) = trainer.strategy.experimental_distribute_dataset(
            _unsharded(tf.data.Dataset.from_tensors((features, truth)))
        )
        maps, loss = trainer.predict(distributed)
        real = weight.numpy() > 0
        truth = truth.numpy()[real]
        scores = metrics.score(
            preprocess.to_uint8(maps[real]),
            truth[..., 0],
            truth[..., 1],
            metrics=VALIDATION_METRICS,
        )
        for name, values in (scores | {"loss": loss[real]}).items():
            found.setdefault(name, []).append(values)
    return {
        name: float(np.nanmean(np.concatenate(values)))
        for name, values in found.items()
    }


def _finish_epoch(
    folder: pathlib.Path,
    trainer: Trainer,
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
    save_model(trainer.model, folder / "model.keras")
    best = max((r["cc"] for r in before), default=-math.inf)
    if not scores["cc"] <= best:
        save_model(trainer.model, folder / "best.keras")
    files.write_text(path, "".join(json.dumps(r) + "\n" for r in records))


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Write a `.keras` file, whole or not at all."""
    with files.replacing(path) as temporary:
        model.save(temporary)


def _unsharded(data: tf.data.Dataset) -> tf.data.Dataset:
    """Give each replica its part of each batch; do not shard the reading."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return data.with_options(options)


class _Clock:
    """Windows a second, and the share of time spent waiting for data."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._start = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    def waiting(self, batches: Any) -> Any:
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
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
        settings: experiment.Experiment,
        validation: input_pipeline.StoredWindows,
        data: dataset.Dataset,
    ) -> None:
        count = min(
            settings.image_windows, len(validation), settings.batch_size
        )
        rows = np.linspace(0, len(validation) - 1, count).astype(int)
        self._frames: list[np.ndarray] = []
        self._batch_size = settings.batch_size
        if not count:
            return
        chosen = validation.windows[rows]
        self._frames = monitor.frames_of(data, chosen.tolist())
        # One whole batch, so that every replica has a part of it.
        self._rows = np.resize(chosen, (settings.batch_size, 2))
        self._validation = validation

    def show(self, watch: monitor.Monitor, trainer: Trainer, step: int) -> None:
        if not self._frames:
            return
        batch = self._validation.read(self._rows)
        (distributed,) = trainer.strategy.experimental_distribute_dataset(
            _unsharded(tf.data.Dataset.from_tensors(batch))
        )
        maps, _ = trainer.predict(distributed)
        target = np.asarray(preprocess.target(batch[1]))
        shown = slice(0, len(self._frames))
        watch.pictures(step, self._frames, target[shown, ..., 0], maps[shown])


def main(_: Sequence[str]) -> None:
    """Train as the flags say."""
    settings = experiment.from_flags(flags.FLAGS)
    if settings.deterministic:
        # The order of sums depends on it.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with program.exit_codes():
        sys.exit(run(settings))


if __name__ == "__main__":
    experiment.define_flags()
    app.run(main)
