"""J = task loss + λ · expected relative FLOPs: the one place where the two meet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cerebra_jax.models.build import Model
from cerebra_jax.policies import demand
from cerebra_jax.tasks.task import Task
from cerebra_jax.types import Batch, Knobs

OWN = "task/"
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count); the host divides


def objective(model: Model, task: Task, variables: Any, batch: Batch, knobs: Knobs, key: Any, tokens, examples,
              shares: tuple[float, ...] = ()):  # fmt: skip
    """-> (J's share of this batch, (metric sums, observed sums)).

    `tokens` and `examples` are the global counts, so that the shares of micro-batches and devices add up to
    J = Σ task loss / tokens + (λ · Σ expected_B + Σ auxiliary losses) / examples. Expected cost is priced per example,
    then averaged. The task's own sums are named `task/…`: it alone forms figures of them. `shares`: slots per token of
    the programs to choose from, by what they would lose (`policies.demand`).
    """
    out, aux = model.apply(variables, batch, knobs, key)
    loss, own = task.loss(out, batch, model.net.loss_chunk)
    metrics = {OWN + name: pair for name, pair in own.items()}
    rows = batch["w_BxL"].any(axis=1).astype(jnp.float32)  # rows of pure padding cost nothing and count nowhere
    n = rows.sum()
    metrics |= {"expected": ((rows * aux.expected_B).sum(), n), "hard": ((rows * aux.hard_B).sum(), n)}
    metrics |= {name: (value @ rows, n) for name, value in aux.stats.items()}
    if shares:
        metrics["lost"] = (demand.lost(aux.stats["wanted"], shares) @ rows, n)
    observed = {name: value @ rows for name, value in aux.observed.items()}
    losses = [rows @ loss_B for loss_B in aux.losses.values()]
    total = loss / tokens + (knobs.lam * (rows * aux.expected_B).sum() + sum(losses)) / examples
    return total, (metrics, observed)
