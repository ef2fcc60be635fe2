"""Top-k: exactly k ones forward, the declared surrogate backward, not zero; and Gumbel noise.

The noise draws without replacement.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.kernels import topk

S = jnp.array([[0.1, 2.0, -1.0, 0.7], [3.0, 0.0, 0.5, 0.4]])
V = jnp.array([[1.0, 2.0, 3.0, -1.0], [0.5, -2.0, 1.0, 4.0]])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_forward_is_exactly_the_k_largest(k):
    got = topk.st_topk(S, k)
    order = np.argsort(-np.asarray(S), axis=1)
    want = np.zeros(S.shape, np.float32)
    np.put_along_axis(want, order[:, :k], 1.0, axis=1)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, topk.hard_topk(S, k))


def test_ties_and_padding_still_give_exactly_k():
    s = jnp.array([[1.0, 1.0, 1.0, 1.0], [-1e9, -1e9, -1e9, 5.0], [-1e9, -1e9, -1e9, -1e9]])
    np.testing.assert_array_equal(topk.hard_topk(s, 2), [[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]])
    assert np.isfinite(jax.grad(lambda s: topk.st_topk(s, 2).sum())(s)).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_backward_is_the_declared_surrogate_and_not_zero(temperature):
    got = jax.grad(lambda s: (topk.st_topk(s, 2, temperature) * V).sum())(S)
    want = jax.grad(lambda s: (topk.relaxed_topk(s, 2, temperature) * V).sum())(S)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    assert jnp.abs(got).max() > 1e-2


def test_the_cost_of_a_fixed_count_has_no_gradient():
    """Why the penalty never goes through top-k: the sum is k whatever the scores are."""
    np.testing.assert_allclose(jax.grad(lambda s: topk.st_topk(s, 2).sum())(S), 0, atol=1e-6)


def test_gumbel_noise_is_keyed_by_the_example_and_samples_the_softmax():
    key = jax.random.key(0)
    s = jnp.broadcast_to(jnp.log(jnp.array([0.6, 0.3, 0.1])), (4000, 3))
    ex = jnp.arange(4000)
    noisy = topk.gumbel(key, ex, s, 1.0)
    np.testing.assert_array_equal(noisy[5:8], topk.gumbel(key, ex[5:8], s[5:8], 1.0))
    np.testing.assert_array_equal(topk.gumbel(key, ex, s, 0.0), s)
    fraction = np.bincount(np.asarray(noisy.argmax(1)), minlength=3) / 4000
    np.testing.assert_allclose(fraction, [0.6, 0.3, 0.1], atol=0.03)  # 4 standard deviations
