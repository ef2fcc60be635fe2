"""Which operator each token of a CHIAR layer takes: filter, RBF mixer or attention."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct as spectral
from cerebra_jax.kernels.straight_through import st_above, st_argmax
from cerebra_jax.layers.dct_filter import methods
from cerebra_jax.routing.routers import Route, chance


class Choice(NamedTuple):
    """Who takes attention, and who of the others the RBF mixer, where there is one; the rest keep the filter."""

    attention: Route
    rbf: Route | None = None


def entropy(net: NetCfg, x_BxLxD, X_BxLxD):
    """What a threshold of CHIAR is compared with, (B, L), of tokens and their spectrum."""
    if net.route.score == "permuted":
        order_D = np.random.RandomState(0).permutation(net.width)
        X_BxLxD = spectral.dct(x_BxLxD.astype(jnp.float32)[..., order_D], methods(net).transform)
    return spectral.spectral_entropy(x_BxLxD if net.route.score == "raw" else X_BxLxD)


class Decision(nn.Module):
    """threshold: attention where H(x) > τ; no parameters, so the gate is a constant. hard: where a learned score is
    above τ, 0 but for floor and ceiling; the gate is 0/1 forward, sigmoid backward. soft: all want it, the gate blends.
    random: `rate` of the tokens whatever they hold. p = σ((score − τ)/(T·spread)): the smooth decision that the penalty
    can move. Controls of H, the entropy of the spectrum: that of the features in one other order (the order is all that
    the DCT knows of them), and of the features themselves.

    With an RBF mixer (net.route.rbf > 0) it takes the tokens between a lower threshold and τ, or those whose score is
    the highest of three. Its gate is a share of what attention leaves: g·attention + (1 − g)(g'·rbf + (1 − g')·filter).
    """

    net: NetCfg

    @nn.compact
    def __call__(
        self, x_BxLxD, X_BxLxD, temperature, tau, low, spread, layer, ex_B, pos_Bxn=None, context=0
    ) -> Choice:
        route, L = self.net.route, x_BxLxD.shape[1]
        if route.mode == "random":
            key = self.make_rng("route") if self.has_rng("route") else None
            score = chance(key, layer, ex_B, L, pos_Bxn, context)
            even = lambda share: jnp.full(score.shape, share, jnp.float32)  # noqa: E731
            first = _hard(score < route.rate, even(route.rate), score)
            if not route.rbf:
                return Choice(first)
            return Choice(
                first,
                _hard((score < route.rate + route.rbf) & ~first.wanted, even(route.rbf), score),
            )
        if route.mode == "threshold":
            score = entropy(self.net, x_BxLxD, X_BxLxD)
            above = lambda at: jax.nn.sigmoid((score - at) / (temperature * spread))  # noqa: E731
            first = _hard(score > tau, above(tau), score)
            if not route.rbf:
                return Choice(first)
            return Choice(
                first,
                _hard((score > low) & ~first.wanted, jax.nn.relu(above(low) - first.p), score),
            )
        score = nn.Dense(3 if route.rbf else 1, dtype=jnp.float32, name="score")
        z_BxLxK = score(x_BxLxD.astype(jnp.float32))
        if route.rbf:
            return _three(route.mode, z_BxLxK, temperature)
        return _two(route.mode, z_BxLxK[..., 0], tau, temperature)


def _hard(wanted, p, score) -> Route:
    return Route(wanted, wanted.astype(jnp.float32), p, score)


def _two(mode: str, score, tau, temperature) -> Choice:
    if mode == "hard":
        p = jax.nn.sigmoid((score - tau) / temperature)
        return Choice(Route(score > tau, st_above(score - tau, temperature), p, score))
    p = jax.nn.sigmoid(score / temperature)
    return Choice(Route(jnp.ones(score.shape, bool), p, p, score))


def _three(mode: str, z_BxLx3, temperature) -> Choice:
    """Of scores for attention, RBF mixer and filter; the score that is shown is how far attention is ahead."""
    p_BxLx3 = jax.nn.softmax(z_BxLx3 / temperature, axis=-1)
    score = z_BxLx3[..., 0] - jax.nn.logsumexp(z_BxLx3[..., 1:], axis=-1)
    p, q = p_BxLx3[..., 0], p_BxLx3[..., 1]
    if mode == "hard":
        one_BxLx3 = st_argmax(z_BxLx3, temperature)
        first, second = one_BxLx3[..., 0], one_BxLx3[..., 1]
        return Choice(Route(first > 0, first, p, score), Route(second > 0, second, q, score))
    every, rest = (
        jnp.ones(p.shape, bool),
        jax.nn.sigmoid((z_BxLx3[..., 1] - z_BxLx3[..., 2]) / temperature),
    )
    return Choice(Route(every, p, p, score), Route(every, rest, q, score))


def uses(
    choice: Choice, kept: jax.Array, rbf_kept: jax.Array | None, soft: bool
) -> dict[str, jax.Array]:
    """{use_attention, use_dct, maybe use_rbf: share of the tokens that took it, or of the blend, (B,)}; use_entropy:
    −Σ ū log ū / log K of the smooth decisions, ū their mean over the tokens of an example. That has a gradient: hard
    shares have none."""
    smooth = {"attention": choice.attention.p} | ({"rbf": choice.rbf.p} if choice.rbf else {})
    taken = {"attention": kept} | ({"rbf": rbf_kept} if choice.rbf else {})
    mean = {name: p.mean(1) for name, p in smooth.items()}
    share = {name: jax.lax.stop_gradient(mean[name]) if soft else x.astype(jnp.float32).mean(1)
             for name, x in taken.items()}  # fmt: skip
    u_KxB = jnp.stack([*mean.values(), 1 - sum(mean.values())])
    # the small term keeps the gradient finite where nobody takes an operator
    entropy_B = -(u_KxB * jnp.log(jnp.maximum(u_KxB, 1e-6))).sum(0) / math.log(len(u_KxB))
    share["dct"] = 1 - sum(share.values())
    return {f"use_{name}": x for name, x in share.items()} | {"use_entropy": entropy_B}
