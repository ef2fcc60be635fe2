"""net.route.by_demand=True: remembers what the routers of the layers want, and how slots stand now.

The step measures on the batches it trains on. Between two steps the host divides the slots
(policies/division.py) and writes the division into the state, from where a resumed or a finished
run has it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cerebra_jax.policies.policy import Metrics, Outcome, Policy, Seen

MEMORY = 0.95  # of the smoothed demand, per step

Demanded = dict[str, jax.Array]
"""wanted_R: smoothed share of the tokens that each layer wants. by_layer_R: the division; ones: it
is even.
"""


@dataclasses.dataclass(frozen=True)
class Demand(Policy):
    """Smooths the demand of `layers` routed layers; the trainer changes the division."""

    layers: int

    owns: ClassVar[str] = "division"

    def init(self, variables: Any, key: jax.Array) -> Demanded:
        """Returns the state before the first step: nothing is known, and slots stand evenly."""
        return {"wanted_R": jnp.zeros(self.layers), "by_layer_R": jnp.ones(self.layers)}

    def after(self, own: Demanded, seen: Seen, outcome: Outcome) -> tuple[Demanded, Metrics]:
        """Moves the demand towards that of the step: an average at first, then with MEMORY."""
        total_R, examples = outcome.metrics["wanted"]
        step = outcome.step.astype(jnp.float32)
        memory = jnp.minimum(MEMORY, step / (step + 1))
        wanted_R = memory * own["wanted_R"] + (1 - memory) * total_R / examples
        return own | {"wanted_R": outcome.keep(wanted_R, own["wanted_R"])}, {}
