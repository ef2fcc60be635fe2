"""CHIAR's router: which operator each token of a layer takes, filter, RBF mixer or attention."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import RouteCfg
from cerebra_jax.kernels import dct
from cerebra_jax.kernels.straight_through import st_above, st_argmax
from cerebra_jax.layers.parameters import Dense
from cerebra_jax.layers.rows import Rows
from cerebra_jax.routing.routers import EXACT, Circumstances, Route, chance


class Choice(NamedTuple):
    """Who takes attention, and who of the others an RBF mixer; the rest keep the filter."""

    attention: Route
    rbf: Route | None = None


def entropy(score: str, x_BxLxD, spectrum: dct.Spectrum | None, transform: str):
    """Returns what a threshold is compared with, (B, L), of tokens and their spectrum.

    score: "spectral" the entropy of the spectrum; "permuted" that of the features in one other
    order (the order is all that the DCT knows of them); "raw" that of the features themselves.
    """
    if score == "raw":
        return dct.spectral_entropy(x_BxLxD)
    if score == "permuted":
        order_D = np.random.RandomState(0).permutation(x_BxLxD.shape[-1])
        spectrum = dct.spectrum(x_BxLxD[..., order_D], transform)
    assert spectrum is not None, "a spectral score looks at what the filter has computed"
    return dct.spectral_entropy(*spectrum)


class EntropyRouter(nn.Module):
    """Chooses an operator for each token.

    threshold: attention where H(x) > τ; no parameters, so the gate is a constant. hard: where a
    learned score is above τ, 0 but for floor and ceiling; the gate is 0/1 forward, sigmoid
    backward. soft: all want it, the gate blends. random: `rate` of the tokens whatever they hold.
    p = σ((score − τ)/(T·spread)): the smooth decision that the penalty can move.

    With an RBF mixer (net.route.rbf > 0) it takes the tokens between a lower threshold and τ, or
    those whose score is the highest of three. Its gate is a share of what attention leaves:
    g·attention + (1 − g)(g'·rbf + (1 − g')·filter).
    """

    route: RouteCfg
    transform: str  # how a DCT is computed

    @nn.compact
    def __call__(self, tokens: Rows, spectrum: dct.Spectrum | None, now: Circumstances) -> Choice:
        route = self.route
        if route.mode == "random":
            return self._random(tokens, now)
        if route.mode == "threshold":
            return self._threshold(tokens, spectrum, now)
        dense = Dense(3 if route.rbf else 1, dtype=jnp.float32, precision=EXACT, name="score")
        z_BxLxK = dense(tokens.x.astype(jnp.float32))
        if route.rbf:
            return _three(route.mode, z_BxLxK, now.temperature)
        return _two(route.mode, z_BxLxK[..., 0], now.thresholds.tau, now.temperature)

    def _random(self, tokens: Rows, now: Circumstances) -> Choice:
        route = self.route
        key = self.make_rng("route") if self.has_rng("route") else None
        score = chance(key, now, tokens)

        def even(share):
            return jnp.full(score.shape, share, jnp.float32)

        first = _hard(score < route.rate, even(route.rate), score)
        if not route.rbf:
            return Choice(first)
        second = (score < route.rate + route.rbf) & ~first.wanted
        return Choice(first, _hard(second, even(route.rbf), score))

    def _threshold(self, tokens: Rows, spectrum: dct.Spectrum | None, now: Circumstances) -> Choice:
        tau, low, spread = now.thresholds
        score = entropy(self.route.score, tokens.x, spectrum, self.transform)

        def above(at):
            return jax.nn.sigmoid((score - at) / (now.temperature * spread))

        first = _hard(score > tau, above(tau), score)
        if not self.route.rbf:
            return Choice(first)
        second = (score > low) & ~first.wanted
        return Choice(first, _hard(second, jax.nn.relu(above(low) - first.p), score))


def _hard(wanted, p, score) -> Route:
    return Route(wanted, wanted.astype(jnp.float32), p, score)


def _two(mode: str, score, tau, temperature) -> Choice:
    if mode == "hard":
        p = jax.nn.sigmoid((score - tau) / temperature)
        return Choice(Route(score > tau, st_above(score - tau, temperature), p, score))
    p = jax.nn.sigmoid(score / temperature)
    return Choice(Route(jnp.ones(score.shape, bool), p, p, score))


def _three(mode: str, z_BxLx3, temperature) -> Choice:
    """Chooses by scores for attention, RBF mixer and filter.

    The score that is shown is how far attention is ahead of both others.
    """
    p_BxLx3 = jax.nn.softmax(z_BxLx3 / temperature, axis=-1)
    score = z_BxLx3[..., 0] - jax.nn.logsumexp(z_BxLx3[..., 1:], axis=-1)
    p, q = p_BxLx3[..., 0], p_BxLx3[..., 1]
    if mode == "hard":
        one_BxLx3 = st_argmax(z_BxLx3, temperature)
        first, second = one_BxLx3[..., 0], one_BxLx3[..., 1]
        return Choice(Route(first > 0, first, p, score), Route(second > 0, second, q, score))
    everyone = jnp.ones(p.shape, bool)
    rest = jax.nn.sigmoid((z_BxLx3[..., 1] - z_BxLx3[..., 2]) / temperature)
    return Choice(Route(everyone, p, p, score), Route(everyone, rest, q, score))


def uses(
    choice: Choice, kept: jax.Array, rbf_kept: jax.Array | None, soft: bool
) -> dict[str, jax.Array]:
    """Returns what share of each example's tokens takes each operator, (B,), and its evenness.

    use_attention, use_dct and with an RBF mixer use_rbf: shares of the tokens, or of the blend.
    use_entropy: −Σ ū log ū / log K of the smooth decisions, ū their mean over the tokens of an
    example. That has a gradient: hard shares have none.
    """
    # the smooth decisions, and the tokens that are carried out
    smooth = {"attention": choice.attention.p}
    taken = {"attention": kept}
    if choice.rbf is not None:
        assert rbf_kept is not None, "every decision is carried out"
        smooth["rbf"] = choice.rbf.p
        taken["rbf"] = rbf_kept

    # the shares
    mean = {name: p.mean(1) for name, p in smooth.items()}
    if soft:
        share = {name: jax.lax.stop_gradient(mean_B) for name, mean_B in mean.items()}
    else:
        share = {name: x.astype(jnp.float32).mean(1) for name, x in taken.items()}

    # their entropy; the small term keeps the gradient finite where nobody takes an operator
    u_KxB = jnp.stack([*mean.values(), _rest(mean)])
    entropy_B = -(u_KxB * jnp.log(jnp.maximum(u_KxB, 1e-6))).sum(0) / math.log(len(u_KxB))
    share["dct"] = _rest(share)
    return {f"use_{name}": x for name, x in share.items()} | {"use_entropy": entropy_B}


def _rest(share: dict[str, jax.Array]) -> jax.Array:
    """Returns what the other operators leave to the filter."""
    return cast(jax.Array, 1 - sum(share.values()))  # of one or more, so it is no bare number
