"""J = task loss + λ · expected relative FLOPs: the one place where the two meet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cerebra_jax.models.build import Model
from cerebra_jax.types import Batch, Knobs

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count); the host divides


def objective(model: Model, task: Any, variables: Any, batch: Batch, knobs: Knobs, key: Any, tokens, examples):
    """-> (J's share of this batch, (metric sums, observed sums)).

    `tokens` and `examples` are the global counts, so that the shares of micro-batches and devices add up to
    J = Σ nats / tokens + (λ · Σ expected_B + Σ auxiliary losses) / examples. Expected cost is priced per example, then
    averaged.
    """
    out, aux = model.apply(variables, batch, knobs, key)
    nats, metrics = task.loss(out, batch, model.net.loss_chunk)
    rows = batch["w_BxL"].any(axis=1).astype(jnp.float32)  # rows of pure padding cost nothing and count nowhere
    n = rows.sum()
    metrics |= {"expected": ((rows * aux.expected_B).sum(), n), "hard": ((rows * aux.hard_B).sum(), n)}
    metrics |= {name: (value @ rows, n) for name, value in aux.stats.items()}
    observed = {name: value @ rows for name, value in aux.observed.items()}
    losses = [rows @ loss_B for loss_B in aux.losses.values()]
    total = nats / tokens + (knobs.lam * (rows * aux.expected_B).sum() + sum(losses)) / examples
    return total, (metrics, observed)
