"""Takes the top k of the last axis: hard, with Gumbel noise, and straight-through.

It sees the whole sequence, so it is for encoders. Hard top-k has no gradient, so `st_topk` declares
one: that of k · softmax(s / T), the relaxed selection.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def hard_topk(s_BxL, k: int) -> jax.Array:
    """Returns (…, L) float32 with exactly k ones, at the k largest scores.

    Among equal scores it takes the earliest.
    """
    idx = jax.lax.top_k(s_BxL, k)[1].reshape(-1, k)
    rows = jnp.arange(idx.shape[0])[:, None]
    zeros = jnp.zeros((idx.shape[0], s_BxL.shape[-1]), jnp.float32)
    ones = zeros.at[rows, idx].set(1.0, unique_indices=True)
    return ones.reshape(s_BxL.shape)


def relaxed_topk(s_BxL, k: int, temperature) -> jax.Array:
    """Returns k · softmax(s / T), which sums to k: the surrogate whose gradient `st_topk` has."""
    return k * jax.nn.softmax(s_BxL / temperature, axis=-1)


def st_topk(s_BxL, k: int, temperature: jax.Array | float = 1.0) -> jax.Array:
    """Returns `hard_topk`; backward it has the gradient of `relaxed_topk` in s, and none in T.

    Straight-through estimator, Bengio et al. 2013, arXiv:1308.3432. Its bias falls as T grows: keep
    T ≥ 0.5.
    """
    return _st_topk(s_BxL, k, temperature)


def _hard(s_BxL, k: int, temperature) -> jax.Array:
    return hard_topk(s_BxL, k)


def _fwd(s_BxL, k, temperature):
    return hard_topk(s_BxL, k), (jax.nn.softmax(s_BxL / temperature, axis=-1), temperature)


def _bwd(k, res, g):
    p, temperature = res
    return k * p * (g - (p * g).sum(-1, keepdims=True)) / temperature, jnp.zeros_like(temperature)


_st_topk = jax.custom_vjp(_hard, nondiff_argnums=(1,))
_st_topk.defvjp(_fwd, _bwd)


def gumbel(key: jax.Array, ex_B, s_BxL, scale) -> jax.Array:
    """Returns s + scale · Gumbel noise.

    Its top k are k draws without replacement from softmax(s / scale) (Kool et al. 2019,
    arXiv:1903.06059). The noise is keyed by the example's index in the global batch, so it does not
    depend on how the batch lies on the devices.
    """
    noise = jax.vmap(
        lambda e: jax.random.gumbel(jax.random.fold_in(key, e), s_BxL.shape[1:], s_BxL.dtype)
    )(ex_B)
    return s_BxL + scale * noise
