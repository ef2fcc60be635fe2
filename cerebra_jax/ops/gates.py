"""Straight-through decisions: hard in the forward pass, a declared smooth surrogate in the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def st_above(score, width):
    """1 where score > 0, else 0 (float32). Backward: the gradient of sigmoid(score / width) in `score`.

    Straight-through estimator, Bengio et al. 2013, arXiv:1308.3432. `width` gets no gradient.
    """
    return (score > 0).astype(jnp.float32)


def _fwd(score, width):
    p = jax.nn.sigmoid(score / width)
    return st_above(score, width), (p * (1 - p) / width, width)


def _bwd(res, g):
    slope, width = res
    return g * slope, jnp.zeros_like(width)


st_above.defvjp(_fwd, _bwd)


def expected_pairs(p_BxL) -> jax.Array:
    """E[number of visible (query, key) pairs] when token i is kept with probability p_i, independently: (B,).

    Σ_{i>j} p_i p_j + Σ p_i = ((Σp)² − Σp²)/2 + Σp: the second moment, not the square of the mean.
    """
    total, square = p_BxL.sum(-1), jnp.square(p_BxL).sum(-1)
    return 0.5 * (total * total - square) + total
