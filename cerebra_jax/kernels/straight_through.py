"""Takes straight-through decisions.

They are hard in the forward pass and have a declared smooth surrogate in the backward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def st_above(score, width):
    """Returns 1 where score > 0, else 0 (float32).

    Backward it has the gradient of sigmoid(score / width) in `score`, and none in `width`.
    Straight-through estimator, Bengio et al. 2013, arXiv:1308.3432.
    """
    return (score > 0).astype(jnp.float32)


def _fwd(score, width):
    p = jax.nn.sigmoid(score / width)
    return st_above(score, width), (p * (1 - p) / width, width)


def _bwd(res, g):
    slope, width = res
    return g * slope, jnp.zeros_like(width)


st_above.defvjp(_fwd, _bwd)


@jax.custom_vjp
def st_argmax(z_BxLxK, width):
    """Returns 1 at the largest of K scores, the first of equal ones, else 0 (float32).

    Backward it has the gradient of softmax(z / width) in z; `width` gets no gradient.
    """
    return jax.nn.one_hot(jnp.argmax(z_BxLxK, axis=-1), z_BxLxK.shape[-1], dtype=jnp.float32)


def _argmax_fwd(z_BxLxK, width):
    return st_argmax(z_BxLxK, width), (jax.nn.softmax(z_BxLxK / width, axis=-1), width)


def _argmax_bwd(res, g):
    p, width = res
    return p * (g - (p * g).sum(-1, keepdims=True)) / width, jnp.zeros_like(width)


st_argmax.defvjp(_argmax_fwd, _argmax_bwd)


def expected_pairs(p_BxL) -> jax.Array:
    """Returns the expected number of visible (query, key) pairs, (B,).

    Token i is selected with probability p_i, independently of others: Σ_{i>j} p_i p_j + Σ p_i =
    ((Σp)² − Σp²)/2 + Σp, the second moment and not the square of the mean.
    """
    total = p_BxL.sum(-1)
    square = jnp.square(p_BxL).sum(-1)
    return 0.5 * (total * total - square) + total
