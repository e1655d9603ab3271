"""RMSProp against the formula in float64."""

import keras
import numpy as np
import pytest

from lsts_tf.networks import optimizers

SHAPES = ((3, 4), (4,), ())


def _starts_and_gradients(steps):
    rng = np.random.default_rng(11)
    starts = [rng.standard_normal(s) for s in SHAPES]
    # Tiny ones, as of a mean over many pixels: there epsilon's place decides.
    scales = (1e-5, 1.0, 1e-3)
    gradients = [
        [
            k * rng.standard_normal(s)
            for k, s in zip(scales, SHAPES, strict=True)
        ]
        for _ in range(steps)
    ]
    return starts, gradients


def _by_formula(starts, gradients, *, rates, rho, epsilon, l2):
    """PyTorch's rule, one number at a time."""
    ends = []
    for n, start in enumerate(starts):
        end = np.empty(np.size(start))
        for i, p in enumerate(np.ravel(start)):
            v = 0.0
            for rate, gradient in zip(rates, gradients, strict=True):
                g = np.ravel(gradient[n])[i] + l2 * p
                v = rho * v + (1 - rho) * g * g
                p = p - rate * g / (v**0.5 + epsilon)
            end[i] = p
        ends.append(end.reshape(np.shape(start)))
    return ends


def _by_optimizer(optimizer, starts, gradients, dtype="float64"):
    variables = [keras.Variable(s, dtype=dtype) for s in starts]
    optimizer.build(variables)
    for gradient in gradients:
        gradient = [keras.ops.convert_to_tensor(g, dtype) for g in gradient]
        optimizer.apply(gradient, variables)
    return [np.asarray(v) for v in variables]


@pytest.mark.parametrize("l2", [0.0, 5e-5, 1e-2])
@pytest.mark.parametrize("rho", [0.99, 0.9])
def test_twenty_steps(rho, l2):
    starts, gradients = _starts_and_gradients(20)
    # A power of two, because Keras keeps the rate in float32.
    rate = 2.0**-13
    got = _by_optimizer(
        optimizers.RMSprop(rate, rho=rho, l2=l2), starts, gradients
    )
    expected = _by_formula(
        starts, gradients, rates=[rate] * 20, rho=rho, epsilon=1e-8, l2=l2
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_kerass_own_rule_is_another():
    starts, gradients = _starts_and_gradients(20)
    keras_own = keras.optimizers.RMSprop(2.0**-13, rho=0.99, epsilon=1e-8)
    ours = optimizers.RMSprop(2.0**-13)
    (a, *_), (b, *_) = (
        _by_optimizer(o, starts, gradients) for o in (keras_own, ours)
    )
    assert np.abs(a - b).max() > 1e-4


def test_decay_pulls_every_variable_without_gradient():
    starts = [np.ones(s) for s in SHAPES]
    zero = [[np.zeros(s) for s in SHAPES]] * 5
    for end in _by_optimizer(optimizers.RMSprop(1e-3, l2=1e-2), starts, zero):
        assert np.all(end < 1)
    for end in _by_optimizer(optimizers.RMSprop(1e-3), starts, zero):
        np.testing.assert_array_equal(end, 1)


def test_halving_is_by_steps():
    starts, gradients = _starts_and_gradients(20)
    schedule = optimizers.Schedule(2.0**-10, halving_steps=6)
    rates = [2.0 ** -(10 + step // 6) for step in range(20)]
    for step, rate in enumerate(rates):
        assert float(schedule(step)) == rate
    got = _by_optimizer(optimizers.RMSprop(schedule), starts, gradients)
    expected = _by_formula(
        starts, gradients, rates=rates, rho=0.99, epsilon=1e-8, l2=0
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "rate", [2e-4, optimizers.Schedule(1e-3, halving_steps=50)]
)
def test_serialisation_round_trip(rate):
    first = optimizers.RMSprop(rate, rho=0.9, epsilon=1e-6, l2=1e-3)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(first))
    assert isinstance(again, optimizers.RMSprop)
    assert again.get_config() == first.get_config()
    starts, gradients = _starts_and_gradients(3)
    for a, b in zip(
        _by_optimizer(first, starts, gradients),
        _by_optimizer(again, starts, gradients),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_saved_model_trains_on_as_if_never_saved(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizers.RMSprop(1e-2, l2=1e-3), "mse")
    y = x[:, :2]
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for m in (model, again):
        m.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert int(again.optimizer.iterations) == 5
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float16_loss_scaling():
    starts, gradients = _starts_and_gradients(6)
    scaled = keras.optimizers.LossScaleOptimizer(
        optimizers.RMSprop(2.0**-13, l2=5e-5), initial_scale=2.0**10
    )
    big = [[np.asarray(g) * 2.0**10 for g in step] for step in gradients]
    # A step that overflowed must leave weights and mean squares alone.
    big.insert(3, [np.full(s, np.inf) for s in SHAPES])
    # The scaler halves its scale then, so later gradients come with half.
    big[4:] = [[g / 2 for g in step] for step in big[4:]]
    got = _by_optimizer(scaled, starts, big, dtype="float32")
    expected = _by_formula(
        starts, gradients, rates=[2.0**-13] * 6, rho=0.99, epsilon=1e-8, l2=5e-5
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 1.0}, "rho"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"l2": -1e-5}, "l2"),
        ({"l2": float("nan")}, "l2"),
        ({"weight_decay": 1e-5}, "l2"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizers.RMSprop(**arguments)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("halving", [0, 6])
@pytest.mark.parametrize("cosine", [0, 20])
def test_rates_by_formula(warmup, halving, cosine):
    rates = optimizers.Schedule(
        0.5, warmup_steps=warmup, halving_steps=halving, cosine_steps=cosine
    )
    for t in range(25):
        want = 0.5 * (min(1, (t + 1) / warmup) if warmup else 1)
        if halving:
            want *= 0.5 ** (t // halving)
        if cosine:
            want *= (1 + np.cos(np.pi * min(1, t / cosine))) / 2
        assert float(rates(t)) == pytest.approx(want, rel=1e-5, abs=1e-7)


def test_a_schedule_survives_its_config():
    rates = optimizers.Schedule(1e-3, cosine_steps=9, warmup_steps=2)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(rates)
    )
    assert [float(again(t)) for t in range(9)] == [
        float(rates(t)) for t in range(9)
    ]


def test_adamw_decays_kernels_only():
    kernel = keras.Variable(np.ones((2, 2)), name="kernel")
    others = [
        keras.Variable(np.ones(2), name=n) for n in ("bias", "gamma", "beta")
    ]
    optimizer = optimizers.make("adamw", 0.5, weight_decay=0.1)
    variables = [kernel, *others]
    optimizer.build(variables)
    optimizer.apply([np.zeros(v.shape) for v in variables], variables)
    np.testing.assert_allclose(kernel, 0.95)
    for other in others:
        np.testing.assert_array_equal(other, 1)


def test_make_knows_two():
    assert isinstance(
        optimizers.make("rmsprop", 1e-4, weight_decay=5e-5), optimizers.RMSprop
    )
    with pytest.raises(ValueError, match="'sgd'"):
        optimizers.make("sgd", 1e-4, weight_decay=0)


def test_schedules_refuse():
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        optimizers.Schedule(1e-4, warmup_steps=-1)
