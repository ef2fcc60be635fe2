"""J = task loss + λ · expected relative cost: the one place where the two meet."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.models.model import Model
from cerebra_jax.policies.policy import Losses, Metrics, Policy, Shown
from cerebra_jax.tasks.task import Task
from cerebra_jax.types import Aux, Batch, Knobs

OWN = "task/"  # prefix of the task's own figures: it alone knows what to make of their sums


class Conditions(NamedTuple):
    """What a forward pass depends on besides variables and batch."""

    knobs: Knobs
    key: jax.Array | None  # of dropout and routing noise; None: no noise
    tokens: Any  # real targets and examples of the whole step, on all devices: J is a mean
    examples: Any


class Sums(NamedTuple):
    """What a forward pass leaves for the end of the step, beside J."""

    metrics: Metrics
    observed: tuple[Any, ...]  # of each policy, to be added up over micro-batches and devices
    listed: tuple[Any, ...]  # of each policy, to be stacked over micro-batches


@dataclasses.dataclass(frozen=True)
class Objective:
    """objective(variables, batch, conditions) -> (this batch's share of J, Sums).

    J = Σ task loss / tokens + (λ · Σ expected_B + Σ auxiliary losses) / examples. `tokens` and
    `examples` are those of the whole step, so that the shares of micro-batches and devices add up.
    Expected cost is priced per example, then averaged.
    """

    model: Model
    task: Task
    policies: tuple[Policy, ...] = ()

    def __call__(self, variables: Any, batch: Batch, conditions: Conditions) -> tuple[Any, Sums]:
        # forward: features and costs, then the task's loss of them
        out, aux = self.model.apply(variables, batch, conditions.knobs, conditions.key)
        losses = self._losses(self.task, out, batch, self.model.net.loss_chunk)
        weight_B = losses.weight_B

        # J
        expected = (weight_B * aux.expected_B).sum()
        auxiliary = sum(weight_B @ loss_B for loss_B in aux.losses.values())
        penalty = (conditions.knobs.lam * expected + auxiliary) / conditions.examples
        total = losses.total / conditions.tokens + penalty

        # what is told of the batch
        shown = Shown(aux, losses, weight_B > 0)
        observed = [policy.observe(shown) for policy in self.policies]
        metrics = _metrics(losses, aux) | _by_task(self.model.net.tasks, batch, aux, weight_B)
        summed = tuple(found.summed for found in observed)
        return total, Sums(metrics, summed, tuple(found.listed for found in observed))

    @functools.cached_property
    def _losses(self):
        compute = plain_losses
        for policy in self.policies:
            compute = policy.losses(compute)
        return compute


def plain_losses(task: Task, out: Any, batch: Batch, chunk: int) -> Losses:
    """Returns the task's losses of a batch whose examples count alike.

    Rows of padding count nowhere.
    """
    total, sums = task.loss(out, batch, chunk)
    return Losses(total, sums, batch["w_BxL"].any(axis=1).astype(jnp.float32), ())


def _metrics(losses: Losses, aux: Aux) -> Metrics:
    """Returns the sums of the task's own figures, of costs, and of the model's own figures."""
    weight_B = losses.weight_B
    count = weight_B.sum()
    own = {OWN + name: pair for name, pair in losses.sums.items()}
    costs = {
        "expected": ((weight_B * aux.expected_B).sum(), count),
        "hard": ((weight_B * aux.hard_B).sum(), count),
    }
    return own | costs | {name: (value @ weight_B, count) for name, value in aux.stats.items()}


def _by_task(tasks: int, batch: Batch, aux: Aux, weight_B: jax.Array) -> Metrics:
    """Returns the meta router's gate for each of several tasks; nothing for other models."""
    if not tasks or "meta_gate" not in aux.stats:
        return {}
    of_TxB = (batch["task_B"][None] == jnp.arange(tasks)[:, None]) * weight_B[None]
    return {"meta_gate_of_task": (of_TxB @ aux.stats["meta_gate"], of_TxB.sum(1))}
