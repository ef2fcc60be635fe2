"""Thresholds of the entropy router: a running quantile, or a calibration on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp


def follow(
    routing: dict[str, jax.Array], observed: dict[str, jax.Array], step, decay: float
) -> dict[str, jax.Array]:
    """The routing state moved towards what a batch showed: an average over all steps so far, then an EMA of `decay`.

    `observed` holds, per routed layer, the mean over examples of the (1 − rate) quantile and of the standard deviation
    of the scores: means of per-example values, so n devices give what one gives.
    """
    step = jnp.asarray(step, jnp.float32)
    keep = jnp.minimum(decay, step / (step + 1))
    return {name: keep * routing[name] + (1 - keep) * observed[name] for name in routing}


def calibrate(scores_of: Callable[[Any, Any], jax.Array], routing: dict[str, jax.Array], batches: Iterable[Any],
              low: float = 1 / 3, high: float = 2 / 3) -> dict[str, jax.Array]:  # fmt: skip
    """τ = midpoint of the 33rd and 67th percentiles of each routing layer's real inputs on held-out text (CHIAR 3).

    scores_of(routing, batch) -> (R, B, L) scores. Layers are calibrated in order, because a layer's inputs depend on
    the decisions before it: pass i fixes τ of layer i with those below it already fixed. With a lower threshold (three
    operators) the two stand at the two percentiles.
    """
    batches, now = list(batches), {name: jnp.asarray(x) for name, x in routing.items()}
    for i in range(now["tau"].shape[0]):
        scores = jnp.concatenate([scores_of(now, b)[i].ravel() for b in batches])
        cuts = jnp.quantile(scores, jnp.array([low, high]))
        found = {"low": cuts[0], "tau": cuts[1]} if "low" in now else {"tau": cuts.mean()}
        now = now | {
            name: now[name].at[i].set(x) for name, x in (found | {"spread": scores.std()}).items()
        }
    return now
