"""The layers of CHIAR-Former: the first, the routed ones, and the last, listed once."""

from __future__ import annotations

from typing import NamedTuple

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct
from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.dct_filter import Filter
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.rfa import RandomFeatureAttention
from cerebra_jax.models import stack
from cerebra_jax.models.chiar_block import AttentionLN, Between, FeedForwardLN, RoutedBlock
from cerebra_jax.models.shapes import LayerShape, layer_shapes
from cerebra_jax.models.stack import Decisions
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.entropy_router import EntropyRouter
from cerebra_jax.routing.report import Reporter
from cerebra_jax.routing.routed import Capacity
from cerebra_jax.routing.routers import MetaRouter


def methods(net: NetCfg, platform: str) -> dct.Methods:
    """Returns how a model computes its DCTs, and filters whose coefficients nobody sees."""
    return dct.methods(net.route.dct, net.width, platform, net.dtype)


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
    between = []
    for shape, cost in zip(middle, stack.costs_of(decisions, len(middle)), strict=True):
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
