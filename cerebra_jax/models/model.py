"""The only table of models: a name in the configuration -> module, costs, routing state."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax import checks
from cerebra_jax.config import NetCfg, PruneCfg, RunCfg
from cerebra_jax.cost import units
from cerebra_jax.cost.units import Unit
from cerebra_jax.errors import UserError
from cerebra_jax.layers import dct_filter as parts
from cerebra_jax.layers import shapes
from cerebra_jax.layers.cache import Cache
from cerebra_jax.models import cerebra, chiar, transformer
from cerebra_jax.models import decoders as table
from cerebra_jax.models import quantization as int8
from cerebra_jax.models.baselines import cnn, fnet, lstm, mlp, mod, ssm, window
from cerebra_jax.models.traffic import table as traffic
from cerebra_jax.routing import routers as router
from cerebra_jax.types import Batch, Cost, DecisionCost, Knobs, TokenCost


@dataclasses.dataclass(frozen=True)
class Entry:
    module: type[nn.Module]
    cost: Callable[[NetCfg, int, int], Cost]  # (net, L, vocab) -> forward FLOPs per example
    routing: Callable[[NetCfg], dict[str, jax.Array]] = lambda net: {}
    decisions: Callable[[NetCfg, int, int], DecisionCost] | None = None  # (net, L, vocab), in FLOPs
    layers: Callable[[NetCfg], range] = lambda net: range(0)  # the routed ones
    fold: Callable[[NetCfg, Any], dict[str, Any]] = (
        lambda net, params: {}
    )  # of fixed weights: `Model.fold`
    how: Callable[[NetCfg], str] = lambda net: ""  # what it chose for this device, for a person


MODELS = {
    "transformer": Entry(transformer.Transformer, transformer.cost),
    "chiar": Entry(
        chiar.Chiar,
        chiar.cost,
        chiar.init_routing,
        chiar.decisions,
        chiar.layers,
        parts.fold,
        parts.how,
    ),
    "cerebra": Entry(
        cerebra.Cerebra, cerebra.cost, router.init_routing, cerebra.decisions, cerebra.layers
    ),
    "mod": Entry(mod.Mod, mod.cost, mod.init_routing, mod.decisions, mod.layers),
    "window": Entry(window.Window, window.cost),
    "lstm": Entry(lstm.Lstm, lstm.Lstm.cost),
    "ssm": Entry(ssm.Ssm, ssm.Ssm.cost),
    "cnn": Entry(cnn.Cnn, cnn.Cnn.cost),
    "fnet": Entry(fnet.Fnet, fnet.Fnet.cost),
    "mlp": Entry(mlp.Mlp, mlp.Mlp.cost),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a given shape: `apply` is pure, `cost` and `dense` are forward FLOPs per example of L tokens."""

    name: str
    module: nn.Module
    cost: Cost
    dense: Cost  # the dense Transformer of the same shape, of `build`'s `whole` tokens
    causal: bool
    net: NetCfg
    L: int
    executed: float  # executed cost relative to `dense`, in objective.unit
    unit: Unit
    share: float = (
        1.0  # model cost of the dense Transformer of L tokens, relative to that of `whole` tokens
    )
    token: TokenCost | None = None  # of decoding with a cache, where the model can
    dense_token: TokenCost | None = None  # of the dense Transformer of the same shape

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """{"params": nested dict of float32 arrays, "routing": dict of (R,) arrays}."""
        routing = MODELS[self.name].routing(self.net)
        params = self.module.init({"params": key}, batch, neutral_knobs(), routing)["params"]
        return {"params": params, "routing": routing}

    def apply(self, variables: Any, batch: Batch, knobs: Knobs, key: jax.Array | None = None):
        """-> (Out, Aux). `key` switches dropout and routing noise on: give it in training only."""
        rngs = None if key is None else {"dropout": key, "route": jax.random.fold_in(key, 1)}
        out, aux = self.module.apply(
            _weights(variables), batch, knobs, variables["routing"], rngs=rngs
        )
        if self.share != 1.0:
            aux = aux._replace(
                expected_B=self.share * aux.expected_B, hard_B=self.share * aux.hard_B
            )
        if self.net.answers:  # nothing is asked at the other positions, so they get no logits
            out = out._replace(h=jnp.take_along_axis(out.h, batch["at_BxQ"][..., None], axis=1))
        return out, aux

    def init_cache(self, ex_B: Any) -> Cache:
        """What `decode` needs to know of rows that have read nothing; `ex_B` (B,) int32 keys their random routing.

        UserError where cached decoding cannot make the decisions of the full pass.
        """
        net, can = self.net, table.DECODERS
        batch_mean = net.name == "chiar" and net.route.meta == "batch"
        checks.need(
            not batch_mean,
            "net.route.meta is batch: it averages over tokens not yet written",
            "use prefix",
        )
        by_task = net.name == "chiar" and net.route.meta == "task"
        checks.need(
            not by_task, "net.route.meta is task: what is decoded is of no task", "use prefix"
        )
        checks.need(net.causal, "an encoder cannot decode token by token", "use net.causal=True")
        oracle = net.route.mode == "oracle"
        checks.need(not oracle, "net.route.mode is oracle: nobody marks what is needed while it is written",
                    "use another router")  # fmt: skip
        plain = net.features == net.outputs == 0
        checks.need(
            plain, "decoding reads tokens and gives logits", "use net.features=0 and net.outputs=0"
        )
        checks.need(
            self.name in can,
            f"net.name={self.name} has no cache to decode with",
            f"use {', '.join(can)}",
        )
        return can[self.name].cache(net, self.L, jnp.asarray(ex_B, jnp.int32))

    def decode(self, variables: Any, cache: Cache, tokens_Bxn, new_B=None):
        """Reads the next n tokens of each row, or (B,) for n = 1 -> (Out of these n tokens, the cache after them).

        Exactly the decisions of `apply` on the whole sequence. Pure, static shapes: jit it, scan over it; a prompt is
        one chunk, or several. Rows may have read different numbers of tokens: `new_B` says how many of the n are real
        in each row (default: all); what stands after them, and tokens beyond the context length L, leave no trace.
        """
        tokens_Bxn = tokens_Bxn[:, None] if tokens_Bxn.ndim == 1 else tokens_Bxn
        n = tokens_Bxn.shape[1]
        real_Bxn = (
            jnp.ones(tokens_Bxn.shape, bool)
            if new_B is None
            else jnp.arange(n)[None] < new_B[:, None]
        )
        batch = {"inputs_BxL": tokens_Bxn, "mask_BxL": real_Bxn, "ex_B": cache.ex_B}
        return self.module.apply(
            _weights(variables), batch, neutral_knobs(), variables["routing"], cache
        )

    def fold(self, variables: Any) -> Any:
        """The variables with what is computed of their parameters alone, once for all calls of `apply` and `decode`:
        the matrices of chiar's folded filters. For fixed weights: `params` beside them do not change these filters."""
        return variables | {"folded": MODELS[self.name].fold(self.net, variables["params"])}


def _weights(variables: Any) -> dict[str, Any]:
    return {name: variables[name] for name in ("params", "folded") if name in variables}


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
    route = dataclasses.replace(
        route, rate=rate, **({"floor": floor, "ceiling": ceiling} if learned else {})
    )
    return dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))


def pricing(cfg: RunCfg, vocab: int) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """(executed cost at a net.route.rate, hard cost when a share of the tokens is kept), relative to dense.

    A model that does not price kept shares is taken to pay for them as its program does for slots.
    """
    entry, L, unit = MODELS[cfg.net.name], cfg.task.seq_len, unit_of(cfg)

    @functools.cache
    def executed(rate: float) -> float:
        return relative(at_rate(cfg, rate).net, L, vocab, unit)

    def hard(share: float) -> float:
        if entry.decisions is None:
            return executed(max(1 / L, share) / cfg.net.route.capacity)
        return router.kept_cost(cfg.net, L, decisions(cfg.net, L, vocab, unit), share)

    return executed, hard


def unit_of(cfg: RunCfg) -> Unit:
    """What the costs of a run are counted in."""
    return units.unit(cfg.objective, cfg.net.dtype, cfg.train.batch_size // cfg.train.accum)


def dense_of(net: NetCfg) -> NetCfg:
    """The dense Transformer of the same shape, before anything was removed."""
    return dataclasses.replace(net, name="transformer", kept=shapes.WHOLE)


def dense_costs(net: NetCfg, L: int, vocab: int, unit: Unit) -> tuple[float, float]:
    """(model, executed) cost of one example of the dense Transformer, in the unit."""
    if unit.name == "flops":
        cost = transformer.cost(dense_of(net), L, vocab)
        return cost.model_flops, cost.executed_flops
    model, executed = traffic.parts(dense_of(net), L, vocab)
    return traffic.total(model, unit), traffic.total(executed, unit)


def executed_cost(net: NetCfg, L: int, vocab: int, unit: Unit) -> float:
    """What the compiled program of one example costs, in the unit; UserError where the model has no such price."""
    if unit.name == "flops":
        return MODELS[net.name].cost(net, L, vocab).executed_flops
    return traffic.total(traffic.parts(net, L, vocab).executed, unit)


def relative(net: NetCfg, L: int, vocab: int, unit: Unit, whole: int = 0) -> float:
    """Executed cost relative to that of the dense Transformer, of `whole` tokens (0: L)."""
    return executed_cost(net, L, vocab, unit) / executed_cost(
        dense_of(net), whole or L, vocab, unit
    )


def decisions(net: NetCfg, L: int, vocab: int, unit: Unit) -> DecisionCost:
    """What the decisions of a routed model cost, in the unit, relative to the dense Transformer."""
    if unit.name == "flops":
        return MODELS[net.name].decisions(net, L, vocab)
    routed = [shapes.of(net, i) for i in MODELS[net.name].layers(net)]
    return traffic.decisions(net, L, vocab, dense_of(net), unit, routed)


def twin(cfg: RunCfg, vocab: int) -> RunCfg:
    """The configuration that cfg.twin stands for: what this model is compared with, trained by the same recipe.

    dense: the Transformer of the same shape. equal_flops: the Transformer of the same depth, heads and sequence whose
    program runs the FLOPs of this one, or just fewer. random: the same routed model, which tokens left to chance.
    """
    if not cfg.twin:
        return cfg
    kind, plain = cfg.twin, dataclasses.replace(cfg.objective, lam=0.0, budget=0.0)
    whole, pruned = dataclasses.replace(cfg.quant, stored=False), cfg.prune
    cfg = dataclasses.replace(cfg, twin="", objective=plain, quant=whole)
    if kind == "random":
        named = f"twin is random, but {cfg.net.name} routes nothing"
        checks.need(cfg.net.name in checks.ROUTED, named, "use twin=dense or twin=equal_flops")
        route = dataclasses.replace(cfg.net.route, mode="random", score="spectral", collapse=0.0)
        cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))
        checks.together(cfg)
        return cfg
    if cfg.net == dense_of(cfg.net):
        raise UserError(
            f"twin is {kind} of a dense Transformer",
            "it is its own: use twin='', or a routed net.name",
        )
    route = dataclasses.replace(
        cfg.net.route, score="spectral", rbf=0.0, collapse=0.0
    )  # of chiar alone
    net = dataclasses.replace(dense_of(cfg.net), route=route)
    if kind == "equal_flops":
        target = round(
            pruned.keep * MODELS[cfg.net.name].cost(cfg.net, cfg.task.seq_len, vocab).executed_flops
        )
        net = _shrunk(net, cfg.task.seq_len, vocab, target)
    return dataclasses.replace(cfg, net=net, prune=PruneCfg())


def _shrunk(net: NetCfg, L: int, vocab: int, target: int) -> NetCfg:
    """The widest dense Transformer within `target` executed FLOPs per example, narrower or wider than `net` with its
    depth and heads; its FFN keeps its ratio to the width, then takes up what is left."""

    def sized(step: int, hidden: int | None = None) -> NetCfg:
        width = 2 * net.heads * step
        ffn_width = max(8, width * net.ffn_width // net.width) if hidden is None else hidden
        return dataclasses.replace(net, width=width, ffn_width=ffn_width)

    def fits(candidate: NetCfg) -> bool:
        return transformer.cost(candidate, L, vocab).executed_flops <= target

    least = -(-8 // (2 * net.heads))
    if not fits(sized(least)):
        raise UserError(f"no dense Transformer of {net.depth} layers runs within {target:,} FLOPs a sequence",
                        "use fewer layers, or twin=dense")  # fmt: skip
    step = _largest(lambda n: fits(sized(n)), least)
    return sized(step, _largest(lambda n: fits(sized(step, n)), sized(step).ffn_width))


def _largest(holds: Callable[[int], bool], low: int) -> int:
    """The largest n >= low of which `holds` is true; it is true of `low`, and false from somewhere on."""
    high = 2 * low
    while holds(high):
        low, high = high, 2 * high
    return low + bisect.bisect_left(range(low + 1, high), True, key=lambda n: not holds(n))


def build(cfg: RunCfg, vocab_size: int, whole: int = 0, eight: bool = False) -> Model:
    """The model of a configuration for a vocabulary of `vocab_size` tokens. Relative costs are shares of the dense
    Transformer of `whole` tokens (0: of as many as the model sees, task.seq_len). `eight`: in 8 bits, with float32
    parameters; where quant.stored says so, always and with int8 ones."""
    net, L = cfg.net, cfg.task.seq_len
    whole = whole or L
    entry = MODELS[net.name]
    causal = net.causal and not (net.name == "chiar" and net.route.meta == "batch")
    unit = unit_of(cfg)
    each = (
        (decisions(net, L, vocab_size, unit),) if entry.decisions and unit.name != "flops" else ()
    )
    by_task = net.name == "chiar" and net.route.meta == "task"
    decodes = causal and net.name in table.DECODERS and net.route.mode != "oracle" and not by_task
    share = 1.0
    if whole != L:
        share = (
            dense_costs(net, L, vocab_size, unit)[0] / dense_costs(net, whole, vocab_size, unit)[0]
        )
    module = entry.module(net, vocab_size, *each)
    return Model(
        net.name,
        int8.Stored(module) if cfg.quant.stored else int8.trained(module) if eight else module,
        entry.cost(net, L, vocab_size),
        transformer.cost(dense_of(net), whole, vocab_size),
        causal,
        net,
        L,
        relative(net, L, vocab_size, unit, whole),
        unit,
        share,
        table.DECODERS[net.name].token(net, L, vocab_size) if decodes else None,
        table.DECODERS["transformer"].token(dense_of(net), L, vocab_size),
    )
