"""A decoder, its optimiser, and one step of training on any devices.

The loss of a step is the mean over the whole batch, whatever the replicas'
shares. With --accumulate a step's gradient is summed over micro-batches;
BatchNorm then takes its statistics over each micro-batch, on all replicas.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import experiment, parts
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.features import preprocess
from lsts_tf.networks import decoder, losses, optimizers
from lsts_tf.training import batch_norm, devices, input_pipeline

# The average follows quickly at first: its momentum is (1 + t) / (10 + t)
# until that is more than --ema.
_AVERAGE_START = 10.0


class NotFiniteError(ArithmeticError):
    """The loss of a step, or its gradient, is no finite number."""


def build_model(
    settings: experiment.Experiment,
    *,
    feature_shape: Sequence[int],
    skip_shapes: Mapping[str, Sequence[int]] | None = None,
    front_end: front_end_lib.FrontEnd | None = None,
    synchronized: bool = False,
) -> keras.Model:
    """The network that the settings describe, untrained.

    Args:
        settings: Decoder, precision and --finetune_from.
        feature_shape: Shape of what the decoder reads, [5, 5, 5, 1024].
        skip_shapes: {end point: shape} of the skips.
        front_end: Which --finetune_from trains the last layers of.
        synchronized: Whether BatchNorm sees all replicas.
    """
    tuned = {}
    if settings.finetune_from and front_end:
        tuned = front_end.tuned(
            settings.finetune_from,
            rate=settings.finetune_rate,
            dtype=settings.precision,
        )
    return decoder.build(
        **settings.decoder_arguments(),
        feature_shape=tuple(feature_shape),
        skip_shapes=skip_shapes,
        tuned=tuned,
        map_size=parts.MAP_SIZE,
        synchronized=synchronized,
    )


def read_init(settings: experiment.Experiment, **shapes: Any) -> keras.Model:
    """The model that --init names; shapes as of `build_model`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not of the network that the settings describe.
    """
    path = experiment.run_folder(settings.init)
    if path == experiment.STARTER:
        path /= "model.keras"
    if not path.is_file():
        raise FileNotFoundError(
            f"--init is starter or a .keras file. Received: {settings.init}, "
            "which is not a file."
        )
    trained = keras.models.load_model(path, compile=False)
    wanted = build_model(settings, **shapes)
    there, here = (
        {x.name: tuple(x.shape) for x in model.inputs}
        | {weight.path: tuple(weight.shape) for weight in model.weights}
        for model in (trained, wanted)
    )
    if differing := sorted(name for name, _ in there.items() ^ here.items()):
        raise ValueError(
            "--init needs a model of the network that is trained. Received: "
            f"{path}, in which {differing[0]} and perhaps others differ. Use "
            f"the settings in the {experiment.FLAGFILE} beside it, or leave "
            "--init out."
        )
    return trained


class Trainer:
    """A decoder, its optimiser, and one step of training.

    Args:
        settings: The experiment.
        strategy: Devices to train on.
        encode: What turns a batch's inputs into features; None where they are
            features already.
        steps: Steps of the whole run, which the cosine schedule needs.
        **model: Shapes and front end, as of `build_model`.

    Raises:
        ValueError: The batch cannot be shared evenly by the replicas and
            their micro-batches, or XLA is asked for with several replicas.
    """

    def __init__(
        self,
        settings: experiment.Experiment,
        strategy: tf.distribute.Strategy,
        *,
        encode: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        steps: int = 1,
        **model: Any,
    ) -> None:
        devices.rows(strategy, settings.batch_size, settings.accumulate)
        if settings.jit and strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "--jit is for one device: BatchNorm over several devices "
                "does not compile. Received: "
                f"{strategy.num_replicas_in_sync} devices"
            )
        self.strategy = strategy
        self._settings = settings
        self._encode = encode or (lambda inputs: inputs)
        self._loss = losses.weighted(settings.loss)
        with strategy.scope():
            self.model = build_model(
                settings,
                synchronized=strategy.num_replicas_in_sync > 1,
                **model,
            )
            batch_norm.fuse(self.model)
            self.optimizer = make_optimizer(settings, steps)
            self.optimizer.build(self.model.trainable_variables)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.averages = [
                tf.Variable(v.numpy(), trainable=False)
                for v in self.model.trainable_variables
                if settings.ema
            ]
            # Each replica's own sum of gradients.
            self._sums = [
                tf.Variable(
                    tf.zeros(v.shape, v.dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for v in self.model.trainable_variables
            ]
        self._gradients: Callable[..., Any] = self._loss_and_gradients
        if settings.jit:
            self._gradients = tf.function(
                self._loss_and_gradients, jit_compile=True, autograph=False
            )
        self._accumulate = self._on_replicas(self._replica_accumulate)
        self._combine = self._on_replicas(self._replica_combine)
        # An update is a dozen small operations on every weight: XLA makes one
        # of them. It compiles no sum over replicas, and for a GPU it needs
        # files of CUDA that may not be there.
        self._apply = self._on_replicas(
            self._replica_apply,
            jit=strategy.num_replicas_in_sync == 1
            and not tf.config.list_logical_devices("GPU"),
        )
        self._predict = self._on_replicas(self._replica_predict)
        self._follow = tf.function(self._average, autograph=False)

    def _on_replicas(
        self, function: Callable[..., Any], *, jit: bool = False
    ) -> Any:
        """A function of each replica's arguments, traced for all."""
        return tf.function(
            lambda *arguments: self.strategy.run(function, args=arguments),
            autograph=False,
            jit_compile=jit or None,
        )

    def start_from(self, trained: keras.Model) -> None:
        """Take the weights of a model of the same network; see `read_init`."""
        there = {weight.path: weight for weight in trained.weights}
        with self.strategy.scope():
            for weight in self.model.weights:
                weight.assign(there[weight.path].numpy())
            for average, weight in zip(
                self.averages, self.model.trainable_variables, strict=False
            ):
                average.assign(weight.numpy())

    @property
    def learning_rate(self) -> float:
        """Rate of the next step."""
        # Of several replicas' variables Keras does not make a number itself.
        return float(tf.convert_to_tensor(self.optimizer.learning_rate))

    def checkpoint(self) -> tf.train.Checkpoint:
        """Everything that the next step depends on.

        Variables are listed: handing over the model leaves out the state of
        seed generators.
        """
        return tf.train.Checkpoint(
            model=[v.value for v in self.model.variables],
            optimizer=[v.value for v in self.optimizer.variables],
            step=self.step,
            **({"averages": self.averages} if self.averages else {}),
        )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has its averaged weights, if there are any."""
        if not self.averages:
            yield
            return
        trained = [v.numpy() for v in self.model.trainable_variables]
        self._put([v.numpy() for v in self.averages])
        try:
            yield
        finally:
            self._put(trained)

    def _put(self, weights: Sequence[np.ndarray]) -> None:
        with self.strategy.scope():
            for variable, value in zip(
                self.model.trainable_variables, weights, strict=True
            ):
                variable.assign(value)

    def train_step(
        self, blocks: Sequence[input_pipeline.Batch]
    ) -> dict[str, float]:
        """One update of the weights.

        Args:
            blocks: The step's blocks of this worker, by micro-batch, then by
                replica: `devices.rows`.

        Returns:
            The loss, and the norm of the whole batch's gradient without loss
            scaling, both before the update.

        Raises:
            NotFiniteError: One of the two is no finite number; nothing is
                updated. A gradient that overflows in mixed_float16 is no
                error: loss scaling skips that step.
        """
        each = [
            self._accumulate(*x, number == 0)
            for number, x in enumerate(self._micro_batches(blocks))
        ]
        loss = sum(
            float(self.strategy.reduce("SUM", x, axis=None)) for x in each
        )
        norm = float(self.local(self._combine())[0])
        values = {"loss": loss, "gradient_norm": norm}
        scales = self._settings.precision == "mixed_float16"
        if not (math.isfinite(loss) and (scales or math.isfinite(norm))):
            raise NotFiniteError(str(values))
        self._apply()
        self._follow()
        return values

    def graph(self, blocks: Sequence[input_pipeline.Batch]) -> tf.Graph:
        """Operations of loss and gradient on blocks like these."""
        first = next(iter(self._micro_batches(blocks)))
        return self._accumulate.get_concrete_function(*first, True).graph

    def _micro_batches(
        self, blocks: Sequence[input_pipeline.Batch]
    ) -> Iterator[Any]:
        here = len(devices.replicas(self.strategy))
        for first in range(0, len(blocks), here):
            yield devices.spread(self.strategy, blocks[first : first + here])

    def predict(
        self, batches: Sequence[input_pipeline.Batch]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps and losses of features, a batch for each replica here.

        Returns:
            Maps float32 [B, 360, 640], and [B, targets, 360, 640] of several
            targets, and losses float32 [B]; B are the windows of this
            worker's replicas, one after the other.
        """
        maps, loss = self._predict(*devices.spread(self.strategy, batches))
        return self.local(maps)[..., 0], self.local(loss)

    def local(self, values: Any) -> np.ndarray:
        """What this worker's replicas hold, one after the other."""
        found = self.strategy.experimental_local_results(values)
        return np.concatenate([np.atleast_1d(value) for value in found])

    def _replica_accumulate(
        self, inputs: Mapping[str, Any], truth: Any, is_first: bool
    ) -> Any:
        """Add a micro-batch's gradient to the sum; its part of the loss."""
        loss, gradients = self._gradients(self._encode(inputs), truth)
        for total, gradient in zip(self._sums, gradients, strict=True):
            add = total.assign if is_first else total.assign_add
            add(gradient)
        return loss

    def _loss_and_gradients(
        self, features: Mapping[str, Any], truth: Any
    ) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            maps = self.model(features, training=True)
            each = self._loss(preprocess.target(truth), maps)
            loss = tf.reduce_sum(each) / self._settings.batch_size
            scaled = self.optimizer.scale_loss(loss)
        return loss, tape.gradient(
            scaled,
            self.model.trainable_variables,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    def _replica_combine(self) -> Any:
        """Sum the gradient over all replicas; the norm of the whole."""
        sums = self._sums
        if self.strategy.num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            # What is read is on no device, and what is reduced must be on one.
            sums = [tf.identity(total) for total in self._sums]
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
            for total, gradient in zip(self._sums, sums, strict=True):
                total.assign(gradient)
        scale = self.optimizer.scale_loss(tf.constant(1.0))
        return tf.linalg.global_norm(sums) / scale

    def _replica_apply(self) -> None:
        # Keras sums over the replicas itself; loss scaling asks each replica
        # whether the gradient is finite, so all of them need the whole one.
        replicas = self.strategy.num_replicas_in_sync
        gradients = [tf.convert_to_tensor(x) for x in self._sums]
        if replicas > 1:
            gradients = [x / replicas for x in gradients]
        self.optimizer.apply(gradients, self.model.trainable_variables)

    def _average(self) -> None:
        """Count the step, and let the averages follow the weights."""
        self.step.assign_add(1)
        step = tf.cast(self.step, tf.float32)
        momentum = tf.minimum(
            self._settings.ema, (1.0 + step) / (_AVERAGE_START + step)
        )
        for average, variable in zip(
            self.averages, self.model.trainable_variables, strict=False
        ):
            kept = tf.cast(momentum, average.dtype)
            average.assign(average * kept + variable.value * (1.0 - kept))

    def _replica_predict(
        self, inputs: Mapping[str, Any], truth: Any
    ) -> tuple[Any, Any]:
        maps = self.model(inputs, training=False)
        return maps, self._loss(preprocess.target(truth), maps)


def check_precision(settings: experiment.Experiment) -> None:
    """Refuse what the devices of this machine cannot compute.

    Raises:
        ValueError: I3D's layers are to be trained in halves without a GPU.
    """
    if (
        settings.finetune_from
        and settings.precision == "mixed_float16"
        and not tf.config.list_physical_devices("GPU")
    ):
        raise ValueError(
            "--finetune_from with --precision=mixed_float16 needs a GPU: "
            "TensorFlow has no 3D max pooling in float16 for CPUs. This "
            "machine has none. Use --precision=mixed_bfloat16 or float32."
        )


def make_optimizer(
    settings: experiment.Experiment, steps: int
) -> keras.optimizers.Optimizer:
    """The optimiser of an experiment of so many steps."""
    rate = optimizers.Schedule(
        settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        halving_steps=settings.lr_halving_steps,
        cosine_steps=steps if settings.schedule == "cosine" else 0,
    )
    optimizer = optimizers.make(
        settings.optimizer, rate, weight_decay=settings.weight_decay
    )
    if settings.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def encode_each(
    extractor: front_end_lib.FrontEnd, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Windows of frames and flows to features, one window at a time.

    One at a time, because the first layers of a window take half a gigabyte.
    """
    found: dict[str, Any] = {}
    for stream, clips in inputs.items():
        found |= keras.ops.map(
            functools.partial(extractor.encode_parts, stream), clips
        )
    return found
