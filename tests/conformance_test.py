"""Every model, by enumeration: saved, exported, replicated, in half precision.

Full-size decoders on one or two windows.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import decoder

# Each kind of model, by name: a new one has to be entered here.
STREAMS = (("rgb",), ("flow",), ("rgb", "flow"))
HEADS = ("paper", "released")
FUSIONS = ("concat",)
FEATURES = (5, 5, 5, 1024)

every_model = pytest.mark.parametrize(
    ("streams", "head", "fusion"),
    [
        pytest.param(*m, id="-".join(("_".join(m[0]), *m[1:])))
        for m in itertools.product(STREAMS, HEADS, FUSIONS)
    ],
)


def _features(streams, windows):
    """As I3D leaves them: not negative, many zeros."""
    rng = np.random.default_rng(4)
    shape = (windows, *FEATURES)
    return {
        s: np.maximum(rng.normal(-0.1, 0.5, shape), 0).astype("float32")
        for s in streams
    }


def _predict(model, x):
    return np.asarray(model(x, training=False))


def test_every_model_is_listed():
    assert set(STREAMS) == set(decoder.MODELS.values())
    assert set(HEADS) == set(decoder.HEADS)
    assert set(FUSIONS) == set(decoder.FUSIONS)


@every_model
def test_save_and_load(streams, head, fusion, tmp_path):
    model = decoder.build(streams, head=head, fusion=fusion)
    x = _features(streams, 1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(_predict(again, x), _predict(model, x))


@every_model
def test_export(streams, head, fusion, tmp_path):
    model = decoder.build(streams, head=head, fusion=fusion)
    x = _features(streams, 2)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported").serve(x)
    assert served.shape == (2, 360, 640, 1)
    # The same float32 sums, at most in another order.
    np.testing.assert_allclose(served, _predict(model, x), atol=1e-6)


def _train_one_step(strategy, model_arguments, x, y):
    """One step of gradient descent; returns the changes of all variables.

    Plain descent, because it shows the gradients themselves: RMSProp's first
    step is their sign.
    """
    streams, head, fusion = model_arguments
    with strategy.scope():
        model = decoder.build(
            streams, head=head, fusion=fusion, synchronized=True, seed=1
        )
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
    before = [np.asarray(v) for v in model.variables]

    def replica(x, y):
        with tf.GradientTape() as tape:
            error = tf.square(model(x, training=True) - y)
            loss = tf.reduce_sum(tf.reduce_mean(error, [1, 2, 3])) / len(y_all)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    y_all = y
    batches = tf.data.Dataset.from_tensors((x, y)).unbatch().batch(len(y))
    batches = strategy.experimental_distribute_dataset(batches)
    step = tf.function(lambda b: strategy.run(replica, args=b))
    (batch,) = batches
    loss = strategy.reduce("SUM", step(batch), axis=None)
    after = [np.asarray(v) for v in model.variables]
    changes = [a - b for a, b in zip(after, before, strict=True)]
    return float(loss), changes, [v.path for v in model.variables]


@every_model
def test_two_replicas_equal_one(streams, head, fusion):
    devices = tf.config.list_logical_devices("CPU")
    assert len(devices) == 2
    x = _features(streams, 4)
    rng = np.random.default_rng(6)
    y = rng.uniform(size=(4, 360, 640, 1)).astype("float32")
    one, two = (
        _train_one_step(
            tf.distribute.MirroredStrategy([d.name for d in devices[:n]]),
            (streams, head, fusion),
            x,
            y,
        )
        for n in (1, 2)
    )
    np.testing.assert_allclose(two[0], one[0], rtol=1e-6)
    for a, b, path in zip(one[1], two[1], one[2], strict=True):
        assert np.abs(a).max() > 0, path
        # Float32 sums in another order.
        np.testing.assert_allclose(
            b, a, rtol=0, atol=1e-4 * np.abs(a).max(), err_msg=path
        )


@pytest.mark.parametrize(
    # Bits of the significand: 8 and 11.
    ("policy", "bound"),
    [("mixed_bfloat16", 1e-2), ("mixed_float16", 1e-3)],
)
@every_model
def test_mixed_precision(streams, head, fusion, policy, bound):
    exact = decoder.build(streams, head=head, fusion=fusion)
    mixed = decoder.build(streams, head=head, fusion=fusion, dtype=policy)
    mixed.set_weights(exact.get_weights())
    x = _features(streams, 1)
    expected, got = _predict(exact, x), _predict(mixed, x)
    assert got.dtype == "float32"
    assert np.isfinite(got).all()
    assert mixed.get_layer("d1").compute_dtype == policy.removeprefix("mixed_")
    assert not np.array_equal(got, expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound)
