"""A decoder, its optimiser, and one step of training on any devices.

The loss of a step is the mean over the whole batch, whatever the replicas'
shares; BatchNorm takes its statistics over the whole batch, too, whether it
is spread over replicas, over micro-batches (`accumulation`), or both.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any
import zlib

import keras
import numpy as np
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.features import preprocess
from lsts_tf.networks import decoder
from lsts_tf.networks import losses
from lsts_tf.networks import optimizers
from lsts_tf.networks import tuned_i3d
from lsts_tf.training import accumulation

Batch = tuple[Mapping[str, Any], Any]

# The average follows quickly at first: its momentum is (1 + t) / (10 + t)
# until that is more than --ema.
_AVERAGE_START = 10.0


def read_init(
    settings: experiment.Experiment,
    *,
    feature_shape: Sequence[int],
    skip_shapes: Mapping[str, Sequence[int]] | None = None,
) -> keras.Model:
    """The model that --init names; arguments as of `Trainer`.

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
            "which is no file."
        )
    trained = keras.models.load_model(path, compile=False)
    wanted = decoder.build(
        **settings.decoder_arguments(),
        feature_shape=tuple(feature_shape),
        skip_shapes=skip_shapes,
        map_size=preprocess.MAP_SIZE,
    )
    there, here = (
        {x.name: x.shape for x in model.inputs}
        | {weight.path: weight.shape for weight in model.weights}
        for model in (trained, wanted)
    )
    if there != here:
        names = sorted(
            name
            for name in there.keys() | here.keys()
            if there.get(name) != here.get(name)
        )
        raise ValueError(
            "--init takes a model of the network that is trained. Received: "
            f"{path}, which differs in {len(names)} inputs and weights, the "
            f"first of them {names[0]}. Take the settings in the "
            f"{experiment.FLAGFILE} beside it, or leave --init out."
        )
    return trained


class Trainer:
    """A decoder, its optimiser, and one step of training.

    Args:
        settings: The experiment.
        strategy: Devices to train on.
        feature_shape: Shape of what the decoder reads, [5, 5, 5, 1024].
        skip_shapes: {end point: shape} of the skips.
        networks: {stream: I3D}, whose last layers are trained too; needed
            with --finetune_from.
        encode: What turns a batch's inputs into features; None where they are
            features already.
        steps: Steps of the whole run, which the cosine schedule needs.

    Raises:
        ValueError: The batch cannot be shared evenly by the replicas and
            their micro-batches; XLA is asked for with several replicas; or
            no device here has the precision (`check_precision`).
    """

    def __init__(
        self,
        settings: experiment.Experiment,
        strategy: tf.distribute.Strategy,
        *,
        feature_shape: Sequence[int],
        skip_shapes: Mapping[str, Sequence[int]] | None = None,
        networks: Mapping[str, keras.Model] | None = None,
        encode: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        steps: int = 1,
    ) -> None:
        check_precision(settings)
        _check_shares(settings, strategy.num_replicas_in_sync)
        self.strategy = strategy
        self._encode = encode or (lambda inputs: inputs)
        self._loss = losses.weighted(settings.loss)
        self._momentum = settings.ema
        with strategy.scope():
            self.model = decoder.build(
                **settings.decoder_arguments(),
                feature_shape=tuple(feature_shape),
                skip_shapes=skip_shapes,
                tuned=_tuned(settings, networks or {}),
                map_size=preprocess.MAP_SIZE,
                synchronized=strategy.num_replicas_in_sync > 1,
            )
            self.optimizer = make_optimizer(settings, steps)
            self.optimizer.build(self.model.trainable_variables)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
            self.averages = [
                tf.Variable(v.numpy(), trainable=False)
                for v in self.model.trainable_variables
                if settings.ema
            ]
        self._gradients: Callable[..., Any] = self._of_whole
        if settings.accumulate > 1:
            self._gradients = self._of_parts
            self._accumulation = accumulation.Accumulation(
                self.model, self.losses, count=settings.accumulate
            )
        elif settings.jit:
            self._gradients = tf.function(
                self._of_whole, jit_compile=True, autograph=False
            )
        self._train = tf.function(self._distributed_step, autograph=False)
        self._stops = tf.function(self._distributed_stops, autograph=False)
        self._predict = tf.function(self._distributed_predict, autograph=False)
        self._maps = tf.function(
            lambda features: self.model(features, training=False),
            autograph=False,
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

    def checksum(self) -> int:
        """CRC-32 of the weights, of the optimiser's state and of averages."""
        variables = (
            *self.model.variables,
            *self.optimizer.variables,
            *self.averages,
        )
        found = 0
        for variable in variables:
            found = zlib.crc32(np.asarray(variable.numpy()).tobytes(), found)
        return found

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

    def train_step(self, batch: Batch, *, stop: int = 0) -> dict[str, float]:
        """One update of the weights.

        Args:
            batch: Inputs and truth, each replica's part of them.
            stop: Not 0: all workers shall stop after this step.

        Returns:
            The loss, and the gradient's norm without loss scaling, both
            before the update; `stop`, not 0 if a worker said so. The norm
            with several replicas is the mean of those of their parts.
        """
        found = self._train(batch, tf.constant(float(stop)))
        names = ("loss", "gradient_norm", "stop")
        return {n: float(v) for n, v in zip(names, found, strict=True)}

    def stops(self, stop: int) -> bool:
        """Whether a worker says that all shall stop; all ask at once.

        Args:
            stop: Not 0: this one says so.
        """
        return float(self._stops(tf.constant(float(stop)))) > 0

    def graph(self, batch: Batch) -> tf.Graph:
        """Operations of a step on batches like this one."""
        return self._train.get_concrete_function(batch, tf.constant(0.0)).graph

    def predict(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Maps float32 [B, 360, 640] and losses float32 [B] of features.

        B are the windows of this worker's replicas. Of several targets the
        maps are [B, targets, 360, 640].
        """
        maps, loss = self._predict(batch)
        return self.local(maps)[..., 0], self.local(loss)

    def maps(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Maps float32 [B, 360, 640] of targets, on one device."""
        maps = self._maps(dict(features)).numpy()[..., 0]
        return maps if maps.ndim == 3 else maps[:, -1]

    def local(self, values: Any) -> np.ndarray:
        """What this worker's replicas hold, one after the other."""
        found = self.strategy.experimental_local_results(values)
        return np.concatenate([np.asarray(value) for value in found])

    def losses(self, truth: Any, maps: Any) -> Any:
        """Loss of each window, float32 [B]."""
        return self._loss(preprocess.target(truth), maps)

    def _distributed_step(self, batch: Batch, stop: Any) -> tuple[Any, ...]:
        inputs, truth = batch
        loss, norm, stops = self.strategy.run(
            self._replica_step, args=(inputs, truth, stop)
        )
        self.step.assign_add(1)
        self._average()
        return (
            self.strategy.reduce("SUM", loss, axis=None),
            self.strategy.reduce("MEAN", norm, axis=None),
            self.strategy.reduce("SUM", stops, axis=None),
        )

    def _distributed_stops(self, stop: Any) -> Any:
        said = self.strategy.run(tf.identity, args=(stop,))
        return self.strategy.reduce("SUM", said, axis=None)

    def _average(self) -> None:
        step = tf.cast(self.step, tf.float32)
        momentum = tf.minimum(
            self._momentum, (1.0 + step) / (_AVERAGE_START + step)
        )
        for average, variable in zip(
            self.averages, self.model.trainable_variables, strict=False
        ):
            kept = tf.cast(momentum, average.dtype)
            average.assign(average * kept + variable.value * (1.0 - kept))

    def _replica_step(
        self, inputs: Mapping[str, Any], truth: Any, stop: Any
    ) -> tuple[Any, ...]:
        context = tf.distribute.get_replica_context()
        windows = context.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.cast(tf.shape(truth)[0], tf.float32)
        )
        features = self._encode(inputs)
        loss, gradients = self._gradients(features, truth, windows)
        scale = self.optimizer.scale_loss(tf.constant(1.0))
        norm = tf.linalg.global_norm(gradients) / scale
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _agreed(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return loss, norm, tf.identity(stop)

    def _of_whole(
        self, features: Mapping[str, Any], truth: Any, windows: Any
    ) -> tuple[Any, list[Any]]:
        """This replica's part of the loss and of the gradient."""
        with tf.GradientTape() as tape:
            maps = self.model(features, training=True)
            loss = tf.reduce_sum(self.losses(truth, maps)) / windows
            scaled = self.optimizer.scale_loss(loss)
        return loss, tape.gradient(scaled, self.model.trainable_variables)

    def _of_parts(
        self, features: Mapping[str, Any], truth: Any, windows: Any
    ) -> tuple[Any, list[Any]]:
        scale = self.optimizer.scale_loss(tf.constant(1.0))
        return self._accumulation(features, truth, windows, scale)

    def _distributed_predict(self, batch: Batch) -> tuple[Any, Any]:
        return self.strategy.run(self._replica_predict, args=batch)

    def _replica_predict(
        self, inputs: Mapping[str, Any], truth: Any
    ) -> tuple[Any, Any]:
        maps = self.model(inputs, training=False)
        return maps, self.losses(truth, maps)


def _agreed(gradients: Sequence[Any]) -> list[Any]:
    """Gradients that are infinite on every replica if they are on one.

    Keras' loss scaling lets each replica skip a step by its own part of the
    gradient, before the parts are summed: the others would apply the sum.
    """
    finite = [tf.reduce_all(tf.math.is_finite(g)) for g in gradients]
    overflows = tf.cast(~tf.reduce_all(finite), tf.float32)
    context = tf.distribute.get_replica_context()
    somewhere = context.all_reduce(tf.distribute.ReduceOp.SUM, overflows) > 0
    return [
        tf.where(somewhere, tf.constant(np.inf, g.dtype), g) for g in gradients
    ]


def _tuned(
    settings: experiment.Experiment, networks: Mapping[str, keras.Model]
) -> dict[str, keras.Model]:
    """Layers of I3D that are trained with the decoder, by stream."""
    if not settings.finetune_from:
        return {}
    return {
        stream: tuned_i3d.build(
            networks[stream],
            settings.finetune_from,
            frames=settings.window,
            rate=settings.finetune_rate,
            dtype=settings.precision,
        )
        for stream in settings.streams
    }


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
            "machine shows none. Take --precision=mixed_bfloat16 or float32."
        )


def _check_shares(settings: experiment.Experiment, replicas: int) -> None:
    if settings.batch_size % (replicas * settings.accumulate):
        raise ValueError(
            f"--batch_size must be a multiple of the {replicas} replicas"
            f" times --accumulate={settings.accumulate}. "
            f"Received: {settings.batch_size}"
        )
    if settings.jit and (replicas > 1 or settings.accumulate > 1):
        raise ValueError(
            "--jit is for one device without accumulation: BatchNorm over "
            "several replicas does not compile. Received: "
            f"{replicas} replicas, --accumulate={settings.accumulate}"
        )


def make_optimizer(
    settings: experiment.Experiment, steps: int
) -> keras.optimizers.Optimizer:
    """The optimiser of an experiment of so many steps."""
    rate = optimizers.schedule(
        settings.learning_rate,
        shape=settings.schedule,
        steps=steps,
        halving_steps=settings.lr_halving_steps,
        warmup_steps=settings.warmup_steps,
    )
    optimizer = optimizers.make(
        settings.optimizer, rate, weight_decay=settings.weight_decay
    )
    if settings.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def live_encoder(
    extractor: front_end_lib.FrontEnd,
) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Windows of frames and flows to features, one window at a time.

    One at a time, because the first layers of a window take half a gigabyte.
    """

    def encode(inputs: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stream, clips in inputs.items():
            found |= keras.ops.map(
                lambda clip, s=stream: extractor.encode_parts(s, clip), clips
            )
        return found

    return encode
