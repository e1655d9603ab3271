import itertools

import numpy as np
import pytest

from lsts_tf.networks.sliding import toom_cook


@pytest.mark.parametrize("longest", [2, 4])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("steps", range(1, 11))
def test_outputs_are_those_of_the_sum_over_taps(steps, taps, longest):
    rng = np.random.default_rng(steps)
    x, kernel = rng.standard_normal(steps), rng.standard_normal(taps)
    want = np.zeros(steps + taps - 1)
    for i, t in itertools.product(range(len(want)), range(taps)):
        if 0 <= (seen := i - (taps - 1) + t) < steps:
            want[i] += kernel[t] * x[seen]
    found = toom_cook.algorithm(steps, taps, longest)
    products = (found.steps @ x) * (found.taps @ kernel)
    np.testing.assert_allclose(found.outputs @ products, want, atol=1e-13)


def test_each_piece_takes_a_product_for_each_output():
    counts = [len(toom_cook.algorithm(n, 3, 4).taps) for n in range(1, 9)]
    assert counts == [3, 4, 5, 6, 5 + 4, 5 + 5, 6 + 5, 6 + 6]
    assert len(toom_cook.algorithm(6, 3, 2).taps) == 4 + 4 + 4


def test_products_with_one_kernel_are_neighbours():
    rows = [tuple(row) for row in toom_cook.algorithm(7, 3, 4).taps]
    assert len([*itertools.groupby(rows)]) == len(set(rows)) == 6
