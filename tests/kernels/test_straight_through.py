"""Straight-through decisions: hard forward, declared surrogate backward, not zero; and E[pairs]."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.kernels.straight_through import expected_pairs, st_above, st_argmax

S = jnp.array([-2.0, -0.3, 0.1, 1.5])
V = jnp.array([1.0, 2.0, 3.0, -1.0])


def test_forward_is_exactly_hard():
    np.testing.assert_array_equal(st_above(S, 0.7), [0.0, 0.0, 1.0, 1.0])


def test_backward_is_the_sigmoid_surrogate_and_not_zero():
    got = jax.grad(lambda s: st_above(s, 0.7) @ V)(S)
    want = jax.grad(lambda s: jax.nn.sigmoid(s / 0.7) @ V)(S)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert jnp.abs(got).min() > 1e-2


def test_the_choice_among_three_is_hard_with_the_gradient_of_a_softmax():
    z = jnp.float32(np.random.RandomState(0).standard_normal((2, 7, 3)))
    one = st_argmax(z, 0.7)
    np.testing.assert_array_equal(one, np.asarray(z) == np.asarray(z).max(-1, keepdims=True))
    w = jnp.float32(np.random.RandomState(1).standard_normal(z.shape))
    got = jax.grad(lambda z: (st_argmax(z, 0.7) * w).sum())(z)
    want = jax.grad(lambda z: (jax.nn.softmax(z / 0.7, axis=-1) * w).sum())(z)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert float(jnp.abs(got).min()) > 1e-6


def test_expected_pairs_is_the_mean_over_all_outcomes():
    p = np.array([0.2, 0.9, 0.5, 0.7])
    mean = 0.0
    for keep in itertools.product([0, 1], repeat=4):
        chance = np.prod(np.where(keep, p, 1 - p))
        mean += chance * sum(keep[i] * keep[j] for i in range(4) for j in range(i + 1))
    got = expected_pairs(jnp.asarray(p[None], jnp.float32))[0]
    np.testing.assert_allclose(got, mean, rtol=1e-6)
