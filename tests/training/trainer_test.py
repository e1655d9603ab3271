"""One step of training, however it is spread."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf.networks import decoder
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


def batches(settings, strategy=None, steps=STEPS):
    """The blocks of each step: the same batches, however they are spread."""
    rng = np.random.default_rng(7)
    size = settings.batch_size
    features = rng.random((steps, size, *SHAPE)).astype(np.float16)
    truth = rng.integers(0, 256, (steps, size, 16, 16, 2), np.uint8)
    rows = devices.rows(
        strategy or tf.distribute.get_strategy(), size, settings.accumulate
    )
    return [
        [({"rgb": features[k, r]}, truth[k, r]) for r in rows]
        for k in range(steps)
    ]


def train(trainer, settings, steps=STEPS):
    """Loss and gradient's norm of each step."""
    return [
        list(trainer.train_step(blocks).values())
        for blocks in batches(settings, trainer.strategy, steps)
    ]


def weights(trainer):
    return [v.numpy() for v in trainer.model.weights]


def largest_difference(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw"])
def test_replicas_learn_what_one_device_does(
    small, mirrored, accumulate, optimizer
):
    """Weights, averages, losses, and the norm of the whole gradient."""
    settings = dataclasses.replace(
        small,
        accumulate=accumulate,
        optimizer=optimizer,
        schedule="cosine",
        warmup_steps=4,
        ema=0.9,
    )
    one, other = make(settings), make(settings, mirrored)
    start = weights(one)
    assert largest_difference(start, weights(other)) == 0
    np.testing.assert_allclose(
        train(other, settings), train(one, settings), rtol=1e-3
    )
    assert largest_difference(start, weights(one)) > 1e-2
    assert largest_difference(weights(one), weights(other)) < BOUND
    with one.averaged(), other.averaged():
        assert largest_difference(weights(one), weights(other)) < BOUND


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_micro_batches_add_up_to_the_batch(small, precision):
    """Of the readout, which normalises each window by itself."""
    settings = dataclasses.replace(
        small, decoder="readout", precision=precision, learning_rate=1e-2
    )
    one = make(settings)
    other = make(dataclasses.replace(settings, accumulate=3))
    # Later gradients are so small that half precision leaves them to chance.
    want = train(one, settings, 3)
    found = train(other, dataclasses.replace(settings, accumulate=3), 3)
    rtol = 2e-3 if precision == "float32" else 0.03
    np.testing.assert_allclose(found, want, rtol=rtol)
    assert want[-1][0] < want[0][0]


def test_batch_norm_is_of_each_micro_batch(small):
    settings = dataclasses.replace(small, accumulate=3)
    whole, parts = make(small), make(settings)
    (a,), (b,) = train(whole, small, 1), train(parts, settings, 1)
    assert abs(a[1] - b[1]) > 1e-3 * a[1]


def test_xla_gives_the_same(small):
    one, compiled = make(small), make(dataclasses.replace(small, jit=True))
    np.testing.assert_allclose(
        train(compiled, small, 5), train(one, small, 5), rtol=1e-3
    )
    assert largest_difference(weights(one), weights(compiled)) < BOUND


def test_the_average_follows_the_weights(small):
    settings = dataclasses.replace(small, ema=0.5)
    trainer = make(settings)
    want = [v.numpy() for v in trainer.model.trainable_variables]
    for step, batch in enumerate(batches(settings, steps=5), start=1):
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
    np.testing.assert_allclose(train(again, settings, 2), want, rtol=1e-5)
    # Other channels would be seen.
    again.checkpoint().read(path).assert_existing_objects_matched()
    for variable in again.model.variables:
        if "seed_generator" in variable.path:
            variable.assign(variable + 1)
    assert not np.allclose(train(again, settings, 2), want, rtol=1e-5)


def test_nothing_is_applied_that_is_not_finite(small):
    trainer = make(dataclasses.replace(small, learning_rate=1.0))
    ((features, truth),) = batches(small, steps=1)[0]
    before = weights(trainer)
    with pytest.raises(trainer_lib.NotFiniteError, match="nan"):
        trainer.train_step([({"rgb": features["rgb"] * np.nan}, truth)])
    for name, a, b in zip(
        [w.path for w in trainer.model.weights],
        before,
        weights(trainer),
        strict=True,
    ):
        if "moving" not in name:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("replica", [0, 1])
def test_a_gradient_that_overflows_on_one_replica_is_skipped_by_all(
    small, mirrored, monkeypatch, replica
):
    settings = dataclasses.replace(small, precision="mixed_float16")
    trainer = make(settings, mirrored)
    gradients = trainer._gradients

    def overflow(*arguments):
        loss, found = gradients(*arguments)
        context = tf.distribute.get_replica_context()
        here = context.replica_id_in_sync_group == replica
        return loss, [tf.where(here, np.inf, g) for g in found]

    monkeypatch.setattr(trainer, "_gradients", overflow)
    before = [v.numpy() for v in trainer.model.trainable_variables]
    ((_, norm),) = train(trainer, settings, 1)
    assert norm == np.inf
    for value, variable in zip(
        before, trainer.model.trainable_variables, strict=True
    ):
        for copy in variable.value.values:
            np.testing.assert_array_equal(copy.numpy(), value)
    scales = [float(v) for v in trainer.optimizer.dynamic_scale.value.values]
    assert scales == [2.0**14] * 2


def test_the_norm_is_of_the_gradient_without_loss_scaling(small):
    half = dataclasses.replace(small, precision="mixed_float16")
    norms = [train(make(s), s, 1)[0][1] for s in (small, half)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "multiple of the 2 devices"),
        ({"accumulate": 4}, "--accumulate=4"),
        ({"jit": True}, "--jit is for one device"),
    ],
)
def test_batches_that_cannot_be_shared(small, mirrored, changes, message):
    with pytest.raises(ValueError, match=message):
        make(dataclasses.replace(small, **changes), mirrored)


def test_the_paper_is_what_one_gets_without_flags():
    optimizer = trainer_lib.make_optimizer(experiment.Experiment(), steps=9)
    assert optimizer.name == "rmsprop"
    assert float(optimizer.learning_rate) == pytest.approx(1e-4)
    assert optimizer.l2 == 5e-5
