"""What training carries from step to step; all of it is in the checkpoint."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cerebra_jax.config import ObjectiveCfg
from cerebra_jax.layers import prunable as layer_units
from cerebra_jax.layers.prunable import Masks
from cerebra_jax.models.model import Model
from cerebra_jax.policies import adaptive_capacity as demand
from cerebra_jax.policies import budget
from cerebra_jax.types import Batch


@flax.struct.dataclass
class TrainState:
    """step counts optimizer steps, and is the data position too; skipped counts non-finite steps in a row."""

    step: jax.Array  # int32 scalar
    params: Any
    opt_state: Any
    routing: dict[str, jax.Array]
    skipped: jax.Array  # int32 scalar
    dual: budget.Dual = flax.struct.field(default_factory=dict)  # the multiplier of a budget
    demand: demand.Demand = flax.struct.field(default_factory=dict)  # which program is large enough
    sampler: Any = flax.struct.field(default_factory=dict)  # a sampler.Sampler; empty without one
    prune: Masks = flax.struct.field(
        default_factory=dict
    )  # "units", "slopes", "elements"; empty without pruning

    @property
    def effective(self) -> Any:
        """The parameters that the model runs with: what is pruned is at zero."""
        return layer_units.masked(self.params, self.prune)


def init(model: Model, optimizer: optax.GradientTransformation, batch: Batch, key: jax.Array,
         cfg: ObjectiveCfg | None = None, shares: tuple[float, ...] = ()) -> TrainState:  # fmt: skip
    """A fresh state; a pure function of the key, compiled as one program. `cfg` says whether there is a budget,
    `shares` are the slots per token of the programs that demand chooses from."""

    @jax.jit
    def make(key):
        variables = model.init(key, batch)
        opt_state = optimizer.init(variables["params"])
        zero = jnp.zeros((), jnp.int32)
        dual = budget.init(cfg, model.net) if cfg else {}
        params, routing = variables["params"], variables["routing"]
        return TrainState(zero, params, opt_state, routing, zero, dual, demand.init(shares))

    return make(key)
