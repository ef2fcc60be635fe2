"""What each model remembers while it decodes, and what a decoded token costs.

Keys and values of kv=all stand for L tokens, of kv=routed for the slots of the dispatch only: a smaller cache. Every
slot of a cache is visited whatever the position, so a token's price does not depend on where it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers import block, cache, compressor, shapes
from cerebra_jax.layers import dct_filter as parts
from cerebra_jax.layers import rfa as rbf
from cerebra_jax.layers.cache import Cache
from cerebra_jax.layers.compressor import light_width
from cerebra_jax.models import cerebra, chiar
from cerebra_jax.routing import routers as router
from cerebra_jax.routing.dispatch import Layout
from cerebra_jax.types import TokenCost


class Decoder(NamedTuple):
    cache: Callable[[NetCfg, int, Any], Cache]  # (net, L, ex_B) -> of rows that have read nothing
    token: Callable[
        [NetCfg, int, int], TokenCost
    ]  # (net, L, vocab) -> forward FLOPs of one token, head included


def _transformer_cache(net: NetCfg, L: int, ex_B) -> Cache:
    layer = lambda each: {"heavy": _keys(each, len(ex_B), L, L)} | _near(net, len(ex_B))  # noqa: E731
    return cache.empty(net, L, ex_B, 0, shapes.each(net), layer)


def _transformer_token(net: NetCfg, L: int, vocab: int) -> TokenCost:
    always = {}
    for i, each in enumerate(shapes.each(net)):
        always[f"layer_{i:02d}/attention"] = _dense(each, L)
        always[f"layer_{i:02d}/ffn"] = block.ffn_flops(each, 1)
    return TokenCost(always | {"head": prices.linear_flops(net.width, vocab)}, {}, {})


def _chiar_cache(net: NetCfg, L: int, ex_B) -> Cache:
    B, lay, R = len(ex_B), chiar.layout(net, L), net.depth - 2

    nets = shapes.each(net)

    def layer(each: NetCfg):
        made = {}
        if net.route.mode != "always_compressed":
            made["heavy"] = _keys(each, B, _memory(net, lay, L), L)
        if router.routed(net):
            made["used_BxS"] = jnp.zeros((B, len(lay.slots)), jnp.int32)
        if net.route.rbf:
            made["rbf"] = rbf.empty(net, B, L)
        return made

    rest = {"heavy": _keys(nets[-1], B, L, L)}
    if net.route.meta != "off":
        rest["sum_BxD"] = jnp.zeros((B, net.width))
    return cache.empty(net, L, ex_B, R if router.routed(net) else 0, nets[1:-1], layer, **rest)


def _chiar_token(net: NetCfg, L: int, vocab: int) -> TokenCost:
    D, last = net.width, f"layer_{net.depth - 1:02d}"
    mode, filtered = net.route.mode, parts.filter_flops(net, parts.seen(net))
    always, kept = {"layer_00/filter": parts.filter_flops(net, seen=False)}, {}
    if net.route.meta != "off":
        always["layer_00/meta_router"] = prices.linear_flops(D, 1)
    first, *between, end = shapes.each(net)
    always["layer_00/ffn"] = block.ffn_flops(first, 1)
    slots = _memory(net, chiar.layout(net, L), L)
    for i, each in enumerate(between, 1):
        layer = f"layer_{i:02d}"
        if mode != "always_full":
            always[f"{layer}/filter"] = filtered
        if router.routed(net):
            always[f"{layer}/router"] = chiar.score_flops(net, 1)
        if net.route.rbf:
            always[f"{layer}/rbf"] = rbf.rows_flops(net, 1, carried=True)
        if mode != "always_compressed":
            always[f"{layer}/attention"], kept[f"{layer}/attention"] = _routed(each, slots)
        always[f"{layer}/ffn"] = block.ffn_flops(each, 1)
    always |= {f"{last}/attention": _dense(end, L), f"{last}/ffn": block.ffn_flops(end, 1)}
    return TokenCost(always | {"head": prices.linear_flops(net.width, vocab)}, kept, {})


def _cerebra_cache(net: NetCfg, L: int, ex_B) -> Cache:
    """For the light path, the M windows, and the W − 1 tokens before the next one."""
    B, mode = len(ex_B), net.route.mode
    (M, W), E, heads = (
        compressor.windows(L, net.compress.r).idx_MxW.shape,
        _light(net),
        compressor.light_heads(net),
    )

    def layer(each: NetCfg):
        made, lay = _near(net, B), cerebra.layout(each, L)
        if mode != "always_full":
            made["light"] = cache.empty_kv(B, heads, M, E // heads, net.dtype, L)
            made["recent"] = jnp.zeros((B, W - 1, net.width), net.dtype)
        if mode != "always_compressed":
            made["heavy"] = _keys(each, B, _memory(net, lay, L), L)
        if cerebra.routed(net):
            made["used_BxS"] = jnp.zeros((B, len(lay.slots)), jnp.int32)
        return made

    return cache.empty(
        net, L, ex_B, net.depth if cerebra.routed(net) else 0, shapes.each(net), layer
    )


def _cerebra_token(net: NetCfg, L: int, vocab: int) -> TokenCost:
    D, E, mode, M = (
        net.width,
        _light(net),
        net.route.mode,
        len(compressor.windows(L, net.compress.r).last_M),
    )
    both = mode in ("soft", "always_full")
    always, kept, window = {}, {}, {}
    for i, each in enumerate(shapes.each(net)):
        layer = f"layer_{i:02d}"
        narrow, rest = (prices.ffn_flops(D, F, net.ffn) for F in cerebra.ffn_widths(each))
        always[f"{layer}/ffn"] = narrow
        if mode in router.SCORED:
            always[f"{layer}/router"] = router.router_flops(net, 1)
        if mode != "always_full":
            always[f"{layer}/light"] = 2 * prices.linear_flops(D, E) + att.scores_flops(
                cache.plan(1, M), E
            )
            window[f"{layer}/compressor"] = compressor.compressor_flops(each, L) // M
            window[f"{layer}/light"] = prices.linear_flops(compressor.channels(each), 2 * E)
        if mode != "always_compressed":
            heavy = _routed(each, _memory(net, cerebra.layout(each, L), L))
            always[f"{layer}/attention"], kept[f"{layer}/attention"] = heavy
            always[f"{layer}/ffn"] += rest if both else 0
            kept[f"{layer}/ffn"] = 0 if both else rest
    return TokenCost(
        always | {"head": prices.linear_flops(net.width, vocab)},
        kept,
        window,
        M / L if window else 0.0,
    )


def _keys(net: NetCfg, B: int, slots: int, L: int) -> cache.KV:
    return cache.empty_kv(B, shapes.heads(net), slots, net.width // net.heads, net.dtype, L)


def _near(net: NetCfg, B: int) -> dict:
    """What the short convolution remembers."""
    return {"near": jnp.zeros((B, net.local - 1, net.width), net.dtype)} if net.local else {}


def _memory(net: NetCfg, lay: Layout, L: int) -> int:
    """Slots that routed attention remembers."""
    return lay.K if net.route.kv == "routed" else L


def _dense(net: NetCfg, slots: int) -> int:
    """Attention of one token: four projections, and scores over every slot of the cache."""
    return block.attention_flops(net.width, 1, 1, cache.plan(1, slots), inner=shapes.inner(net))


def _routed(net: NetCfg, slots: int) -> tuple[int, int]:
    """(always, if kept) of one token in routed attention: with kv=all its key and value are always made."""
    made = prices.linear_flops(net.width, 2 * shapes.inner(net)) if net.route.kv == "all" else 0
    if net.route.mode in ("soft", "always_full"):
        made = _dense(net, slots)
    return made, _dense(net, slots) - made


def _light(net: NetCfg) -> int:
    return light_width(net.compress, net.width)


DECODERS = {
    "transformer": Decoder(_transformer_cache, _transformer_token),
    "window": Decoder(_transformer_cache, _transformer_token),  # all L keys are kept, and masked
    "chiar": Decoder(_chiar_cache, _chiar_token),
    "cerebra": Decoder(_cerebra_cache, _cerebra_token),
}
