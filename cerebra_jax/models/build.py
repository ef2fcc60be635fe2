"""The only table of models: a name in the configuration -> module, costs, routing state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg, RunCfg
from cerebra_jax.models import cerebra, chiar, router, transformer
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
    "cerebra": Entry(cerebra.Cerebra, cerebra.cost, router.init_routing, cerebra.kept_flops),
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
        """-> (Out, Aux). `key` switches dropout and routing noise on: give it in training only."""
        rngs = None if key is None else {"dropout": key, "route": jax.random.fold_in(key, 1)}
        return self.module.apply({"params": variables["params"]}, batch, knobs, variables["routing"], rngs=rngs)


def neutral_knobs() -> Knobs:
    """Knobs of an evaluation: no penalty, temperature 1, the configured rate."""
    return Knobs(jnp.float32(0), jnp.float32(1), jnp.float32(1))


def at_rate(cfg: RunCfg, rate: float) -> RunCfg:
    """The configuration with another net.route.rate. Without a floor or a ceiling of the user's, a learned router may
    ask for half of it at least (its collapse cannot be undone by λ >= 0) and for as much as there are slots at most."""
    route = cfg.net.route
    floor = route.floor if route.floor > 0.0 else rate / 2
    ceiling = route.ceiling if route.ceiling < 1.0 else min(1.0, rate * route.capacity)
    learned = route.mode == "hard" or route.tau == "learned"
    route = dataclasses.replace(route, rate=rate, **({"floor": floor, "ceiling": ceiling} if learned else {}))
    return dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))


def pricing(cfg: RunCfg, vocab: int) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """(executed cost at a net.route.rate, hard cost when a share of the tokens is kept), relative to dense.

    A model that does not price kept shares is taken to pay for them as its program does for slots.
    """
    entry, L = MODELS[cfg.net.name], cfg.task.seq_len
    dense = transformer.cost(cfg.net, L, vocab)

    @functools.cache
    def executed(rate: float) -> float:
        return entry.cost(at_rate(cfg, rate).net, L, vocab).executed_flops / dense.executed_flops

    def hard(share: float) -> float:
        if entry.kept is None:
            return executed(max(1 / L, share) / cfg.net.route.capacity)
        return entry.kept(cfg.net, L, vocab, share) / dense.model_flops

    return executed, hard


def build(cfg: RunCfg, vocab_size: int) -> Model:
    """The model of a configuration for a vocabulary of `vocab_size` tokens."""
    net, L = cfg.net, cfg.task.seq_len
    entry = MODELS[net.name]
    return Model(
        net.name,
        entry.module(net, vocab_size),
        entry.cost(net, L, vocab_size),
        transformer.cost(net, L, vocab_size),
        net.causal and not (net.name == "chiar" and net.route.meta == "batch"),
        net,
    )
