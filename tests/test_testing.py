"""The checks for users' own models: their documentation runs, and they catch what they are for."""

import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import testing

X = np.random.RandomState(0).standard_normal((3, 8)).astype(np.float32)


def test_documentation_runs():
    result = doctest.testmod(testing)
    assert result.attempted > 5 and result.failed == 0


def full(x):
    """Outputs, and decisions: whether the running sum is above 0."""
    y = jnp.cumsum(x, axis=1)
    return y, y > 0


def step(cache, x_Bxn, new_B, *, forget=0.0, shift=0.0):
    total_B, at_B, kept_BxL = cache
    real_Bxn = jnp.arange(x_Bxn.shape[1])[None] < new_B[:, None]
    y_Bxn = total_B[:, None] + jnp.cumsum(jnp.where(real_Bxn, x_Bxn, forget), axis=1)
    place_Bxn = jnp.where(real_Bxn, at_B[:, None] + jnp.arange(x_Bxn.shape[1])[None], 8)
    kept_BxL = kept_BxL.at[jnp.arange(3)[:, None], place_Bxn].set(y_Bxn + shift > 0, mode="drop")
    return y_Bxn, (y_Bxn[:, -1], at_B + new_B, kept_BxL)


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_assert_decodes_catches_a_cache_that_keeps_padding_and_decisions_that_differ(chunk):
    cache = (jnp.zeros(3), jnp.zeros(3, jnp.int32), jnp.zeros((3, 8), bool))
    check = {"chunk": chunk, "decisions": lambda cache: cache[2]}
    testing.assert_decodes(full, step, cache, X, **check)
    with pytest.raises(AssertionError, match="differs from the full pass"):
        testing.assert_decodes(
            lambda x: full(x)[0], lambda *a: step(*a, forget=0.1), cache, X, chunk=chunk
        )
    with pytest.raises(AssertionError, match="decisions differ"):
        testing.assert_decodes(full, lambda *a: step(*a, shift=0.3), cache, X, **check)


@pytest.mark.parametrize(
    ("what", "leak"),
    [
        ("top-k over the sequence", lambda x: x * (x >= jnp.sort(x, axis=1)[:, -4][:, None])),
        ("sequence mean", lambda x: x + x.mean(1, keepdims=True)),
        ("off by one", lambda x: jnp.roll(x, -1, axis=1)),
        ("batch mean", lambda x: x - x.mean(0, keepdims=True)),
    ],
)
def test_assert_causal_catches_known_leaks(what, leak):
    x = np.random.RandomState(0).standard_normal((3, 16)).astype(np.float32)
    testing.assert_causal(lambda x: jnp.cumsum(jnp.asarray(x), axis=1), x)
    with pytest.raises(AssertionError):
        testing.assert_causal(lambda x: leak(jnp.asarray(x)), x)
