"""J = task loss + λ · expected relative FLOPs: the one place where the two meet."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.models.model import Model
from cerebra_jax.policies import adaptive_capacity as demand
from cerebra_jax.tasks.task import Task
from cerebra_jax.types import Batch, Knobs

OWN = "task/"
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count); the host divides


class Each(NamedTuple):
    """What a step showed of each example, (B,): its mean loss, its expected cost, whether it has weight at all."""

    loss_B: jax.Array
    cost_B: jax.Array
    real_B: jax.Array


def objective(model: Model, task: Task, variables: Any, batch: Batch, knobs: Knobs, key: Any, tokens, examples,
              shares: tuple[float, ...] = (), drawn: bool = False):  # fmt: skip
    """-> (J's share of this batch, (metric sums, observed sums, Each where the batch was drawn by the sampler)).

    `tokens` and `examples` are the global counts, so that the shares of micro-batches and devices add up to
    J = Σ task loss / tokens + (λ · Σ expected_B + Σ auxiliary losses) / examples. Expected cost is priced per example,
    then averaged. The task's own sums are named `task/…`: it alone forms figures of them. Of a batch that was drawn,
    each example counts weight_B times in all sums; `tokens` and `examples` count it once. `shares`: slots per
    token of the programs to choose from, by what they would lose (`policies.adaptive_capacity`).
    """
    out, aux = model.apply(variables, batch, knobs, key)
    if drawn:
        batch = batch | {"w_BxL": batch["w_BxL"] * batch["weight_B"][:, None]}
        loss, own = task.loss(out, batch, model.net.loss_chunk, each=True)
        loss_B, n_B = own.pop("each")
    else:
        loss, own = task.loss(out, batch, model.net.loss_chunk)
    metrics = {OWN + name: pair for name, pair in own.items()}
    rows = (
        batch["w_BxL"].any(axis=1).astype(jnp.float32)
    )  # rows of pure padding cost nothing and count nowhere
    each = Each(loss_B / jnp.where(rows > 0, n_B, 1.0), aux.expected_B, rows > 0) if drawn else None
    rows = rows * batch["weight_B"] if drawn else rows
    n = rows.sum()
    metrics |= {
        "expected": ((rows * aux.expected_B).sum(), n),
        "hard": ((rows * aux.hard_B).sum(), n),
    }
    metrics |= {name: (value @ rows, n) for name, value in aux.stats.items()}
    if model.net.tasks and "meta_gate" in aux.stats:
        of_TxB = (batch["task_B"][None] == jnp.arange(model.net.tasks)[:, None]) * rows[None]
        metrics["meta_gate_of_task"] = (of_TxB @ aux.stats["meta_gate"], of_TxB.sum(1))
    if shares:
        metrics["lost"] = (demand.lost(aux.stats["wanted"], shares) @ rows, n)
    observed = {name: value @ rows for name, value in aux.observed.items()}
    losses = [rows @ loss_B for loss_B in aux.losses.values()]
    total = loss / tokens + (knobs.lam * (rows * aux.expected_B).sum() + sum(losses)) / examples
    return total, (metrics, observed, each)
