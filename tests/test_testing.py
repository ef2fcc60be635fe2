"""The checks for users' own models: their documentation runs, and they catch what they are for."""

from __future__ import annotations

import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import testing

X = np.random.RandomState(0).standard_normal((3, 8)).astype(np.float32)


def test_documentation_runs():
    result = doctest.testmod(testing)
    assert result.attempted > 5
    assert result.failed == 0


def full(x):
    """Outputs, and decisions: whether the running sum is above 0."""
    y = jnp.cumsum(x, axis=1)
    return y, y > 0


def outputs(x):
    return full(x)[0]


def step(cache, x_Bxn, new_B, *, forget=0.0, shift=0.0):
    """Decodes `full`; padding adds `forget` to the sum, and decisions are taken `shift` higher."""
    total_B, read_B, kept_BxL = cache
    n = x_Bxn.shape[1]
    real_Bxn = jnp.arange(n)[None] < new_B[:, None]
    y_Bxn = total_B[:, None] + jnp.cumsum(jnp.where(real_Bxn, x_Bxn, forget), axis=1)
    place_Bxn = jnp.where(real_Bxn, read_B[:, None] + jnp.arange(n)[None], 8)
    kept_BxL = kept_BxL.at[jnp.arange(3)[:, None], place_Bxn].set(y_Bxn + shift > 0, mode="drop")
    return y_Bxn, (y_Bxn[:, -1], read_B + new_B, kept_BxL)


def forgets(cache, x_Bxn, new_B):
    return step(cache, x_Bxn, new_B, forget=0.1)


def decides_otherwise(cache, x_Bxn, new_B):
    return step(cache, x_Bxn, new_B, shift=0.3)


def kept_of(cache):
    return cache[2]


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_assert_decodes_catches_a_cache_that_keeps_padding_and_decisions_that_differ(chunk):
    cache = (jnp.zeros(3), jnp.zeros(3, jnp.int32), jnp.zeros((3, 8), bool))
    testing.assert_decodes(full, step, cache, X, chunk=chunk, decisions=kept_of)
    with pytest.raises(AssertionError, match="differs from the full pass"):
        testing.assert_decodes(outputs, forgets, cache, X, chunk=chunk)
    with pytest.raises(AssertionError, match="decisions differ"):
        testing.assert_decodes(full, decides_otherwise, cache, X, chunk=chunk, decisions=kept_of)


def test_assert_decodes_refuses_outputs_of_another_shape():
    def last_only(cache, x_Bxn, new_B):
        y_Bxn, cache = step(cache, x_Bxn, new_B)
        return y_Bxn[:, -1:], cache

    cache = (jnp.zeros(3), jnp.zeros(3, jnp.int32), jnp.zeros((3, 8), bool))
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_decodes(outputs, last_only, cache, X)
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_decodes(lambda x: outputs(x)[:, :-1], step, cache, X)


def top_k(x):
    return x * (x >= jnp.sort(x, axis=1)[:, -4][:, None])


def sequence_mean(x):
    return x + x.mean(1, keepdims=True)


def off_by_one(x):
    return jnp.roll(x, -1, axis=1)


def batch_mean(x):
    return x - x.mean(0, keepdims=True)


@pytest.mark.parametrize("leak", [top_k, sequence_mean, off_by_one, batch_mean])
def test_assert_causal_catches_known_leaks(leak):
    x = np.random.RandomState(0).standard_normal((3, 16)).astype(np.float32)
    testing.assert_causal(lambda x: jnp.cumsum(jnp.asarray(x), axis=1), x)
    with pytest.raises(AssertionError, match="changed"):
        testing.assert_causal(lambda x: leak(jnp.asarray(x)), x)


def test_assert_causal_looks_where_it_is_told_to():
    def leaks_at_5(x):  # output 5 depends on input 6
        return x.at[:, 5].add(x[:, 6])

    def run(x):
        return leaks_at_5(jnp.asarray(x))

    testing.assert_causal(run, X, cuts=[3, 5, 7])
    with pytest.raises(AssertionError, match="tokens from 6 on"):
        testing.assert_causal(run, X, cuts=[6])
    testing.assert_causal(lambda x: batch_mean(jnp.asarray(x)), X, cuts=[], batch_mates=False)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match="first two axes"):
        testing.assert_causal(lambda x: x.T, X)
    with pytest.raises(ValueError, match="all inputs are equal"):
        testing.assert_causal(lambda x: x, np.ones((2, 4), np.int32))
    with pytest.raises(AssertionError, match="not finite"):
        testing.assert_causal(lambda x: x * np.nan, X)
    with pytest.raises(AssertionError, match="dtype"):
        testing.assert_causal(lambda x: x, X, lambda x, rng: x.astype(np.float64))
