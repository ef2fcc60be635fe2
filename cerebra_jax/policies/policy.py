"""A policy is one feature of training: a value with pure functions, in the step's list or not.

A training step calls every policy of its list in this order, and knows none of them by name:

    losses    how the task's loss weighs the examples of a batch          when the step is made
    knobs     λ, temperature and rate of this step                        before the forward pass
    probe     arrays that gradients are taken of beside the parameters    before the forward pass
    view      the parameters that the model runs with                     in the forward pass
    observe   what the policy wants to know of a batch                    in the forward pass
    after     its own state after the step, and its metrics               after the optimizer

`Policy` does nothing at all of these points; a feature overrides those that it needs. Its own state
is one field of the train state, named by `owns`, which nobody else writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cerebra_jax.types import Aux, Batch, Knobs

Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""name -> (sum, count). The host divides, once, after all sums."""


class Losses(NamedTuple):
    """The task's losses of a batch."""

    total: jax.Array  # summed over the targets, each with its weight
    sums: Mapping[str, tuple[jax.Array, jax.Array]]  # the task's own figures, as in `Metrics`
    weight_B: jax.Array  # how often each example counts: 0 for a row of nothing but padding
    mean_B: Any  # mean loss of each example; () where no policy asks for it


class Shown(NamedTuple):
    """What the forward pass of a micro-batch shows to the policies."""

    aux: Aux
    losses: Losses
    real_B: jax.Array  # bool: the row is an example, not padding


class Observed(NamedTuple):
    """What a policy keeps of a micro-batch."""

    summed: Any = ()  # added up over micro-batches and devices
    listed: Any = ()  # stacked over micro-batches, of this device's examples


class Seen(NamedTuple):
    """What a policy has of a whole step: what it observed, and the gradient of its probe."""

    summed: Any
    listed: Any
    slopes: Any


class Outcome(NamedTuple):
    """What a step hands to all policies at its end."""

    step: jax.Array  # int32: optimizer steps before this one
    key: jax.Array
    batch: Batch  # this device's share
    axis: str | None  # the axis of devices, if there are several
    examples: jax.Array  # real ones, on all devices
    metrics: Metrics  # summed over all devices
    finite: jax.Array  # bool: loss and gradients are

    def keep(self, new: Any, old: Any) -> Any:
        """Returns `new`, or `old` where the step was not finite and must change nothing."""
        return choose(self.finite, new, old)

    def total(self, tree: Any) -> Any:
        """Sums over all devices."""
        return lax.psum(tree, self.axis) if self.axis else tree

    def gathered(self, tree_B: Any) -> Any:
        """Returns the examples of all devices, in order."""
        return lax.all_gather(tree_B, self.axis, tiled=True) if self.axis else tree_B


TaskLosses = Callable[[Any, Any, Batch, int], Losses]
"""losses(task, out, batch, chunk), where logits are formed for `chunk` tokens at once."""


class Policy:
    """A feature that does nothing.

    Subclasses are frozen dataclasses without arrays: what they say is static in the program.
    """

    owns: ClassVar[str] = ""  # the field of the train state that holds its own state

    def init(self, variables: Any, key: jax.Array) -> Any:
        """Returns its own state before the first step, of a model with these `variables`."""
        return {}

    def losses(self, compute: TaskLosses) -> TaskLosses:
        """Returns the function that computes the task's losses in place of `compute`."""
        return compute

    def knobs(self, own: Any, step: jax.Array, knobs: Knobs) -> Knobs:
        """Returns the knobs of a step, given those of the schedule and of earlier policies."""
        return knobs

    def probe(self, own: Any) -> Any:
        """Returns the arrays of which it wants the gradient of J."""
        return ()

    def view(self, params: Any, own: Any, probe: Any) -> Any:
        """Returns the parameters that the model runs with."""
        return params

    def observe(self, shown: Shown) -> Observed:
        """Returns what it wants to know of a micro-batch at the end of the step."""
        return Observed()

    def after(self, own: Any, seen: Seen, outcome: Outcome) -> tuple[Any, Metrics]:
        """Returns its own state after the step, and its metrics.

        What must not change in a step that is not finite goes through `outcome.keep`.
        """
        return own, {}


def once(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the metric of a value that a step has once, whatever its batch."""
    return value, jnp.float32(1)


def choose(condition: jax.Array, new: Any, old: Any) -> Any:
    """Returns the tree `new` where the condition holds, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
