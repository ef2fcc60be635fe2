"""Straight-through decisions: hard in the forward pass, a declared smooth surrogate in the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cerebra_jax.config import RouteCfg


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


@jax.custom_vjp
def st_argmax(z_BxLxK, width):
    """1 at the largest of K scores, the first of equal ones, else 0 (float32). Backward: the gradient of
    softmax(z / width) in z; `width` gets no gradient."""
    return jax.nn.one_hot(jnp.argmax(z_BxLxK, axis=-1), z_BxLxK.shape[-1], dtype=jnp.float32)


def _argmax_fwd(z_BxLxK, width):
    return st_argmax(z_BxLxK, width), (jax.nn.softmax(z_BxLxK / width, axis=-1), width)


def _argmax_bwd(res, g):
    p, width = res
    return p * (g - (p * g).sum(-1, keepdims=True)) / width, jnp.zeros_like(width)


st_argmax.defvjp(_argmax_fwd, _argmax_bwd)


def expected_pairs(p_BxL) -> jax.Array:
    """E[number of visible (query, key) pairs] when token i is kept with probability p_i, independently: (B,).

    Σ_{i>j} p_i p_j + Σ p_i = ((Σp)² − Σp²)/2 + Σp: the second moment, not the square of the mean.
    """
    total, square = p_BxL.sum(-1), jnp.square(p_BxL).sum(-1)
    return 0.5 * (total * total - square) + total


def threshold_for(route: RouteCfg, score_BxL, rate, more: float = 0.0) -> jax.Array:
    """Where the threshold of these scores should stand, (B,): the share above it is rate · net.route.rate, or with a
    learned score wherever 0 falls; kept between net.route.floor and net.route.ceiling. `more`: so much more of them."""

    def above(share):
        return jnp.quantile(score_BxL, 1 - share, axis=1)

    if route.mode == "threshold":
        return above(
            jnp.minimum(jnp.clip(route.rate * rate, route.floor, route.ceiling) + more, 1.0)
        )
    tau_B = jnp.zeros(score_BxL.shape[0])
    tau_B = tau_B if route.ceiling == 1.0 else jnp.maximum(tau_B, above(route.ceiling))
    return tau_B if route.floor == 0.0 else jnp.minimum(tau_B, above(route.floor))
