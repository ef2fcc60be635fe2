"""What decisions cost, as a differentiable function of them, and on average."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from cerebra_jax.cost.prices import causal_pairs
from cerebra_jax.kernels.straight_through import expected_pairs
from cerebra_jax.types import DecisionCost, LayerDecision


def pairs(length: int, causal: bool) -> int:
    """Returns how many (query, key) pairs see each other among all tokens."""
    return causal_pairs(length) if causal else length * length


def cost_of(p_BxL, one: LayerDecision, keys: str, causal: bool):
    """Returns the routed cost of one layer, (B,) float32, when token i is kept with probability
    p_i.

    p may also be the decision itself. Each kept token pays for itself and for every key it sees:
    `keys` "all", or the "routed" ones among them, whose expected number is a second moment,
    E[K²] = (Σp)² + Σp(1 − p) in an encoder.
    """
    L = p_BxL.shape[1]
    kept_B = p_BxL.sum(-1)
    if keys == "all":
        seen = jnp.arange(1.0, L + 1)[None] if causal else float(L)
        pairs_B = (p_BxL * seen).sum(-1)
    elif causal:
        pairs_B = expected_pairs(p_BxL)
    else:
        pairs_B = kept_B * kept_B + (p_BxL * (1 - p_BxL)).sum(-1)
    return kept_B * one.token + pairs_B * one.pair


def mean_cost(cost: DecisionCost, shares: Sequence[float], length: int, keys: str, causal: bool):
    """Returns the cost of an example, on average, when these shares of the tokens are kept.

    One share a routed layer; the kept tokens stand anywhere. What a mixer adds is paid by as many.
    """
    total = cost.fixed
    square = pairs(length, causal)
    for one, share in zip(cost.layers, shares, strict=True):
        visible = share * square
        if keys == "routed":  # a token sees itself for certain, another one with that probability
            visible = share * (share * (square - length) + length)
        total += share * length * (one.token + one.mixed) + visible * one.pair
    return total
