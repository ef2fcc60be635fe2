"""One dense block: every token runs its mixing layer and its FFN."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.short_conv import ShortConv
from cerebra_jax.models import stack
from cerebra_jax.models.pricing import Part
from cerebra_jax.models.shapes import LayerShape
from cerebra_jax.models.stack import Own, Shared
from cerebra_jax.routing.report import NOTHING


class DenseBlock(nn.Module):
    """One block: pre: x + Attention(LN x), then x + FFN(LN x); the outputs start small (GPT-2).

    post: LN(x + Attention(x)), then LN(x + FFN(x)), as CHIAR does it: the control that differs in
    the routing only.
    """

    attention: nn.Module
    ffn: FeedForward
    attention_norm: Norm
    ffn_norm: Norm
    local: ShortConv | None
    length: int
    causal: bool
    pre: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache: dict | None = None):
        drop = Drop(self.dropout)
        h = self.attention_norm(x_BxLxD) if self.pre else x_BxLxD
        rows = shared.rows(h, self.length, self.causal, cache is not None)
        after = {}
        if cache is None:
            backwards = reading(self.attention, self.causal, own)
            mixed = self.attention(rows, rows, **backwards)
        else:
            place = cached.Place(shared.pos, self.length)
            mixed, after["heavy"] = self.attention.decode(rows, cache["heavy"], place)
        if self.local is not None:
            mixed += short(self.local, rows, cache, after)
        x_BxLxD += drop(shared.ex_B, mixed)
        x_BxLxD = x_BxLxD if self.pre else self.attention_norm(x_BxLxD)
        hidden = self.ffn_norm(x_BxLxD) if self.pre else x_BxLxD
        x_BxLxD += drop(shared.ex_B, self.ffn(hidden))
        x_BxLxD = x_BxLxD if self.pre else self.ffn_norm(x_BxLxD)
        return x_BxLxD, NOTHING if cache is None else (None, after)

    def init_cache(self, batch: int) -> dict[str, Any]:
        """Returns the memory of rows that have read nothing."""
        heavy = self.attention.init_cache(batch, self.length, self.length)
        return {"heavy": heavy} | short_cache(self.local, batch)

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        L = self.length
        mixing = stack.mixing_part(net, "attention", self.attention, L, None)
        ffn = stack.rows_part(net, "ffn", self.ffn, L, None)
        found = (stack.norm_part(net, 2 * L), mixing, ffn)
        return found if self.local is None else (*found, local_part(net, self.local, L))

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its heads and hidden features."""
        heads = self.attention.prunable(f"{place}/attention", layer)
        return heads + self.ffn.prunable(f"{place}/ffn", layer)


def reading(layer: nn.Module, causal: bool, own: Own) -> dict[str, Any]:
    """Returns the direction in which a recurrence reads an encoder's tokens: in turn."""
    if causal or not getattr(layer, "directional", False):
        return {}
    return {"backwards": own.number % 2 == 1}


def short(local: ShortConv, rows, cache: dict | None, after: dict):
    """Returns the short convolution of a block; what it remembers next goes into `after`."""
    if cache is None:
        return local(rows, rows)
    y_BxLxD, after["near"] = local.decode(rows, cache["near"])
    return y_BxLxD


def short_cache(local: ShortConv | None, batch: int) -> dict[str, Any]:
    """Returns what a short convolution remembers, if there is one."""
    return {} if local is None else {"near": local.init_cache(batch, 0, 0)}


def short_conv(net: NetCfg) -> ShortConv | None:
    """Returns the short convolution beside the mixing layer, net.local tokens; None without one."""
    if not net.local:
        return None
    return ShortConv(net.width, net.local, net.causal, net.init_std, net.dtype, parent=None)


def local_part(net: NetCfg, local: ShortConv, L: int) -> Part:
    """Returns the short convolution as a part: elementwise work."""
    return stack.mixing_part(net, "local", local, L, None)


def block(net: NetCfg, shape: LayerShape, L: int, platform: str) -> DenseBlock:
    """Returns one dense block."""
    pre = net.norm == "pre"
    scale = stack.out_scale(net) if pre else 1.0
    mixing = mixer(net.heavy, net, shape.heads, scale, platform)
    if net.name == "window":
        mixing = mixing.clone(reach=reach(net), parent=None)
    return DenseBlock(
        mixing,
        stack.feed_forward(net, shape.ffn, scale),
        Norm(parent=None),
        Norm(parent=None),
        short_conv(net),
        L,
        net.causal,
        pre,
        net.dropout,
        parent=None,
    )


def reach(net: NetCfg) -> tuple[int, int]:
    """Returns how many positions before and after its own a token of a window sees."""
    if net.causal:
        return (net.window - 1, 0)
    return (net.window // 2, (net.window - 1) // 2)
