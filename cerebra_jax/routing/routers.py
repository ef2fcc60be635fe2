"""Routers: which tokens the heavy path sees, and how much of it each of them takes. Cerebra 3.3.

`Router` is Cerebra's: a linear score per token, float32, of its normalised features. y = x + g · heavy + (1 − g) ·
light with g = gate · kept: the gate carries the gradient to the score, and never scales the residual.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.cost import prices
from cerebra_jax.kernels import topk
from cerebra_jax.kernels.straight_through import expected_pairs
from cerebra_jax.layers import block, shapes
from cerebra_jax.layers.compressor import ceil_share
from cerebra_jax.routing import dispatch
from cerebra_jax.types import Cost, DecisionCost

SCORED = ("soft", "topk", "threshold")  # modes with a learned score


class Route(NamedTuple):
    """A routing decision, all (B, L): who wants the heavy path, its gate, its probability for the expected cost."""

    wanted: jax.Array  # bool
    gate: jax.Array  # float32
    p: jax.Array  # float32
    score: jax.Array  # float32


class Router(nn.Module):
    """threshold: wanted where s > τ, gate σ((s − τ)/spread). topk: exactly k wanted, by score (and Gumbel noise in
    training), gate 0/1 with the surrogate gradient of `topk.st_topk`. soft: all wanted, gate σ(s). random: `rate` of
    the tokens whatever they hold, the same ones at every evaluation; exactly that many in an encoder. oracle: those
    that the task says its answers need, what a router could do at best.

    p = σ((s − τ)/(T · spread)) is the smooth decision that a penalty can move. With topk the count is fixed and so is
    the cost: p is the decision itself. Padding (mask false) is never wanted, unless top-k has too few real tokens.
    When decoding, the tokens stand at `pos_Bxn` of `context`: a random router then draws what it draws for all of them.
    """

    net: NetCfg

    @nn.compact
    def __call__(self, h_BxLxD, tau, spread, temperature, layer, ex_B, mask_BxL, needed_BxL=None, pos_Bxn=None,
                 context=0) -> Route:  # fmt: skip
        route, (B, L) = self.net.route, h_BxLxD.shape[:2]
        key = self.make_rng("route") if self.has_rng("route") else None
        # −inf would make softmax NaN in an example of padding only
        real = jnp.ones((B, L), bool) if mask_BxL is None else mask_BxL
        last = lambda s: jnp.where(real, s, -1e9)  # noqa: E731
        if route.mode == "oracle":
            wanted = needed_BxL & real
            return Route(wanted, jnp.ones((B, L)), *[wanted.astype(jnp.float32)] * 2)
        if route.mode == "random":
            s = chance(key, layer, ex_B, L, pos_Bxn, context)
            keep = (
                s < route.rate
                if self.net.causal
                else topk.hard_topk(last(s), kept_tokens(route, L)) > 0
            )
            return Route(keep & real, jnp.ones((B, L)), jnp.full((B, L), route.rate), s)

        init = nn.initializers.normal(
            self.net.width**-0.5
        )  # scores of normalised features spread by about 1
        shift = nn.initializers.constant(
            NormalDist().inv_cdf(route.rate) if learned(route) else 0.0
        )
        dense = nn.Dense(
            1, learned(route), jnp.float32, kernel_init=init, bias_init=shift, name="score"
        )
        s = dense(h_BxLxD.astype(jnp.float32))[..., 0]
        if route.mode == "soft":
            g = jax.nn.sigmoid(s)
            return Route(real, g, g * real, s)
        if route.mode == "topk":
            noisy = s if key is None else topk.gumbel(key, ex_B, s, route.noise * temperature)
            gate = topk.st_topk(last(noisy), kept_tokens(route, L), temperature)
            return Route(gate > 0, gate, jax.lax.stop_gradient(gate), s)
        spread = jnp.maximum(spread, 1e-6)
        z = (s - tau) / spread
        return Route((s > tau) & real, jax.nn.sigmoid(z), jax.nn.sigmoid(z / temperature) * real, s)


def chance(key, layer, ex_B, L: int, pos_Bxn=None, context: int = 0):
    """(B, L) uniform numbers in [0, 1), each example its own; without a key the same ones at every call. When decoding,
    those of the tokens at `pos_Bxn` of `context`."""
    key = jax.random.fold_in(jax.random.key(0) if key is None else key, layer)
    s = jax.vmap(lambda e: jax.random.uniform(jax.random.fold_in(key, e), (context or L,)))(ex_B)
    return jnp.take_along_axis(s, jnp.minimum(pos_Bxn, context - 1), axis=1) if context else s


class MetaRouter(nn.Module):
    """g = σ(w·x̄ + b), (B, L, 1) float32: x̄ is the mean of the tokens so far (`prefix`, causal) or of batch and tokens
    (`batch`, as published: it leaks the future and the other examples). With `sum_BxD`, the sum of the tokens before
    positions `pos_Bxn`: -> (g, the sum so far). `task`: g = σ(b_task), one of `tasks` numbers for each row."""

    mode: str
    tasks: int = 0

    @nn.compact
    def __call__(self, x_BxLxD, sum_BxD=None, pos_Bxn=None, real_Bxn=None, task_B=None):
        x = x_BxLxD.astype(jnp.float32)
        if self.mode == "task":
            bias_T = self.param("bias", nn.initializers.zeros, (self.tasks,), jnp.float32)
            return jnp.broadcast_to(
                jax.nn.sigmoid(bias_T)[task_B][:, None, None], (*x.shape[:2], 1)
            )
        if sum_BxD is not None:
            sum_BxnxD = sum_BxD[:, None] + jnp.cumsum(
                jnp.where(real_Bxn[..., None], x, 0.0), axis=1
            )
            sum_BxD, mean = (
                sum_BxnxD[:, -1],
                sum_BxnxD / (pos_Bxn[..., None] + 1).astype(jnp.float32),
            )
        elif self.mode == "prefix":
            seen_L = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)
            mean = jnp.cumsum(x, axis=1) / seen_L[None, :, None]
        else:
            mean = jnp.broadcast_to(x.mean((0, 1), keepdims=True), x.shape)
        g = jax.nn.sigmoid(
            nn.Dense(1, dtype=jnp.float32, kernel_init=block._init(), name="gate")(mean)
        )
        return g if sum_BxD is None else (g, sum_BxD)


def needed(net: NetCfg, batch):
    """(B, L) bool, what an oracle keeps; None for the other routers."""
    return batch["needed_BxL"] if net.route.mode == "oracle" else None


def routed(net: NetCfg) -> bool:
    """Some tokens go one way and some the other."""
    return not net.route.mode.startswith("always")


def learned(route: RouteCfg) -> bool:
    """The threshold stands still and the scores move, inside the floor and the ceiling."""
    return route.mode == "threshold" and route.tau == "learned"


def kept_tokens(route: RouteCfg, L: int) -> int:
    """Tokens that a router of a fixed count keeps: k, or the rate's share."""
    return min(L, route.k or ceil_share(route.rate, L))


def layout(net: NetCfg, L: int) -> dispatch.Layout:
    """Slots of the heavy path. A fixed count needs no slack; an encoder sees everything, so it has one segment. So has
    an oracle: the tokens that a task needs stand close together, and the slots of a segment would not hold them."""
    route = net.route
    oracle = route.mode == "oracle"
    if net.causal and not oracle:
        return dispatch.layout(L, min(1.0, route.rate * route.capacity))
    fixed = route.mode in ("topk", "random") or (oracle and not net.causal)
    K = kept_tokens(route, L) if fixed else min(L, ceil_share(route.rate * route.capacity, L))
    return dispatch.Layout(((0, L),), ((0, K),))


def observe(net: NetCfg, score_BxL, mask_BxL, rate) -> dict[str, jax.Array]:
    """What the routing state follows, (B,) each: where the threshold should stand, and the spread of the scores.

    The share above it is rate · net.route.rate (running) or wherever 0 falls (learned), kept between floor and ceiling.
    """
    route = net.route
    s = jax.lax.stop_gradient(score_BxL)
    if mask_BxL is not None:  # an example of padding only weighs nothing, but it must be finite
        mask_BxL |= ~mask_BxL.any(1, keepdims=True)
        s = jnp.where(mask_BxL, s, jnp.nan)

    def above(share):  # the score that `share` of the tokens exceed
        return jnp.nanquantile(s, 1 - share, axis=1)

    if learned(route):
        tau = jnp.zeros(s.shape[0])
        tau = tau if route.ceiling == 1.0 else jnp.maximum(tau, above(route.ceiling))
        tau = tau if route.floor == 0.0 else jnp.minimum(tau, above(route.floor))
    else:
        tau = above(jnp.clip(route.rate * rate, route.floor, route.ceiling))
    return {"tau": tau, "spread": jnp.nanstd(s, axis=1)}


def init_routing(net: NetCfg) -> dict[str, jax.Array]:
    """Thresholds before any data: those of scores from a normal distribution. Empty without a threshold."""
    if net.route.mode != "threshold":
        return {}
    own = lambda route: 0.0 if learned(route) else NormalDist().inv_cdf(1 - route.rate)  # noqa: E731
    tau_R = jnp.asarray([own(each.route) for each in shapes.each(net)], jnp.float32)
    return {"tau": tau_R, "spread": jnp.ones(net.depth, jnp.float32)}


def router_flops(net: NetCfg, L: int) -> int:
    """Forward FLOPs per example: one score per token; comparisons count as 0."""
    return L * prices.linear_flops(net.width, 1) if net.route.mode in SCORED else 0


def report(net: NetCfg, L: int, each: DecisionCost, r: Route, kept_BxL, gate_BxL, mask_BxL, rate):
    """{name: array}, what a routed layer says about its decisions: costs, statistics, the z-loss, what is observed."""
    kept, route = kept_BxL.astype(jnp.float32), net.route
    # below the floor the penalty no longer pushes: thresholds would chase scores that fall for ever
    p_BxL = jnp.where(kept.mean(1, keepdims=True) > route.floor, r.p, jax.lax.stop_gradient(r.p))
    y = {
        "expected_B": decided(net, p_BxL, L, each),
        "hard_B": decided(net, kept, L, each),
        "kept": kept.mean(1),
        "wanted": fullest(r.wanted, net.causal),
        "overflow": (r.wanted.astype(jnp.float32) - kept).mean(1),
        "gate": gate_BxL.sum(1) / jnp.maximum(kept.sum(1), 1),
        "score": jax.lax.stop_gradient(r.score),
        "chosen": kept_BxL,
    }
    if route.mode in SCORED:
        real = jnp.ones_like(kept) if mask_BxL is None else mask_BxL.astype(jnp.float32)
        y["z_loss"] = (real * jnp.square(r.score)).sum(1) / jnp.maximum(real.sum(1), 1)
    return y | (observe(net, r.score, mask_BxL, rate) if route.mode == "threshold" else {})


def fullest(wanted_BxL, causal: bool) -> jax.Array:
    """Share of tokens that want a slot, (B,), in the segment of each example where it is largest."""
    L = wanted_BxL.shape[1]
    tokens = dispatch.layout(L, 1.0).tokens if causal else ((0, L),)
    return jnp.stack([wanted_BxL[:, a:b].astype(jnp.float32).mean(1) for a, b in tokens]).max(0)


def decided(net: NetCfg, p_BxL, L: int, each: DecisionCost):
    """Routed cost of one layer per example, (B,) float32, when token i is kept with probability (or decision) p_i.

    Each kept token pays for itself and for every key it sees: all of them (kv=all), or the kept ones among them, whose
    expected number is a second moment (kv=routed): E[K²] = (Σp)² + Σp(1 − p) in an encoder.
    """
    total = p_BxL.sum(-1)
    if net.route.kv == "all":
        pairs = (p_BxL * (jnp.arange(1.0, L + 1)[None] if net.causal else float(L))).sum(-1)
    else:
        pairs = (
            expected_pairs(p_BxL) if net.causal else total * total + (p_BxL * (1 - p_BxL)).sum(-1)
        )
    return total * each.token + pairs * each.pair


def kept_cost(net: NetCfg, L: int, each: DecisionCost, share: float) -> float:
    """Relative cost per example when that share of tokens, wherever they stand, is kept in every layer, on average; of
    a layer with a rate of its own as many times more or fewer."""
    total = each.fixed
    for i in range(each.layers):
        one, own = each.of(i), min(1.0, share * shapes.scale(net, i))
        pairs = own * block.pairs(net, L)
        if (
            net.route.kv == "routed"
        ):  # a token sees itself for certain, another one with probability `own`
            pairs = own * (own * (block.pairs(net, L) - L) + L)
        total += own * L * (one.token + one.mixed) + pairs * one.pair
    return total


def decision_flops(
    net: NetCfg, L: int, layers: list[tuple[int, int]], cost: Cost, dense: Cost, mixed=0
):
    """`DecisionCost` in FLOPs of a model of that cost, where in each routed layer a kept token adds (its work, scores
    apart; each key it sees), and one that takes the RBF mixer `mixed`."""
    whole, of = cost.model_flops, dense.model_flops
    routed = sum(L * (token + mixed) + pair * block.pairs(net, L) for token, pair in layers)
    return decision_cost(
        (whole - routed) / of, [(token / of, pair / of) for token, pair in layers], mixed / of
    )


def decision_cost(
    fixed: float, layers: list[tuple[float, float]], mixed: float = 0.0
) -> DecisionCost:
    """Of layers that may cost different amounts: (a kept token, a pair) of each."""
    R = len(layers)
    if len(set(layers)) <= 1:
        return DecisionCost(fixed, *(layers[0] if layers else (0.0, 0.0)), R, mixed)
    token, pair = (sum(x) / R for x in zip(*layers, strict=True))
    return DecisionCost(fixed, token, pair, R, mixed, tuple(layers))
