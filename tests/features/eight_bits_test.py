"""Tests for `eight_bits`."""

import numpy as np
import tensorflow as tf

from lsts_tf.features import eight_bits

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 32, 64)).astype(np.float32)


def _convolved(x, recent):
    """A convolution, and a state of several arrays."""
    y = tf.nn.conv2d(x, tf.constant(KERNEL), 1, "SAME")
    return {"y": y}, [[recent[0] + 1, x], [recent[1] - 1]]


def _inputs():
    x = RNG.normal(size=(4, 14, 14, 32)).astype(np.float32)
    return x, [np.full((2, 3), n, np.float32) for n in (5, 7)]


def test_a_convolution_is_near_and_not_exact():
    function = eight_bits.Function(_convolved)
    for _ in range(2):
        x, state = _inputs()
        found, _ = function(x, state)
        want, _ = _convolved(x, state)
        error = np.linalg.norm(found["y"] - want["y"]) / np.linalg.norm(
            want["y"]
        )
        assert 1e-4 < error < 0.02


def test_answers_have_the_structure_of_the_function():
    function = eight_bits.Function(_convolved)
    x, state = _inputs()
    _, ((first, same), (second,)) = function(x, state)
    np.testing.assert_array_equal(first, state[0] + 1)
    np.testing.assert_array_equal(second, state[1] - 1)
    np.testing.assert_array_equal(same, x)


def test_a_function_is_converted_once():
    calls = []

    def counted(x):
        calls.append(x)
        return x + 1

    function = eight_bits.Function(counted)
    for n in range(3):
        x = np.full((2, 2), n, np.float32)
        np.testing.assert_array_equal(function(x), x + 1)
    assert len(calls) == 1
