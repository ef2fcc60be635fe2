"""What training carries from step to step; all of it is in the checkpoint."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cerebra_jax.models.build import Model
from cerebra_jax.types import Batch


@flax.struct.dataclass
class TrainState:
    """step counts optimizer steps, and is the data position too; skipped counts non-finite steps in a row."""

    step: jax.Array  # int32 scalar
    params: Any
    opt_state: Any
    routing: dict[str, jax.Array]
    skipped: jax.Array  # int32 scalar


def init(model: Model, optimizer: optax.GradientTransformation, batch: Batch, key: jax.Array) -> TrainState:
    """A fresh state; a pure function of the key, compiled as one program."""

    @jax.jit
    def make(key):
        variables = model.init(key, batch)
        opt_state = optimizer.init(variables["params"])
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, variables["params"], opt_state, variables["routing"], zero)

    return make(key)
