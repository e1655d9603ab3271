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
    each = list(zip((1e-5, 1.0, 1e-3), SHAPES, strict=True))
    gradients = [
        [k * rng.standard_normal(s) for k, s in each] for _ in range(steps)
    ]
    return starts, gradients


def _by_formula(starts, gradients, *, rate, l2):
    """PyTorch's rule."""
    ends = []
    for n, p in enumerate(starts):
        v = 0.0
        for gradient in gradients:
            g = gradient[n] + l2 * p
            v = 0.99 * v + 0.01 * g * g
            p = p - rate * g / (v**0.5 + 1e-8)
        ends.append(p)
    return ends


def _by_optimizer(optimizer, starts, gradients, dtype="float64"):
    variables = [keras.Variable(s, dtype=dtype) for s in starts]
    optimizer.build(variables)
    for gradient in gradients:
        gradient = [keras.ops.convert_to_tensor(g, dtype) for g in gradient]
        optimizer.apply(gradient, variables)
    return [np.asarray(v) for v in variables]


@pytest.mark.parametrize("l2", [0.0, 5e-5, 1e-2])
def test_twenty_steps(l2):
    starts, gradients = _starts_and_gradients(20)
    # A power of two, because Keras keeps the rate in float32.
    rate = 2.0**-13
    optimizer = optimizers.make("rmsprop", rate, weight_decay=l2)
    got = _by_optimizer(optimizer, starts, gradients)
    expected = _by_formula(starts, gradients, rate=rate, l2=l2)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


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
    expected = _by_formula(starts, gradients, rate=2.0**-13, l2=5e-5)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


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
