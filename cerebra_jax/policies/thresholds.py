"""Thresholds of the entropy router: a running quantile, or a calibration on held-out text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.policies.policy import Metrics, Observed, Outcome, Policy, Seen, Shown
from cerebra_jax.routing.thresholds import rounding

Routing = dict[str, jax.Array]
"""The routing state of a model: (R,) arrays "tau", "spread" and, with three operators, "low"."""

NEAR = 1e-3  # of the scores: how far from its quantile a threshold may stand among dense ones
DENSE = 4  # times the rounding: scores that span more are not one score


@dataclasses.dataclass(frozen=True)
class RunningThresholds(Policy):
    """Lets the thresholds of a model follow the scores of the batches that it trains on."""

    decay: float

    owns: ClassVar[str] = "routing"

    def init(self, variables: Any, key: jax.Array) -> Routing:
        """Returns the thresholds that the model begins with."""
        return variables["routing"]

    def observe(self, shown: Shown) -> Observed:
        """Returns the sums over examples of what the thresholds should follow."""
        weight_B = shown.losses.weight_B
        return Observed(summed={name: x @ weight_B for name, x in shown.aux.observed.items()})

    def after(self, own: Routing, seen: Seen, outcome: Outcome) -> tuple[Routing, Metrics]:
        """Moves the thresholds towards the mean over the step's examples."""
        _, examples = outcome.metrics["hard"]
        means = {name: total / examples for name, total in seen.summed.items()}
        return outcome.keep(follow(own, means, outcome.step, self.decay), own), {}


def follow(routing: Routing, observed: Routing, step: Any, decay: float) -> Routing:
    """Moves the routing state towards what a batch showed; what was not observed stays.

    An average over all steps so far, then an exponential moving average of memory `decay`.
    `observed` holds, per routed layer, the mean over examples of the (1 − rate) quantile and of the
    standard deviation of the scores: means of per-example values, so that n devices give what one
    gives.
    """
    step = jnp.asarray(step, jnp.float32)
    memory = jnp.minimum(decay, step / (step + 1))
    followed = [name for name in routing if name in observed]
    return routing | {
        name: memory * routing[name] + (1 - memory) * observed[name] for name in followed
    }


def real_rows(batch: Mapping[str, Any]) -> np.ndarray:
    """Returns which rows of a batch are examples, (B,).

    The others fill up the last batch of a split, and weigh nothing.
    """
    weight_BxL = np.asarray(batch["w_BxL"])
    return np.asarray(weight_BxL.any(axis=1))


def calibrate(
    scores_of: Callable[[Any, Any], jax.Array | np.ndarray],
    routing: Routing,
    batches: Iterable[Any],
    low: float = 1 / 3,
    high: float = 2 / 3,
) -> Routing:
    """Sets τ midway between two quantiles of each routed layer's scores on held-out text.

    This is what CHIAR does (section 3).

    scores_of(routing, batch) -> the scores of R layers, (R, …). Layers are calibrated in order,
    because a layer's inputs depend on the decisions before it: pass i fixes τ of layer i with those
    below it already fixed. With a lower threshold (three operators) the two stand at the two
    percentiles.
    """
    batches = list(batches)
    now = {name: jnp.asarray(x) for name, x in routing.items()}
    for layer in range(now["tau"].shape[0]):
        scores = np.concatenate(
            [np.asarray(scores_of(now, batch)[layer]).ravel() for batch in batches]
        )
        found = {**cuts(scores, low, high, "low" in now), "spread": scores.std()}
        now = now | {name: now[name].at[layer].set(x) for name, x in found.items()}
    return now


def cuts(scores: np.ndarray, low: float, high: float, both: bool) -> dict[str, float]:
    """Returns τ midway between two quantiles of the scores.

    With `both`, the two quantiles are "low" and "tau". Each stands in the middle of the `gap` where
    it falls: a threshold that equals a score decides by rounding.
    """
    sorted_n = np.sort(np.asarray(scores, np.float64), axis=None)
    n = sorted_n.size
    if both:
        return {"low": gap(sorted_n, low * n), "tau": gap(sorted_n, high * n)}
    if low == high:
        return {"tau": gap(sorted_n, high * n)}
    mean = np.quantile(sorted_n, [low, high]).mean()
    below, upto = (int(np.searchsorted(sorted_n, mean, side)) for side in ("left", "right"))
    return {"tau": gap(sorted_n, (below + upto) / 2)}


def gap(sorted_n: np.ndarray, rank: float) -> float:
    """Returns the middle between two neighbouring distinct scores, with about `rank` scores below.

    Scores within `rounding` of each other are one score, and the gap is the nearest one between
    two scores. Where scores are so many that they leave no such gap nearby, it is the widest one of
    those within NEAR of all scores.
    """
    # the nearest gap that is wider than rounding; the first and the last are outside of all scores
    n = sorted_n.size
    same = float(rounding(sorted_n[0], sorted_n[-1]))
    edges = np.concatenate([[sorted_n[0] - 2 * same], sorted_n, [sorted_n[-1] + 2 * same]])
    width = np.diff(edges)  # of gap i, which has i scores below
    wide = np.flatnonzero(width > same)
    found = wide[np.abs(wide - rank).argmin()]

    # scores on the way to it that are not one score
    a, b = sorted((int(found), round(rank)))
    if b > a and sorted_n[b - 1] - sorted_n[a] > DENSE * same:
        first = max(0, math.floor(rank - NEAR * n))
        found = first + width[first : math.ceil(rank + NEAR * n) + 1].argmax()
    return float(edges[found] + edges[found + 1]) / 2
