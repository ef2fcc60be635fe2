"""Where thresholds of routers stand: before any data, and what the routing state follows."""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp

from cerebra_jax.config import RouteCfg
from cerebra_jax.routing.routers import learned

ROUNDINGS = 16  # of float32 by which scores may differ and still be one score


def initial(routes: list[RouteCfg]) -> dict[str, jax.Array]:
    """Returns thresholds before any data: those of scores from a normal distribution.

    One for each routed layer; empty for a router without a threshold.
    """
    if not routes or routes[0].mode != "threshold":
        return {}

    def start(route: RouteCfg) -> float:
        return 0.0 if learned(route) else NormalDist().inv_cdf(1 - route.rate)

    tau_R = jnp.asarray([start(route) for route in routes], jnp.float32)
    return {"tau": tau_R, "spread": jnp.ones(len(routes), jnp.float32)}


def observe(route: RouteCfg, score_BxL, mask_BxL, rate) -> dict[str, jax.Array]:
    """Returns what the routing state follows, (B,) each: threshold, and spread of the scores.

    Padding is left out.
    """
    score = jax.lax.stop_gradient(score_BxL)
    if mask_BxL is not None:  # an example of padding only weighs nothing, but it must be finite
        mask_BxL |= ~mask_BxL.any(1, keepdims=True)
        score = jnp.where(mask_BxL, score, jnp.nan)
    return {"tau": threshold_for(route, score, rate), "spread": jnp.nanstd(score, axis=1)}


def observe_entropy(route: RouteCfg, score_BxL, rate) -> dict[str, jax.Array]:
    """Returns the same of CHIAR's scores; among three operators the lower threshold too."""
    score = jax.lax.stop_gradient(score_BxL)
    compared = route.mode == "threshold"
    if not compared and (route.rbf or route.mode == "random"):
        return {}
    found = {"tau": threshold_for(route, score, rate), "spread": score.std(axis=1)}
    if compared and route.rbf:
        found["low"] = threshold_for(route, score, rate, route.rbf)
    return found


def threshold_for(route: RouteCfg, score_BxL, rate, more: float = 0.0) -> jax.Array:
    """Returns where the threshold of these scores should stand, (B,).

    The share above it is rate · net.route.rate, or with a learned score wherever 0 falls; it stays
    between net.route.floor and net.route.ceiling. `more` is added to the share.
    """
    if route.mode == "threshold" and not learned(route):
        share = jnp.clip(route.rate * rate, route.floor, route.ceiling)
        return exceeded_by(score_BxL, jnp.minimum(share + more, 1.0))
    tau_B = jnp.zeros(score_BxL.shape[0])
    if route.ceiling != 1.0:
        tau_B = jnp.maximum(tau_B, exceeded_by(score_BxL, route.ceiling))
    if route.floor != 0.0:
        tau_B = jnp.minimum(tau_B, exceeded_by(score_BxL, route.floor))
    return tau_B


def exceeded_by(score_BxL, share) -> jax.Array:
    """Returns the number that a share of the scores of each example exceed, (B,).

    NaN is no score. It is the linear quantile of the scores. Where that falls on a score it is the
    middle between two neighbouring distinct scores instead, those that leave the share nearest to
    the one asked for: a threshold that equals a score decides by rounding. Scores within
    `rounding` of each other are one score.
    """
    sorted_BxL = jnp.sort(score_BxL, axis=1)  # NaN comes last
    count_Bx1 = (~jnp.isnan(sorted_BxL)).sum(1, keepdims=True)
    least_Bx1 = sorted_BxL[:, :1]
    most_Bx1 = jnp.take_along_axis(sorted_BxL, count_Bx1 - 1, axis=1)
    same_Bx1 = rounding(least_Bx1, most_Bx1)

    # the quantile
    at_Bx1 = (1 - share) * (count_Bx1 - 1)
    low_Bx1 = jnp.floor(at_Bx1)
    below_Bx1, above_Bx1 = (
        jnp.take_along_axis(sorted_BxL, place.astype(jnp.int32), axis=1)
        for place in (low_Bx1, jnp.ceil(at_Bx1))
    )
    weight_Bx1 = at_Bx1 - low_Bx1
    quantile_Bx1 = below_Bx1 * (1 - weight_Bx1) + above_Bx1 * weight_Bx1

    # the gaps, of which number i has i scores below it; the first and the last are outside of all
    inside_BxL = jnp.where(jnp.isnan(sorted_BxL), most_Bx1 + 2 * same_Bx1, sorted_BxL)
    ends = least_Bx1 - 2 * same_Bx1, most_Bx1 + 2 * same_Bx1
    edges = jnp.concatenate([ends[0], inside_BxL, ends[1]], axis=1)
    wide = edges[:, 1:] - edges[:, :-1] > same_Bx1
    off = jnp.abs(jnp.arange(wide.shape[1])[None] - (1 - share) * count_Bx1)
    gap_Bx1 = jnp.argmin(jnp.where(wide, off, jnp.inf), axis=1, keepdims=True)
    sides = (jnp.take_along_axis(edges, gap_Bx1 + i, axis=1) for i in (0, 1))
    middle_Bx1 = sum(sides) / 2

    equals_Bx1 = (jnp.abs(sorted_BxL - quantile_Bx1) <= same_Bx1).any(1, keepdims=True)
    return jnp.where(equals_Bx1, middle_Bx1, quantile_Bx1)[:, 0]


def rounding(least, most):
    """Returns how far apart scores from `least` to `most` may be and still be the same one.

    A program for another batch adds in another order: its scores differ by a few roundings of
    float32 (measured: by at most 4 of them). A threshold in the middle of a gap wider than this
    decides alike in all such programs.
    """
    largest = jnp.maximum(jnp.abs(least), jnp.abs(most))
    return ROUNDINGS * jnp.finfo(jnp.float32).eps * largest + jnp.finfo(jnp.float32).tiny
