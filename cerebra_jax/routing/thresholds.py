"""Where thresholds of routers stand: before any data, and what the routing state follows."""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp

from cerebra_jax.config import RouteCfg
from cerebra_jax.kernels.straight_through import threshold_for
from cerebra_jax.routing.routers import learned


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

    The share above the threshold is rate · net.route.rate (running) or wherever 0 falls (learned),
    kept between floor and ceiling. Padding is left out.
    """
    score = jax.lax.stop_gradient(score_BxL)
    if mask_BxL is not None:  # an example of padding only weighs nothing, but it must be finite
        mask_BxL |= ~mask_BxL.any(1, keepdims=True)
        score = jnp.where(mask_BxL, score, jnp.nan)

    def above(share):  # the score that `share` of the tokens exceed
        return jnp.nanquantile(score, 1 - share, axis=1)

    if not learned(route):
        tau_B = above(jnp.clip(route.rate * rate, route.floor, route.ceiling))
    else:
        tau_B = jnp.zeros(score.shape[0])
        if route.ceiling != 1.0:
            tau_B = jnp.maximum(tau_B, above(route.ceiling))
        if route.floor != 0.0:
            tau_B = jnp.minimum(tau_B, above(route.floor))
    return {"tau": tau_B, "spread": jnp.nanstd(score, axis=1)}


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
