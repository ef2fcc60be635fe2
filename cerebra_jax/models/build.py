"""The only table of models: a name in the configuration -> module, costs, routing state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg, RunCfg
from cerebra_jax.models import chiar, transformer
from cerebra_jax.types import Batch, Cost, Knobs


@dataclasses.dataclass(frozen=True)
class Entry:
    module: type[nn.Module]
    cost: Callable[[NetCfg, int, int], Cost]  # (net, L, vocab) -> forward FLOPs per example
    routing: Callable[[NetCfg], dict[str, jax.Array]]
    kept: Callable[[NetCfg, int, int, float], float] | None = None  # (net, L, vocab, share of tokens kept) -> FLOPs


MODELS = {
    "transformer": Entry(transformer.Transformer, transformer.cost, lambda net: {}),
    "chiar": Entry(chiar.Chiar, chiar.cost, chiar.init_routing, chiar.kept_flops),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a given shape: `apply` is pure, `cost` and `dense` are forward FLOPs per example of L tokens."""

    name: str
    module: nn.Module
    cost: Cost
    dense: Cost  # the dense Transformer of the same shape
    causal: bool
    net: NetCfg

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """{"params": nested dict of float32 arrays, "routing": dict of (R,) arrays}."""
        routing = MODELS[self.name].routing(self.net)
        params = self.module.init({"params": key}, batch, neutral_knobs(), routing)["params"]
        return {"params": params, "routing": routing}

    def apply(self, variables: Any, batch: Batch, knobs: Knobs, key: jax.Array | None = None):
        """-> (Out, Aux). `key` switches dropout on: give it in training only."""
        rngs = None if key is None else {"dropout": key}
        return self.module.apply({"params": variables["params"]}, batch, knobs, variables["routing"], rngs=rngs)


def neutral_knobs() -> Knobs:
    """Knobs of an evaluation: no penalty, temperature 1, the configured rate."""
    return Knobs(jnp.float32(0), jnp.float32(1), jnp.float32(1))


def build(cfg: RunCfg, vocab_size: int) -> Model:
    """The model of a configuration for a vocabulary of `vocab_size` tokens."""
    net, L = cfg.net, cfg.task.seq_len
    entry = MODELS[net.name]
    return Model(
        net.name,
        entry.module(net, vocab_size),
        entry.cost(net, L, vocab_size),
        transformer.cost(net, L, vocab_size),
        not (net.name == "chiar" and net.route.meta == "batch"),
        net,
    )
