"""Routers: which tokens the heavy path sees, and how much of it each of them takes. Cerebra 3.3.

y = x + g · heavy + (1 − g) · light with g = gate · kept: the gate carries the gradient to the
score, and never scales the residual.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import RouteCfg
from cerebra_jax.kernels import topk
from cerebra_jax.layers.compressor import ceil_share
from cerebra_jax.layers.linear import normal
from cerebra_jax.layers.parameters import Dense, Module
from cerebra_jax.layers.rows import Rows

SCORED = ("soft", "topk", "threshold")  # modes of Cerebra and MoD that decide by a learned score


EXACT = jax.lax.Precision.HIGHEST
"""Of a router's products: float32 by default means TF32 on a GPU and bfloat16 on a TPU."""


class Route(NamedTuple):
    """A routing decision, all (B, L)."""

    wanted: jax.Array  # bool: who is selected for the heavy path
    gate: jax.Array  # float32: how much of it they take
    p: jax.Array  # float32: their probability, for the expected cost
    score: jax.Array  # float32


class Thresholds(NamedTuple):
    """What scores of one layer are compared with, scalars; `low` only among three operators."""

    tau: jax.Array
    low: jax.Array
    spread: jax.Array


class Circumstances(NamedTuple):
    """What a router knows beside its tokens."""

    thresholds: Thresholds
    number: jax.Array  # of the layer
    temperature: jax.Array
    ex_B: jax.Array  # index of each example in the global batch
    needed_BxL: jax.Array | None = None  # what an oracle selects
    decoding: bool = False


def router_of(width: int, route: RouteCfg, causal: bool) -> nn.Module | None:
    """Returns the router of net.route.mode; None where every token goes one way."""
    if route.mode.startswith("always"):
        return None
    if route.mode == "oracle":
        return OracleRouter(parent=None)
    if route.mode == "random":
        return RandomRouter(width, route, causal, parent=None)
    return Router(width, route, parent=None)


class OracleRouter(nn.Module):
    """Selects the tokens that the task says its answers need: what a router could do at best."""

    def __call__(self, tokens: Rows, now: Circumstances) -> Route:
        selected = now.needed_BxL
        assert selected is not None, "an oracle is for tasks that mark what they need"
        if tokens.mask is not None:
            selected = selected & tokens.mask
        p = selected.astype(jnp.float32)
        return Route(selected, jnp.ones(selected.shape), p, p)


class RandomRouter(nn.Module):
    """Selects `rate` of the tokens whatever they hold, the same ones at every evaluation.

    In an encoder exactly that many, or net.route.k of them. Their gate is 1, or σ(s) of a linear
    score s that decides nothing (net.route.gate).
    """

    width: int
    route: RouteCfg
    causal: bool

    @nn.compact
    def __call__(self, tokens: Rows, now: Circumstances) -> Route:
        key = self.make_rng("route") if self.has_rng("route") else None
        score = chance(key, now, tokens)
        rate = self.route.rate
        if self.causal:
            selected = score < rate
        else:
            k = selected_tokens(self.route, tokens.count)
            rate = k / tokens.count if self.route.k else rate
            selected = topk.hard_topk(_last(score, tokens.mask), k) > 0
        if tokens.mask is not None:
            selected = selected & tokens.mask
        p = jnp.full(score.shape, rate)
        if not scored(self.route):
            return Route(selected, jnp.ones(score.shape), p, score)
        score = linear_score(self.width)(tokens.x.astype(jnp.float32))[..., 0]
        return Route(selected, jax.nn.sigmoid(score), p, score)


class Router(nn.Module):
    """Scores each token linearly, in float32, and selects by the scores.

    threshold: selected where s > τ, gate σ((s − τ)/spread). topk: exactly k selected, by score (and
    Gumbel noise in training), gate 0/1 with the surrogate gradient of `topk.st_topk`. soft: all
    selected, gate σ(s).

    p = σ((s − τ)/(T · spread)) is the smooth decision that a penalty can move. With topk the count
    is fixed and so is the cost: p is the decision itself. Padding is never selected, unless top-k
    has too few real tokens.
    """

    width: int
    route: RouteCfg

    @nn.compact
    def __call__(self, tokens: Rows, now: Circumstances) -> Route:
        route = self.route
        mask = tokens.mask
        real = jnp.ones(tokens.x.shape[:2], bool) if mask is None else mask
        shift = NormalDist().inv_cdf(route.rate) if learned(route) else 0.0
        dense = linear_score(self.width, learned(route), shift)
        score = dense(tokens.x.astype(jnp.float32))[..., 0]

        if route.mode == "soft":
            gate = jax.nn.sigmoid(score)
            return Route(real, gate, gate * real, score)
        if route.mode == "topk":
            noisy = score
            if self.has_rng("route"):
                key = self.make_rng("route")
                noisy = topk.gumbel(key, now.ex_B, score, route.noise * now.temperature)
            k = selected_tokens(route, tokens.count)
            gate = topk.st_topk(jnp.where(real, noisy, -1e9), k, now.temperature)
            return Route(gate > 0, gate, jax.lax.stop_gradient(gate), score)
        tau, _, spread = now.thresholds
        z = (score - tau) / jnp.maximum(spread, 1e-6)
        p = jax.nn.sigmoid(z / now.temperature) * real
        return Route((score > tau) & real, jax.nn.sigmoid(z), p, score)


def linear_score(width: int, has_bias: bool = True, shift: float = 0.0) -> Dense:
    """Returns the layer that scores a token, (…, D) -> (…, 1) float32, for a router to hold.

    Scores of normalised features spread by about 1, around `shift`.
    """
    return Dense(
        1,
        has_bias,
        jnp.float32,
        precision=EXACT,
        kernel_init=normal(width**-0.5),
        bias_init=nn.initializers.constant(shift),
        name="score",
    )


def _last(score, mask_BxL):
    """Returns scores by which padding comes last; −inf would make softmax NaN without a token."""
    return score if mask_BxL is None else jnp.where(mask_BxL, score, -1e9)


def chance(key, now: Circumstances, tokens: Rows):
    """Returns (B, n) uniform numbers in [0, 1), of each example; without a key always the same.

    When decoding, those of the tokens at their positions of the whole context.
    """
    key = jax.random.fold_in(jax.random.key(0) if key is None else key, now.number)
    L = tokens.length if now.decoding else tokens.count
    draws = jax.vmap(lambda e: jax.random.uniform(jax.random.fold_in(key, e), (L,)))(now.ex_B)
    if not now.decoding:
        return draws
    return jnp.take_along_axis(draws, jnp.minimum(tokens.pos, L - 1), axis=1)


class MetaRouter(Module):
    """Gates a layer for the whole text: g = σ(w·x̄ + b), (B, L, 1) float32.

    x̄ is the mean of the tokens so far (`prefix`, causal) or of batch and tokens (`batch`, as
    published: it leaks the future and the other examples). `task`: g = σ(b_task), one of `tasks`
    numbers for each row.
    """

    mode: str
    tasks: int = 0

    def __call__(self, x_BxLxD, task_B=None):
        x = x_BxLxD.astype(jnp.float32)
        if self.mode == "task":
            gate_B = self._gate(None)[task_B]
            return jnp.broadcast_to(gate_B[:, None, None], (*x.shape[:2], 1))
        if self.mode == "prefix":
            seen_L = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)
            return self._gate(jnp.cumsum(x, axis=1) / seen_L[None, :, None])
        return self._gate(jnp.broadcast_to(x.mean((0, 1), keepdims=True), x.shape))

    def decode(self, rows: Rows, sum_BxD):
        """Returns (gates of a chunk, the sum of the tokens so far), of the sum before the chunk."""
        assert rows.mask is not None, "a chunk always has a mask"
        x = jnp.where(rows.mask[..., None], rows.x.astype(jnp.float32), 0.0)
        sum_BxnxD = sum_BxD[:, None] + jnp.cumsum(x, axis=1)
        seen_Bxnx1 = (rows.pos[..., None] + 1).astype(jnp.float32)
        return self._gate(sum_BxnxD / seen_Bxnx1), sum_BxnxD[:, -1]

    @nn.compact
    def _gate(self, mean_BxLxD):
        """Returns the gate of each mean, or of each task."""
        if self.mode == "task":
            bias_T = self.param("bias", nn.initializers.zeros, (self.tasks,), jnp.float32)
            return jax.nn.sigmoid(bias_T)
        dense = Dense(1, dtype=jnp.float32, precision=EXACT, kernel_init=normal(), name="gate")
        return jax.nn.sigmoid(dense(mean_BxLxD))


def scored(route: RouteCfg) -> bool:
    """Returns whether a router of Cerebra or MoD has a learned score."""
    return route.mode in SCORED or (route.mode == "random" and route.gate == "learned")


def learned(route: RouteCfg) -> bool:
    """Returns whether the threshold stands still and the scores move, inside floor and ceiling."""
    return route.mode == "threshold" and route.tau == "learned"


def selected_tokens(route: RouteCfg, L: int) -> int:
    """Returns how many tokens a router of a fixed count selects: k, or the rate's share."""
    return min(L, route.k or ceil_share(route.rate, L))
