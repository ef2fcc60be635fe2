"""Dropout depends on the global example index only."""

import jax
import numpy as np

from cerebra_jax.kernels.dropout import dropout


def test_mask_follows_the_example_wherever_it_stands_and_keeps_the_mean():
    key = jax.random.key(0)
    x = np.ones((4, 50, 40), np.float32)
    whole = np.asarray(dropout(key, np.arange(4), x, 0.3))
    np.testing.assert_array_equal(dropout(key, np.arange(2, 4), x[2:], 0.3), whole[2:])
    assert abs((whole == 0).mean() - 0.3) < 0.02 and abs(whole.mean() - 1) < 0.03
    assert (whole[0] != whole[1]).any()
    np.testing.assert_array_equal(dropout(None, np.arange(4), x, 0.3), x)
