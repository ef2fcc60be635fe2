"""A model of a configuration: initialise, apply, decode, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax import checks
from cerebra_jax.config import NetCfg, RunCfg
from cerebra_jax.cost import count, units
from cerebra_jax.cost.device import platform_of, present_platform
from cerebra_jax.cost.units import Unit
from cerebra_jax.kernels import remat
from cerebra_jax.layers.cache import Cache
from cerebra_jax.models import quantization, registry
from cerebra_jax.models.initialization import by_operation
from cerebra_jax.models.pricing import PriceList
from cerebra_jax.models.shapes import WHOLE, rate_scale
from cerebra_jax.models.stack import Decisions
from cerebra_jax.routing.decision_cost import mean_cost
from cerebra_jax.types import Aux, Batch, Cost, DecisionCost, Knobs, Out, TokenCost


@functools.lru_cache(maxsize=512)
def price_list(net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
    """Returns the blocks of a model with their prices, of one example of L tokens."""
    return registry.model_class(net.name).price_list(net, L, vocab, platform)


@functools.lru_cache(maxsize=512)
def cost_of(net: NetCfg, L: int, vocab: int, platform: str) -> Cost:
    """Returns the forward FLOPs of one example, by part."""
    return price_list(net, L, vocab, platform).flops()


def dense_of(net: NetCfg) -> NetCfg:
    """Returns the dense Transformer of the same shape, before anything was removed."""
    return dataclasses.replace(
        net, name="transformer", heavy="attention", light="compressed", kept=WHOLE
    )


def unit_of(cfg: RunCfg) -> Unit:
    """Returns what the costs of a run are counted in."""
    return units.unit(cfg.objective, cfg.net.dtype, cfg.train.batch_size // cfg.train.accum)


@dataclasses.dataclass(frozen=True)
class Pricing:
    """The costs of configurations at one length, in one unit, for one platform."""

    L: int
    vocab: int
    unit: Unit
    platform: str

    def dense(self, net: NetCfg) -> tuple[float, float]:
        """Returns (model, executed) cost of an example of the dense Transformer of this shape."""
        dense = dense_of(net)
        return _total(dense, self, "model"), _total(dense, self, "executed")

    def of(self, net: NetCfg) -> PriceList:
        """Returns the price list of a configuration."""
        return price_list(net, self.L, self.vocab, self.platform)

    def executed(self, net: NetCfg) -> float:
        """Returns what the compiled program of one example costs."""
        return _total(net, self, "executed")

    def relative(self, net: NetCfg) -> float:
        """Returns the executed cost relative to that of the dense Transformer."""
        return self.executed(net) / self.executed(dense_of(net))

    def decisions(self, net: NetCfg) -> DecisionCost:
        """Returns what decisions cost, relative to the dense Transformer."""
        return _decisions(net, self)


@functools.lru_cache(maxsize=1024)  # every line of metrics.jsonl asks for it
def _total(net: NetCfg, pricing: Pricing, which: Literal["model", "executed"]) -> float:
    """Returns one of the two costs of an example."""
    prices, unit = pricing.of(net), pricing.unit
    if unit.name == "flops":
        cost = cost_of(net, pricing.L, pricing.vocab, pricing.platform)
        return cost.model_flops if which == "model" else cost.executed_flops
    return prices.model(unit) if which == "model" else prices.executed(unit)


@functools.lru_cache(maxsize=512)
def _decisions(net: NetCfg, pricing: Pricing) -> DecisionCost:
    dense = pricing.dense(net)[0]
    return pricing.of(net).decisions(pricing.unit, dense, registry.routed(net))


def pricing_of(cfg: RunCfg, vocab: int, platform: str = "") -> Pricing:
    """Returns the prices of a run's configurations at its length.

    They are of programs for `platform`, cpu, gpu or tpu; "": for that of objective.device.
    """
    platform = platform or platform_of(cfg.objective.device)
    return Pricing(cfg.task.seq_len, vocab, unit_of(cfg), platform)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a given shape. `apply` and `decode` are pure."""

    name: str
    module: nn.Module
    net: NetCfg
    pricing: Pricing
    causal: bool
    whole: int  # tokens of the dense Transformer that costs are relative to

    @property
    def L(self) -> int:
        """Returns the tokens of an example."""
        return self.pricing.L

    @property
    def unit(self) -> Unit:
        """Returns what costs are counted in."""
        return self.pricing.unit

    @property
    def cost(self) -> Cost:
        """Returns the forward FLOPs of an example, by part."""
        return cost_of(self.net, self.L, self.pricing.vocab, self.pricing.platform)

    @property
    def dense(self) -> Cost:
        """Returns those of the dense Transformer of the same shape, of `whole` tokens."""
        net, whole = dense_of(self.net), self._at_whole
        return cost_of(net, whole.L, whole.vocab, whole.platform)

    @property
    def executed(self) -> float:
        """Returns the executed cost relative to `dense`, in objective.unit."""
        return self.pricing.executed(self.net) / self._at_whole.executed(dense_of(self.net))

    @property
    def share(self) -> float:
        """Returns the dense model's cost at L tokens relative to that at `whole` tokens."""
        if self.whole == self.L:
            return 1.0
        return self.pricing.dense(self.net)[0] / self._at_whole.dense(self.net)[0]

    @property
    def _at_whole(self) -> Pricing:
        return dataclasses.replace(self.pricing, L=self.whole)

    @functools.cached_property
    def token(self) -> TokenCost | None:
        """Returns what decoding a token costs, counted; None for a model that cannot."""
        return None if why_not_decoded(self.net, self.causal) else self._token(self.net)

    @functools.cached_property
    def dense_token(self) -> TokenCost:
        """Returns the same of the dense Transformer of the same shape."""
        return self._token(dense_of(self.net))

    def _token(self, net: NetCfg) -> TokenCost:
        return token_cost(net, self.L, self.pricing.vocab, self.pricing.platform)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Returns {"params": nested dict of float32 arrays, "routing": dict of (R,) arrays}.

        Call it as it is: under `jax.jit` it takes much longer to compile, see `by_operation`.
        """
        routing = registry.init_routing(self.net)
        params = by_operation(self._params, {"params": key}, batch, neutral_knobs(), routing)
        return {"params": params, "routing": routing}

    @functools.cached_property
    def _params(self) -> jax.stages.Wrapped:
        return jax.jit(lambda *args: self.module.init(*args)["params"])

    def apply(
        self, variables: Any, batch: Batch, knobs: Knobs, key: jax.Array | None = None
    ) -> tuple[Out, Aux]:
        """Returns (Out, Aux). `key` switches dropout and routing noise on: for training only."""
        rngs = None if key is None else {"dropout": key, "route": jax.random.fold_in(key, 1)}
        weights, routing = _weights(variables), variables["routing"]
        # Any: Flax declares collections as the result of whatever a module returns
        made: Any = self.module.apply(weights, batch, knobs, routing, rngs=rngs)
        out: Out = made[0]
        aux: Aux = made[1]
        if self.share != 1.0:
            expected_B, hard_B = self.share * aux.expected_B, self.share * aux.hard_B
            aux = aux._replace(expected_B=expected_B, hard_B=hard_B)
        if self.net.answers:  # nothing is asked at the other positions, so they get no logits
            out = out._replace(h=jnp.take_along_axis(out.h, batch["at_BxQ"][..., None], axis=1))
        return out, aux

    def init_cache(self, ex_B: Any) -> Cache:
        """Returns what `decode` needs to know of rows that have read nothing.

        `ex_B` (B,) int32 keys their random routing. UserError where cached decoding cannot make the
        decisions of the full pass.
        """
        if reason := why_not_decoded(self.net, self.net.causal):
            raise checks.UserError(*reason)
        make = registry.model_class(self.name).init_cache
        return make(self.net, self.L, jnp.asarray(ex_B, jnp.int32), self.pricing.platform)

    def decode(self, variables: Any, cache: Cache, tokens_Bxn, new_B=None):
        """Reads the next n tokens of each row; returns (Out of these tokens, the cache after them).

        (B,) tokens are n = 1. In float32 exactly the decisions of `apply` on the whole sequence; in
        bfloat16 rounding turns a few of 1,000 (benchmarks/flips.py). Pure, static shapes: jit it,
        scan over it; a prompt is one chunk, or several. Rows may have read different numbers of
        tokens: `new_B` says how many of the n are real in each row (default:
        all); what stands after them, and tokens beyond the context length L, leave no trace.
        """
        tokens_Bxn = tokens_Bxn[:, None] if tokens_Bxn.ndim == 1 else tokens_Bxn
        n = tokens_Bxn.shape[1]
        if new_B is None:
            real_Bxn = jnp.ones(tokens_Bxn.shape, bool)
        else:
            real_Bxn = jnp.arange(n)[None] < new_B[:, None]
        batch = {"inputs_BxL": tokens_Bxn, "mask_BxL": real_Bxn, "ex_B": cache.ex_B}
        routing = variables["routing"]
        return self.module.apply(_weights(variables), batch, neutral_knobs(), routing, cache)

    def fold(self, variables: Any) -> Any:
        """Returns the variables with what follows from their parameters alone, computed once.

        The matrices of chiar's folded filters. For fixed weights: `params` beside them do not
        change these filters.
        """
        made = registry.fold(self.net, variables["params"], self.pricing.platform)
        return variables | {"folded": made}


def _weights(variables: Any) -> dict[str, Any]:
    return {name: variables[name] for name in ("params", "folded") if name in variables}


def why_not_decoded(net: NetCfg, causal: bool) -> tuple[str, str] | None:
    """Returns (what, hint) where cached decoding cannot make the decisions of the full pass."""
    able = [name for name in registry.names() if registry.decodes(name)]
    if net.name == "chiar" and net.route.meta == "batch":
        return "net.route.meta is batch: it averages over tokens not yet written", "use prefix"
    if net.name == "chiar" and net.route.meta == "task":
        return "net.route.meta is task: what is decoded is of no task", "use prefix"
    if not causal:
        return "an encoder cannot decode token by token", "use net.causal=True"
    if net.route.mode == "oracle":
        return (
            "net.route.mode is oracle: nobody marks what is needed while it is written",
            "use another router",
        )
    if net.features or net.outputs:
        return "decoding reads tokens and gives logits", "use net.features=0 and net.outputs=0"
    if not registry.decodes(net.name):
        return f"net.name={net.name} has no cache to decode with", f"use {', '.join(able)}"
    return None


def neutral_knobs() -> Knobs:
    """Returns the knobs of an evaluation: no penalty, temperature 1, the configured rate."""
    return Knobs(jnp.float32(0), jnp.float32(1), jnp.float32(1))


@functools.lru_cache(maxsize=64)
def token_cost(net: NetCfg, L: int, vocab: int, platform: str) -> TokenCost:
    """Returns what decoding one token costs: the count of the program, by part."""
    module = _module(net, vocab, Decisions(DecisionCost(0.0)), platform)
    make = registry.model_class(net.name).init_cache
    cache = jax.eval_shape(lambda: make(net, L, jnp.zeros(1, jnp.int32), platform))
    routing = jax.eval_shape(lambda: registry.init_routing(net))
    one = jnp.zeros((1, 1), jnp.int32)
    batch = {"inputs_BxL": one, "mask_BxL": one == 0, "ex_B": one[0]}

    def start(routing):
        full = {"inputs_BxL": jnp.zeros((1, L), jnp.int32), "ex_B": one[0]}
        return module.init(jax.random.key(0), full, neutral_knobs(), routing)["params"]

    def run(params, routing, cache):
        weights = {"params": params}
        out, after = module.apply(weights, batch, neutral_knobs(), routing, cache)
        return out.logits(), after

    params = jax.eval_shape(start, routing)
    found: tuple[dict, dict, dict] = ({}, {}, {})
    for one_op in count.operations(run, params, routing, cache):
        if one_op.op.flops:
            block, part = _place(one_op.scope, net)
            name = f"{block}/{part}" if part else block
            kind = found[_when(one_op, part)]
            kind[name] = kind.get(name, 0) + one_op.op.flops
    always, kept, window = found
    ends = len_windows(net, L) / L if window else 0.0
    return TokenCost(always, kept, window, ends)


def len_windows(net: NetCfg, L: int) -> int:
    """Returns how many windows the compressor makes of L tokens."""
    from cerebra_jax.layers.compressor import ceil_share

    return ceil_share(net.compress.r, L)


_ONE_PART = {"ssm": "scan", "lstm": "lstm"}
_PARTS = {"heavy": "attention", "ffn_light": "ffn", "ffn_rest": "ffn", "mlp": "ffn"}


def _place(scope: str, net: NetCfg) -> tuple[str, str]:
    """Returns (block, part) of where an operation stands: "layer_03", "attention"."""
    path = scope.split("/")
    ends = {"first": "layer_00", "last": f"layer_{net.depth - 1:02d}"}
    if path[0].startswith(("first_", "last_")):
        end, _, part = path[0].partition("_")
        return ends[end], _PARTS.get(part, part)
    if path[0] == "last":  # a dense block after Mixture-of-Depths' pairs
        return f"layer_{net.depth - 1:02d}", _PARTS.get(path[1], path[1])
    if path[0] == "meta_router":
        return "layer_00", path[0]
    if path[0].startswith("layer_") or path[0] == "layers":
        number = path[0]
        if net.name == "chiar" and number != "layers":
            number = f"layer_{int(number.removeprefix('layer_')) + 1:02d}"
        if net.name in _ONE_PART:  # their parameters stand in the block itself
            return number, _ONE_PART[net.name]
        if net.name == "mod" and number != "layers" and len(path) > 1:
            odd = path[1] == "routed"
            number = f"layer_{2 * int(number.removeprefix('layer_')) + odd:02d}"
            path = path[1:]
        inside = [name for name in path[1:] if not name.endswith("_0")]
        return number, _PARTS.get(inside[0], inside[0]) if inside else "rest"
    return "head", ""


def _when(counted: count.Counted, part: str) -> int:
    """Returns 0 for what each token costs, 1 for what a kept one adds, 2 for a window's end."""
    if not counted.conditional:
        return 0
    return 2 if part in ("compressor", "light") else 1


def build(
    cfg: RunCfg, vocab_size: int, whole: int = 0, quantized: bool = False, platform: str = ""
) -> Model:
    """Returns the model of a configuration for a vocabulary of `vocab_size` tokens.

    Relative costs are shares of the dense Transformer of `whole` tokens (0: of as many as the model
    sees, task.seq_len). `quantized`: in 8 bits, with float32 parameters; where quant.stored says
    so, always and with int8 ones. `platform`: cpu, gpu or tpu, which its program and its prices are
    for. Without one the program is for the present platform, the prices are for objective.device.
    """
    net = cfg.net
    pricing = pricing_of(cfg, vocab_size, platform)
    causal = net.causal and not (net.name == "chiar" and net.route.meta == "batch")
    model = registry.model_class(net.name)
    weights = model.decision_weights(net)
    cost = _fixed(net, pricing) if not registry.routed(net) else pricing.decisions(net)
    decisions = Decisions(cost, net.route.mode == "soft" and bool(registry.routed(net)), weights)
    module = _module(net, vocab_size, decisions, platform or present_platform())
    if cfg.quant.stored:
        module = quantization.Stored(module)
    elif quantized:
        module = quantization.trained(module)
    return Model(net.name, module, net, pricing, causal, whole or pricing.L)


def _module(net: NetCfg, vocab: int, decisions: Decisions, platform: str) -> nn.Module:
    net = dataclasses.replace(net, remat=remat.chosen(net.remat, platform))
    return registry.model_class(net.name)(net, vocab, decisions, platform)


def _fixed(net: NetCfg, pricing: Pricing) -> DecisionCost:
    """Returns the cost of a model that decides nothing, relative to the dense Transformer."""
    if net == dense_of(net):
        return DecisionCost(1.0)
    return DecisionCost(_total(net, pricing, "model") / pricing.dense(net)[0])


def at_rate(cfg: RunCfg, rate: float) -> RunCfg:
    """Returns the configuration with another net.route.rate.

    Without a floor or a ceiling of the user's, a learned router may ask for half of it at least
    (its collapse cannot be undone by λ >= 0) and for as much as there are slots at most.
    """
    route = cfg.net.route
    bounds = {}
    if route.mode == "hard" or route.tau == "learned":
        bounds["floor"] = route.floor if route.floor > 0.0 else rate / 2
        most = min(1.0, rate * route.capacity)
        bounds["ceiling"] = route.ceiling if route.ceiling < 1.0 else most
    route = dataclasses.replace(route, rate=rate, **bounds)
    return dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))


def pricing(cfg: RunCfg, vocab: int) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Returns two functions, of costs relative to dense.

    (executed cost at a net.route.rate, hard cost when a share of the tokens is kept.) A model that
    does not price kept shares is taken to pay for them as its program does for slots.
    """
    prices, net = pricing_of(cfg, vocab), cfg.net

    @functools.cache
    def executed(rate: float) -> float:
        return prices.relative(at_rate(cfg, rate).net)

    def hard(share: float) -> float:
        if not registry.routed(net):
            return executed(max(1 / prices.L, share) / net.route.capacity)
        return kept_cost(net, prices, share)

    return executed, hard


def kept_cost(net: NetCfg, prices: Pricing, share: float) -> float:
    """Returns the relative cost when that share of tokens is kept in every layer, on average.

    Of a layer with a rate of its own, as many times more or fewer.
    """
    cost = prices.decisions(net)
    shares = [min(1.0, share * rate_scale(net, i)) for i in range(len(cost.layers))]
    return mean_cost(cost, shares, prices.L, net.route.kv, net.causal)
