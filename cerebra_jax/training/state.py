"""What training carries from step to step; all of it is in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cerebra_jax.layers import prunable
from cerebra_jax.models.model import Model
from cerebra_jax.policies.adaptive_capacity import Capacity
from cerebra_jax.policies.budget import Dual
from cerebra_jax.policies.demand import Demanded
from cerebra_jax.policies.policy import Policy
from cerebra_jax.types import Batch


class TrainState(flax.struct.PyTreeNode):
    """The whole state of training.

    `step` counts optimizer steps, and is the data position too; `skipped` counts the steps in a row
    that were not finite. The fields after it belong to one policy each (`Policy.owns`), and are
    empty dicts in runs without that policy. Their names are the names in checkpoints.
    """

    step: jax.Array  # int32 scalar
    params: Any
    opt_state: Any
    routing: dict[str, jax.Array]  # part of the model's variables; RunningThresholds moves it
    skipped: jax.Array  # int32 scalar
    dual: Dual = flax.struct.field(default_factory=dict)  # Budget
    demand: Capacity = flax.struct.field(default_factory=dict)  # AdaptiveCapacity
    division: Demanded = flax.struct.field(default_factory=dict)  # Demand
    sampler: Any = flax.struct.field(default_factory=dict)  # Sampling
    prune: prunable.Masks = flax.struct.field(default_factory=dict)  # Pruning

    @property
    def effective(self) -> Any:
        """The parameters that the model runs with: what is pruned is at zero."""
        return prunable.masked(self.params, self.prune)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that the model runs with, as `Model.apply` takes them."""
        return {"params": self.effective, "routing": self.routing}


def init(
    model: Model,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    key: jax.Array,
    policies: Sequence[Policy] = (),
) -> TrainState:
    """Returns a fresh state: a pure function of the key."""
    return initializer(model, optimizer, batch, policies)(key)


def initializer(
    model: Model,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    policies: Sequence[Policy] = (),
) -> Callable[[jax.Array], TrainState]:
    """Returns make(key) -> a fresh state; the model is traced once, for shapes and state."""

    def make(key):
        variables = model.init(key, batch)
        owned = {p.owns: p.init(variables, key) for p in policies if p.owns}
        # the first step donates the state: no array is in it twice, or kept by a policy
        own = jax.tree.map(jnp.array, {"routing": variables["routing"]} | owned)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            opt_state=optimizer.init(variables["params"]),
            skipped=jnp.zeros((), jnp.int32),
            **own,
        )

    return make
