"""The dense baselines: a Transformer with RoPE and a tied head, and one with a sliding window.

Longformer's local attention (Beltagy et al. 2020, arXiv:2004.05150) without global tokens: causal,
the nearest net.window tokens before a token; as an encoder, half on each side. The key blocks
outside the window are not computed.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.head import finish
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.scan_layers import Repeat, scan_layers
from cerebra_jax.layers.short_conv import ShortConv
from cerebra_jax.models import stack
from cerebra_jax.models.pricing import Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import LayerShape, layer_shapes
from cerebra_jax.models.stack import Decisions, Own, Shared

FAR = 1 << 30  # where padding stands in a window: no real token reaches it


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
        return x_BxLxD, {} if cache is None else ({}, after)

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


def blocks(net: NetCfg, L: int, platform: str) -> tuple[DenseBlock, ...]:
    """Returns the layers, in order."""
    return tuple(block(net, shape, L, platform) for shape in layer_shapes(net))


def reach(net: NetCfg) -> tuple[int, int]:
    """Returns how many positions before and after its own a token of a window sees."""
    if net.causal:
        return (net.window - 1, 0)
    return (net.window // 2, (net.window - 1) // 2)


@register("transformer", "window")
class Transformer(nn.Module):
    """Language model, or encoder; (B, L) tokens -> `Out`, `Aux`; with a cache -> `Out`, cache."""

    net: NetCfg
    vocab: int
    decisions: Decisions
    platform: str = "cpu"

    @nn.compact
    def __call__(self, batch, knobs, routing, cache: cached.Cache | None = None):
        net = self.net
        x_BxLxD, table_VxD = stack.embedded(net, self.vocab, batch)
        B, n = x_BxLxD.shape[:2]
        L, shared = stack.shared_of(net, batch, knobs, cache, n)
        if net.name == "window" and cache is None:
            shared = shared._replace(rank=_window_rank(n, shared.mask_BxL))
        mode = Repeat(net.scan, net.remat)
        layers = None if cache is None else cache.layers
        layout = blocks(net, L, self.platform)
        own = stack.owns({}, net.depth)
        x_BxLxD, y = scan_layers(layout, mode, x_BxLxD, own, shared, layers)
        out = finish(net, self.vocab, x_BxLxD, table_VxD, batch)
        if cache is not None:
            return out, cached.advance(cache, shared.pos, y[1], None, {})
        return out, stack.aux_of(net, L, self.decisions, None, B)

    @staticmethod
    def price_list(net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        return stack.listed(net, L, vocab, blocks(net, L, platform))

    @staticmethod
    def init_cache(net: NetCfg, L: int, ex_B, platform: str) -> cached.Cache:
        """Returns the cache of rows that have read nothing."""
        layers = tuple(layer.init_cache(len(ex_B)) for layer in blocks(net, L, platform))
        return cached.empty(L, ex_B, 0, layers, net.scan, {})

    @staticmethod
    def prunable(net: NetCfg, L: int) -> list[Group]:
        """Returns what pruning may remove, layer by layer."""
        return stack.prunable_of(blocks(net, L, "cpu"))


def _window_rank(n: int, mask_BxL):
    pos_1xL = jnp.arange(n)[None]
    return pos_1xL if mask_BxL is None else jnp.where(mask_BxL, pos_1xL, FAR)
