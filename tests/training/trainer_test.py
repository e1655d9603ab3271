"""One step of training, however it is spread."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf import train as train_lib
from lsts_tf.features import preprocess
from lsts_tf.networks import decoder
from lsts_tf.scoring import metrics
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import truth as truth_lib
from lsts_tf.training import devices
from lsts_tf.training import trainer as trainer_lib
from tests import tiny_training

SHAPE = (1, 2, 2, 8)
STEPS = 20
# The largest difference of a weight after 20 steps at a rate of 1e-3.
BOUND = 2e-4


@pytest.fixture
def small(monkeypatch):
    tiny_training.install(monkeypatch.setattr)
    return experiment.Experiment(
        batch_size=12, learning_rate=1e-3, loss="kld-cc", strategy="one"
    )


def make(settings, strategy=None):
    return trainer_lib.Trainer(
        settings,
        strategy or tf.distribute.get_strategy(),
        feature_shape=SHAPE,
        steps=STEPS,
    )


def batches(settings, steps=STEPS):
    """The same batches, whatever part of them is read."""
    rng = np.random.default_rng(7)
    size = settings.batch_size
    features = rng.random((steps, size, *SHAPE)).astype(np.float16)
    truth = rng.integers(0, 256, (steps, size, 16, 16, 2), np.uint8)

    def read(part):
        rows = part.rows(size)
        each = [(k, r) for k in range(steps) for r in rows]
        return tf.data.Dataset.from_tensor_slices(
            (
                {"rgb": np.stack([features[k, r] for k, r in each])},
                np.stack([truth[k, r] for k, r in each]),
            )
        )

    return read


def train(trainer, settings, steps=STEPS):
    read = batches(settings, steps)
    return [
        trainer.train_step(batch)["loss"]
        for batch in devices.distribute(trainer.strategy, read)
    ]


def weights(trainer):
    return [v.numpy() for v in trainer.model.weights]


def largest_difference(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True))


def test_one_device_replicas_and_micro_batches_give_the_same_weights(
    small, mirrored
):
    one = make(small)
    start = weights(one)
    losses = train(one, small)
    assert largest_difference(start, weights(one)) > 1e-2
    for changes, strategy in (
        ({"accumulate": 4}, None),
        ({}, mirrored),
        ({"accumulate": 3}, mirrored),
    ):
        other = make(dataclasses.replace(small, **changes), strategy)
        assert largest_difference(start, weights(other)) == 0
        np.testing.assert_allclose(train(other, small), losses, rtol=1e-4)
        assert largest_difference(weights(one), weights(other)) < BOUND


def test_adamw_halves_into_micro_batches(small):
    settings = dataclasses.replace(
        small, optimizer="adamw", schedule="cosine", warmup_steps=4
    )
    one = make(settings)
    parts = make(dataclasses.replace(settings, accumulate=2))
    np.testing.assert_allclose(
        train(parts, settings), train(one, settings), rtol=1e-4
    )
    assert largest_difference(weights(one), weights(parts)) < BOUND


def test_xla_gives_the_same(small):
    one, compiled = make(small), make(dataclasses.replace(small, jit=True))
    np.testing.assert_allclose(
        train(compiled, small, 5), train(one, small, 5), rtol=1e-4
    )
    assert largest_difference(weights(one), weights(compiled)) < BOUND


def test_the_average_follows_the_weights(small):
    settings = dataclasses.replace(small, ema=0.5)
    trainer = make(settings)
    want = [v.numpy() for v in trainer.model.trainable_variables]
    read = batches(settings, 5)
    for step, batch in enumerate(read_whole(read), start=1):
        trainer.train_step(batch)
        momentum = min(0.5, (1 + step) / (10 + step))
        for w, v in zip(want, trainer.model.trainable_variables, strict=True):
            w[...] = momentum * w + (1 - momentum) * v.numpy()
    trained = weights(trainer)
    with trainer.averaged():
        for w, v in zip(want, trainer.model.trainable_variables, strict=True):
            np.testing.assert_allclose(v.numpy(), w, atol=1e-6)
        assert largest_difference(trained, weights(trainer)) > 1e-5
    assert largest_difference(trained, weights(trainer)) == 0
    names = trainer.checkpoint()
    assert len(names.averages) == len(want)


def read_whole(read):
    return devices.distribute(tf.distribute.get_strategy(), read)


def test_a_checkpoint_holds_which_channels_dropout_takes(
    small, monkeypatch, tmp_path
):
    """What follows it is what followed it."""
    monkeypatch.setattr(decoder, "DROPOUT_FILTERS", 4)
    settings = dataclasses.replace(small, dropout=0.5)
    trainer = make(settings)
    train(trainer, settings, 2)
    path = trainer.checkpoint().write(str(tmp_path / "step"))
    want = train(trainer, settings, 2)
    again = make(dataclasses.replace(settings, seed=5))
    again.checkpoint().read(path).assert_existing_objects_matched()
    assert train(again, settings, 2) == pytest.approx(want, rel=1e-5)
    # Other channels would be seen.
    again.checkpoint().read(path).assert_existing_objects_matched()
    for variable in again.model.variables:
        if "seed_generator" in variable.path:
            variable.assign(variable + 1)
    assert train(again, settings, 2) != pytest.approx(want, rel=1e-5)


def test_no_average_by_default(small):
    trainer = make(small)
    before = weights(trainer)
    with trainer.averaged():
        assert largest_difference(before, weights(trainer)) == 0
    assert not trainer.averages


def test_replicas_have_the_same_average(small, mirrored):
    settings = dataclasses.replace(small, ema=0.9)
    one, two = make(settings), make(settings, mirrored)
    train(one, settings, 3)
    train(two, settings, 3)
    for a, b in zip(one.averages, two.averages, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=BOUND)
    with two.averaged():
        maps = two.maps({"rgb": np.ones((2, *SHAPE), np.float16)})
    assert maps.shape == (2, 16, 16)


class Windows:
    """Seven windows of a video, as `StoredWindows` has them."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.windows = np.array([(1, target) for target in range(7)])
        self.features = rng.random((7, *SHAPE)).astype(np.float16)
        self.truth = rng.integers(0, 256, (7, 16, 16, 2), np.uint8)
        self.truth[..., 1] = self.truth[..., 1] > 230

    def __len__(self):
        return len(self.windows)

    def frames(self, chosen):
        return [(int(video), int(target)) for video, target in chosen]

    def in_order(self, batch_size, part):
        rows = [
            np.arange(start, start + batch_size)[part_rows]
            for start in range(0, len(self), batch_size)
            for part_rows in part.rows(batch_size)
        ]
        each = [
            (
                ({"rgb": self.features[at]}, self.truth[at]),
                (row < len(self)).astype(np.float32),
                at,
            )
            for row in rows
            for at in [np.minimum(row, len(self) - 1)]
        ]
        return tf.data.Dataset.from_tensor_slices(
            tf.nest.map_structure(lambda *x: np.stack(x), *each)
        )


def test_validation_scores_the_saved_maps(small, mirrored):
    windows = Windows()
    density, fixated = windows.truth[..., 0], windows.truth[..., 1]
    points = [np.argwhere(map_) for map_ in fixated]
    scorer = scorer_lib.Scorer(
        truth_lib.FixationSet(
            (1, frame, rows, (16, 16)) for frame, rows in enumerate(points)
        )
    )
    for strategy in (None, mirrored):
        trainer = make(small, strategy)
        levels = preprocess.to_uint8(trainer.maps({"rgb": windows.features}))
        assert len(np.unique(levels)) > 10
        few, every = (
            train_lib.validate(trainer, windows, 4, *given)
            for given in ((), (scorer,))
        )
        assert set(few) == {"loss", *train_lib.VALIDATION_METRICS}
        assert set(every) == {"loss", *metrics.METRICS}
        each = [
            scorer.score(frame, levels[frame], density[frame])
            for frame in range(7)
        ]
        for name, value in every.items():
            if name in few:
                assert few[name] == value
            if name != "loss":
                mean = np.nanmean([scores[name] for scores in each])
                assert value == pytest.approx(mean, abs=1e-12)


def test_a_stop_reaches_everybody(small, mirrored):
    trainer = make(small, mirrored)
    first, second = devices.distribute(mirrored, batches(small, 2))
    assert trainer.train_step(first)["stop"] == 0
    assert trainer.train_step(second, stop=15)["stop"] > 0


@pytest.mark.parametrize("replica", [0, 1])
def test_a_gradient_that_overflows_on_one_replica_is_skipped_by_all(
    small, mirrored, monkeypatch, replica
):
    settings = dataclasses.replace(small, precision="mixed_float16")
    trainer = make(settings, mirrored)
    gradients = trainer._of_whole

    def overflow(*arguments):
        loss, found = gradients(*arguments)
        context = tf.distribute.get_replica_context()
        here = context.replica_id_in_sync_group == replica
        return loss, [tf.where(here, np.inf, g) for g in found]

    monkeypatch.setattr(trainer, "_gradients", overflow)
    before = [v.numpy() for v in trainer.model.trainable_variables]
    (batch,) = devices.distribute(mirrored, batches(settings, 1))
    assert trainer.train_step(batch)["gradient_norm"] == np.inf
    for value, variable in zip(
        before, trainer.model.trainable_variables, strict=True
    ):
        for copy in variable.value.values:
            np.testing.assert_array_equal(copy.numpy(), value)
    scales = [float(v) for v in trainer.optimizer.dynamic_scale.value.values]
    assert scales == [2.0**14] * 2


def test_the_norm_is_of_the_gradient_without_loss_scaling(small):
    (batch,) = read_whole(batches(small, 1))
    half = dataclasses.replace(small, precision="mixed_float16")
    norms = [make(s).train_step(batch)["gradient_norm"] for s in (small, half)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "multiple of the 2 replicas"),
        ({"accumulate": 4}, "--accumulate=4"),
        ({"jit": True}, "--jit is for one device"),
    ],
)
def test_batches_that_cannot_be_shared(small, mirrored, changes, message):
    with pytest.raises(ValueError, match=message):
        make(dataclasses.replace(small, **changes), mirrored)


def test_the_paper_is_what_one_gets_without_flags():
    optimizer = trainer_lib.make_optimizer(experiment.Experiment(), steps=9)
    assert optimizer.get_config()["name"] == "rmsprop"
    assert float(optimizer.learning_rate) == pytest.approx(1e-4)
    assert optimizer.l2 == 5e-5
