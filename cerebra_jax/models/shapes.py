"""What one layer of a model has: widths, all of them or what pruning has left, and its routed
share.

Head width, light width and residual width never change: a removed head, hidden feature or channel
takes its rows and columns with it and nothing else.
"""

from __future__ import annotations

import dataclasses

from cerebra_jax.config import KeptCfg, NetCfg, RouteCfg
from cerebra_jax.layers.compressor import ceil_share

WHOLE = KeptCfg()
MOST = 0.999  # rate of a layer: a threshold needs a share below 1


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """The numbers of one layer."""

    heads: int
    ffn: int  # hidden features that every token runs
    rest: int  # hidden features that kept tokens add
    channels: int  # features of compressed tokens
    route: RouteCfg


def unpruned(net: NetCfg) -> NetCfg:
    """Returns the configuration before anything was removed: what costs are relative to."""
    return net if net.kept == WHOLE else dataclasses.replace(net, kept=WHOLE)


def layer_shapes(net: NetCfg) -> tuple[LayerShape, ...]:
    """Returns the shape of each of net.depth layers."""
    return tuple(_layer(net, i) for i in range(net.depth))


def _layer(net: NetCfg, i: int) -> LayerShape:
    narrow, rest = net.ffn_width, 0
    if net.name == "cerebra" and net.route.part == "block":
        narrow = ceil_share(net.compress.s, net.ffn_width)
        rest = net.ffn_width - narrow

    def remaining(kind: str, most: int) -> int:
        numbers = getattr(net.kept, kind)
        return numbers[i] or most if numbers else most

    return LayerShape(
        remaining("heads", net.heads),
        remaining("ffn", narrow),
        remaining("rest", rest),
        remaining("channels", light_width(net)),
        layer_route(net, i),
    )


def light_width(net: NetCfg) -> int:
    """Returns E = ceil(s D), the width of the light path."""
    return ceil_share(net.compress.s, net.width)


def rate_scale(net: NetCfg, layer: int) -> float:
    """Returns the rate of a layer in units of net.route.rate."""
    return net.route.by_layer[layer] if net.route.by_layer else 1.0


def layer_route(net: NetCfg, layer: int) -> RouteCfg:
    """Returns the routing of one layer, whose rate, floor and ceiling may be its own."""
    route = net.route
    if not route.by_layer:
        return route
    scale = rate_scale(net, layer)
    ceiling = min(1.0, route.ceiling * scale) if route.ceiling < 1.0 else 1.0
    rate = min(MOST, route.rate * scale)
    floor = min(1.0, route.floor * scale)
    return dataclasses.replace(route, by_layer=(), rate=rate, floor=floor, ceiling=ceiling)
