"""CHIAR-Former: a DCT filter for most tokens, attention for those whose spectrum is complex.

arXiv:2606.08327. Layer 1 filters every token, blended with the identity by the MetaRouter; layers
2 … n−1 send each token to the filter or to attention; layer n attends everywhere.
x = LN(x + op(x)), then x = LN(x + FFN(x)). The filter mixes features, not tokens. Only routed
tokens run the attention queries; what overflows the slots keeps the filter. With net.route.rbf > 0
there is a third operator, a causal mixer in linear time: the light layer is then routed itself.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers import dct_filter
from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.dct_filter import Filter
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.embedding import Embed
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rfa import RandomFeatureAttention
from cerebra_jax.layers.rows import Rows
from cerebra_jax.layers.scan_layers import Repeat, scan_layers
from cerebra_jax.models import pricing, stack
from cerebra_jax.models.chiar_block import (
    AttentionLN,
    Between,
    FeedForwardLN,
    Heavy,
    RoutedBlock,
    filter_part,
    mlp_parts,
)
from cerebra_jax.models.pricing import Block, Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import LayerShape, layer_shapes
from cerebra_jax.models.stack import Decisions
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.entropy_router import EntropyRouter, entropy
from cerebra_jax.routing.report import Reporter
from cerebra_jax.routing.routed import Capacity
from cerebra_jax.routing.routers import MetaRouter
from cerebra_jax.types import LayerDecision, Out


def methods(net: NetCfg, platform: str) -> dct.Methods:
    """Returns how a model computes its DCTs, and filters whose coefficients nobody sees."""
    return dct.methods(net.route.dct, net.width, platform)


def seen(net: NetCfg) -> bool:
    """Returns whether the routers look at what the filters of their layers compute."""
    return net.route.mode == "threshold" and net.route.score == "spectral"


def is_routed(net: NetCfg) -> bool:
    """Returns whether some tokens go one way and some the other."""
    return not net.route.mode.startswith("always") and net.depth > 2


class Layers(NamedTuple):
    """All layers of a model, in order."""

    first_filter: Filter
    first_mlp: FeedForwardLN
    meta_router: MetaRouter | None
    between: tuple[RoutedBlock, ...]
    last_heavy: AttentionLN
    last_mlp: FeedForwardLN


def layers(net: NetCfg, L: int, platform: str, decisions: Decisions | None = None) -> Layers:
    """Returns the layers of a configuration."""
    first, *middle, last = layer_shapes(net)
    meta = None
    if net.route.meta != "off":
        meta = MetaRouter(net.route.meta, net.tasks, name="meta_router", parent=None)
    costs = decisions.cost.layers if decisions else ()
    between = []
    for i, shape in enumerate(middle):
        cost = costs[i] if costs else LayerDecision()
        between.append(_block(net, shape, stack.Placed(L, platform, cost)))
    return Layers(
        Filter(net.width, methods(net, platform), False, net.compat, parent=None),
        _mlp(net, first),
        meta,
        tuple(between),
        _attention(net, last, platform),
        _mlp(net, last),
    )


def _mlp(net: NetCfg, shape: LayerShape) -> FeedForwardLN:
    ffn = stack.feed_forward(net, shape.ffn, 1.0, bias=True)
    return FeedForwardLN(ffn, Norm(parent=None), net.dropout, parent=None)


def _attention(net: NetCfg, shape: LayerShape, platform: str) -> AttentionLN:
    attention = Attention.of(net, shape.heads, 1.0, platform).clone(bias=True, parent=None)
    return AttentionLN(attention, Norm(parent=None), net.dropout, parent=None)


def _block(net: NetCfg, shape: LayerShape, made: stack.Placed) -> RoutedBlock:
    mode, how = net.route.mode, methods(net, made.platform)
    routed = not mode.startswith("always")
    light = heavy = router = between = None
    if mode != "always_full":
        light = Filter(net.width, how, seen(net), net.compat, parent=None)
    if mode != "always_compressed":
        heavy = _attention(net, shape, made.platform)
    if routed:
        router = EntropyRouter(net.route, how.transform, parent=None)
        if net.route.rbf:
            mixer = RandomFeatureAttention(
                net.width, net.heads, net.rbf_features, net.dropout, net.dtype, parent=None
            )
            between = Between(mixer, _capacity(net, made.length, net.route.rbf), parent=None)
            if net.route.kv == "all":  # every token is a key, so all run
                between = between.clone(capacity=_capacity(net, made.length, None), parent=None)
    capacity = _capacity(net, made.length, net.route.rate)
    if heavy is not None:
        capacity = capacity.suited(heavy.attention)
    reporter = Reporter(net.route, True, made.cost)
    return RoutedBlock(
        router, light, heavy, between, _mlp(net, shape), capacity, reporter, parent=None
    )


def _capacity(net: NetCfg, L: int, share: float | None) -> Capacity:
    """Returns slots for a share of the tokens; as many as tokens where nothing is gathered."""
    route = net.route
    soft = route.mode == "soft"
    gathers = route.dispatch and not soft and is_routed(net) and share is not None
    slots = min(1.0, share * route.capacity) if gathers else 1.0
    layout = dispatch.layout(L, slots)
    return Capacity(L, layout, gathers, route.lowering, route.kv, soft)


@register("chiar")
class Chiar(nn.Module):
    """CHIAR-Former language model; (B, L) tokens -> `Out`, `Aux`; with a cache -> `Out`, cache.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth − 2: thresholds of the routed layers
    and the spread of their scores, with an RBF mixer "low" too, the lower thresholds; empty where
    nothing is compared with one. Constants here; the training step lets them follow what
    `Aux.observed` reports.
    """

    net: NetCfg
    vocab: int
    decisions: Decisions
    platform: str = "cpu"

    @nn.compact
    def __call__(self, batch, knobs, routing, cache: cached.Cache | None = None):
        net, ex_B = self.net, batch["ex_B"]
        B, n = batch["inputs_BxL"].shape
        L, shared = stack.shared_of(net, batch | {}, knobs, cache, n)
        made = _named(layers(net, L, self.platform, self.decisions), self)
        look_up = Embed(self.vocab, net.width, net.init_std, net.dtype, name="embed")
        x_BxLxD, table_VxD = look_up(batch["inputs_BxL"])
        x_BxLxD = Drop(net.dropout)(ex_B, x_BxLxD)

        rest: dict[str, Any] = {}
        stats: dict[str, Any] = {}
        rows = shared.rows(x_BxLxD, L, True, cache is not None)
        x_BxLxD = self._first(made, rows, batch, cache, (stats, rest))

        # the routed layers
        report = None
        kept_RxBxn, after = None, ()
        if made.between:
            own = stack.owns(routing, len(made.between))
            mode = Repeat(net.scan, net.remat)
            memory = None if cache is None else cache.layers
            x_BxLxD, report = scan_layers(made.between, mode, x_BxLxD, own, shared, memory)
            if cache is not None:
                kept_RxBxn, after = report

        # the last layer attends everywhere
        rows = shared.rows(x_BxLxD, L, True, cache is not None)
        if cache is None:
            x_BxLxD = made.last_heavy(rows, rows, ex_B)
        else:
            place = cached.Place(shared.pos, L)
            found = made.last_heavy(rows, rows, ex_B, cache.rest["heavy"], place)
            x_BxLxD, rest["heavy"] = found
        out = Out(Norm(name="norm")(made.last_mlp(x_BxLxD, ex_B)), table_VxD)
        if cache is not None:
            return out, cached.advance(cache, shared.pos, after, kept_RxBxn, rest)
        aux = stack.aux_of(net, L, self.decisions, report, B)
        losses = {}
        if net.route.collapse and made.between:
            losses["collapse"] = -net.route.collapse * aux.stats["use_entropy"].mean(0)
        return out, aux._replace(stats=aux.stats | stats, losses=losses)

    def _first(self, made: Layers, rows: Rows, batch, cache, found):
        """Returns what layer 1 makes of the tokens; `found` gets its statistics and its memory."""
        stats, rest = found
        net, ex_B, x_BxLxD = self.net, batch["ex_B"], rows.x
        light_BxLxD, _ = made.first_filter(x_BxLxD)
        if net.compat:  # the gate is then around both
            light_BxLxD = made.first_mlp(light_BxLxD, ex_B)
        if made.meta_router is not None:
            if cache is None:
                task_B = batch["task_B"] if net.route.meta == "task" else None
                g_BxLx1 = made.meta_router(x_BxLxD, task_B)
            else:
                sums = cache.rest["sum_BxD"]
                g_BxLx1, rest["sum_BxD"] = made.meta_router.decode(rows, sums)
            stats["meta_gate"] = g_BxLx1.mean((1, 2))
            gate = g_BxLx1.astype(x_BxLxD.dtype)
            light_BxLxD = dispatch.combine(gate, light_BxLxD, x_BxLxD)
        return light_BxLxD if net.compat else made.first_mlp(light_BxLxD, ex_B)

    @staticmethod
    def price_list(net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        embedding, head = stack.ends(net, L, vocab)
        made = layers(net, L, platform)
        first = [filter_part(net, made.first_filter, L)]
        if net.route.meta in ("prefix", "batch"):
            first.append(Part("meta_router", _gating(made.meta_router, net.width, net.dtype, L)))
        first += mlp_parts(net, made.first_mlp, L)
        found = [Block("layer_00", tuple(first))]
        for i, layer in enumerate(made.between, 1):
            found.append(Block(f"layer_{i:02d}", layer.parts(net)))
        last = (
            stack.mixing_part(net, "attention", made.last_heavy.attention, L, None),
            stack.norm_part(net, L),
            *mlp_parts(net, made.last_mlp, L),
        )
        name = f"layer_{net.depth - 1:02d}"
        return PriceList((embedding, *found, Block(name, last), head))

    @staticmethod
    def init_cache(net: NetCfg, L: int, ex_B, platform: str) -> cached.Cache:
        """Returns the cache of rows that have read nothing."""
        made, B = layers(net, L, platform), len(ex_B)
        rest: dict[str, Any] = {"heavy": Heavy(made.last_heavy, None).init_cache(B, L, L)}
        if net.route.meta != "off":
            rest["sum_BxD"] = jnp.zeros((B, net.width))
        between = tuple(layer.init_cache(B) for layer in made.between)
        routed = len(between) if is_routed(net) else 0
        return cached.empty(L, ex_B, routed, between, net.scan, rest)

    @staticmethod
    def prunable(net: NetCfg, L: int) -> list[Group]:
        """Returns what pruning may remove, layer by layer."""
        made = layers(net, L, "cpu")
        found = made.first_filter.prunable("first_filter", 0)
        found += made.first_mlp.ffn.prunable("first_mlp/ffn", 0)
        for i, layer in enumerate(made.between):
            found += layer.prunable(f"layer_{i:02d}/", i + 1)
        end = net.depth - 1
        found += made.last_heavy.attention.prunable("last_heavy/attention", end)
        return found + made.last_mlp.ffn.prunable("last_mlp/ffn", end)

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks."""
        return tuple(f"layer_{i:02d}" for i in range(1, net.depth - 1)) if is_routed(net) else ()

    @staticmethod
    def init_routing(net: NetCfg) -> dict[str, jax.Array]:
        """Returns thresholds before any data: the entropy of Gaussian noise.

        About where untrained tokens stand (in any order of the features, with a DCT or without).
        """
        route, R = net.route, net.depth - 2
        if route.mode == "random" or route.mode.startswith("always"):
            return {}
        compared = route.mode == "threshold"
        tau = dct.gaussian_entropy(net.width) if compared else 0.0
        found = {"tau": tau, "spread": 0.15 * net.width**-0.5}
        if route.rbf:
            found = found | {"low": tau} if compared else {}
        return {name: jnp.full(R, value, jnp.float32) for name, value in found.items()}

    @staticmethod
    def fold(net: NetCfg, params: Any, platform: str) -> dict[str, Any]:
        """Returns the matrices of the filters that are computed as one."""
        if methods(net, platform).filter != "folded":
            return {}
        return dct_filter.fold(params, net.scan, seen(net))

    @staticmethod
    def describe(net: NetCfg, platform: str) -> str:
        """Returns how it computes its DCTs, for a person."""
        transform, whole = methods(net, platform)
        more = "" if whole == transform else f", {whole} where no router looks at it"
        return f"DCT by {transform}{more}"


def _named(made: Layers, parent: nn.Module) -> Layers:
    """Returns the layers that stand outside of the repeated ones as parts of the model."""
    own = {
        name: layer.clone(name=name, parent=parent)
        for name, layer in made._asdict().items()
        if isinstance(layer, nn.Module)
    }
    return made._replace(**own)


def static_scores(net: NetCfg, params, ids_BxL, platform: str = "cpu"):
    """Returns entropies of the tokens' embeddings, (B, L).

    What the paper calibrates thresholds on, though the layers that use them see something else.
    """
    how = methods(net, platform)
    x_BxLxD = params["embed"]["table"][ids_BxL].astype(net.dtype)
    look = Filter(net.width, how, True, net.compat)
    _, X_BxLxD = look.apply({"params": params["first_filter"]}, x_BxLxD)
    return entropy(net.route.score, x_BxLxD, X_BxLxD, how.transform)


@functools.cache
def _gating(router: MetaRouter, width: int, dtype: str, L: int) -> pricing.Price:
    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))

    def make(x):
        return router.init(jax.random.key(0), x)

    def run(params, x):
        return router.apply({"params": params}, x)

    return pricing.whole(make, run, (x,))
