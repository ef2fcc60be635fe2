"""What one layer has: the widths of its parts, all of them or what pruning has left (net.kept), and its routed share.

Head width, light width and residual width never change: a removed head, hidden feature or channel takes its rows and
columns with it and nothing else. A configuration with lists is `of` one layer before anything asks for a width.
"""

from __future__ import annotations

import dataclasses

from cerebra_jax.checks import joined
from cerebra_jax.config import KeptCfg, NetCfg, RouteCfg

WHOLE = KeptCfg()
MOST = 0.999  # rate of a layer: a threshold needs a share below 1


def whole(net: NetCfg) -> NetCfg:
    """The shape before anything was removed: what costs are relative to."""
    return net if net.kept == WHOLE else dataclasses.replace(net, kept=WHOLE)


def of(net: NetCfg, layer: int) -> NetCfg:
    """The configuration of one layer: net itself where all layers are alike."""
    if net.route.by_layer:
        net = dataclasses.replace(net, route=_share(net.route, scale(net, layer)))
    if net.kept == WHOLE:
        return net
    one = {f.name: getattr(net.kept, f.name) for f in dataclasses.fields(KeptCfg)}
    return dataclasses.replace(
        net, kept=KeptCfg(**{name: n[layer : layer + 1] for name, n in one.items()})
    )


def scale(net: NetCfg, layer: int) -> float:
    """The rate of a layer in units of net.route.rate."""
    return net.route.by_layer[layer] if net.route.by_layer else 1.0


def _share(route: RouteCfg, n: float) -> RouteCfg:
    ceiling = min(1.0, route.ceiling * n) if route.ceiling < 1.0 else 1.0
    rate, floor = min(MOST, route.rate * n), min(1.0, route.floor * n)
    return dataclasses.replace(route, by_layer=(), rate=rate, floor=floor, ceiling=ceiling)


def each(net: NetCfg) -> list[NetCfg]:
    """`of` every layer."""
    return [of(net, i) for i in range(net.depth)]


def heads(net: NetCfg) -> int:
    """Attention heads of a layer."""
    return _one(net.kept.heads) or net.heads


def inner(net: NetCfg) -> int:
    """Width of all heads of a layer together."""
    return heads(net) * (net.width // net.heads)


def hidden(net: NetCfg, width: int = 0) -> int:
    """Hidden features of a layer's FFN, of `width` (0: net.ffn_width) before pruning."""
    return _one(net.kept.ffn) or width or net.ffn_width


def rest(net: NetCfg, width: int) -> int:
    """Hidden features that kept tokens add, of `width` before pruning."""
    return _one(net.kept.rest) or width


def channels(net: NetCfg, width: int) -> int:
    """Features of a layer's compressed tokens, of `width` before pruning."""
    return _one(net.kept.channels) or width


def with_kept(net: NetCfg, lists: dict[str, tuple[int, ...]]) -> NetCfg:
    """The configuration with these lists of what is left."""
    return dataclasses.replace(net, kept=KeptCfg(**lists))


def with_hidden(net: NetCfg, width: int) -> NetCfg:
    """A configuration whose FFN has exactly so many hidden features."""
    return dataclasses.replace(net, ffn_width=width, kept=WHOLE)


def _one(left: tuple[int, ...]) -> int:
    if len(left) > 1:
        raise ValueError(f"{joined(left)} is of several layers")
    return left[0] if left else 0
