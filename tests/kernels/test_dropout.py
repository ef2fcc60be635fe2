"""Dropout depends on the global example index only."""

import jax
import numpy as np

from cerebra_jax.kernels.dropout import draws, dropout


def test_mask_follows_the_example_wherever_it_stands_and_keeps_the_mean():
    key = jax.random.key(0)
    x = np.ones((4, 50, 39), np.float32)
    whole = np.asarray(dropout(key, np.arange(4), x, 0.3))
    np.testing.assert_array_equal(dropout(key, np.arange(2, 4), x[2:], 0.3), whole[2:])
    assert abs((whole == 0).mean() - 0.3) < 0.02 and abs(whole.mean() - 1) < 0.03
    assert (whole[0] != whole[1]).any()
    np.testing.assert_array_equal(dropout(None, np.arange(4), x, 0.3), x)


def test_draws_are_uniform_and_tell_nothing_of_each_other():
    """Means, spreads and correlations over keys, examples, places: within four standard errors."""
    shape = (8, 32, 64)
    found = np.stack([draws(jax.random.key(k), np.arange(8), shape) for k in range(4)])
    u = (found.astype(np.float64) + 0.5) / (1 << 16) - 0.5  # (key, example, L, D)
    assert abs(u.mean()) < 4 / np.sqrt(12 * u.size)
    assert abs(u.std() * np.sqrt(12) - 1) < 0.01
    pairs = [(u[0], u[1]), (u[:, 0], u[:, 1]), (u[:, :, 0], u[:, :, 1]), (u[..., :-1], u[..., 1:])]
    pairs += [(u[..., :16], u[..., 16 * i : 16 * (i + 1)]) for i in range(1, 4)]  # of one counter
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_any_random_generator_gives_the_two_words_of_a_key():
    x = np.ones((2, 8, 8), np.float32)
    for name in ("threefry2x32", "rbg"):
        got = np.asarray(dropout(jax.random.key(1, impl=name), np.arange(2), x, 0.5))
        assert 0.3 < (got == 0).mean() < 0.7
