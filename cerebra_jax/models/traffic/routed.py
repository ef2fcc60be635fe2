"""The operations of the models that route, and what one kept token and one visible pair add to them."""

from __future__ import annotations

import functools
from typing import NamedTuple

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices, units
from cerebra_jax.cost.units import FLOAT, Op
from cerebra_jax.layers import block, compressor, shapes
from cerebra_jax.layers import dct_filter as operators
from cerebra_jax.layers.compressor import light_heads, light_width
from cerebra_jax.models import cerebra, chiar
from cerebra_jax.models.traffic import common
from cerebra_jax.models.traffic.common import Ops, Parts
from cerebra_jax.routing import routers as router


class Routed(NamedTuple):
    """What the decisions of a layer are charged for: the operations of one kept token, and of one visible pair."""

    token: Ops
    pair: Ops


def _attended(net: NetCfg, L: int, dispatched: bool) -> Routed:
    """A kept token is gathered, makes its query and its output (kv=routed: also its key and value), and is read."""
    D, A, size = net.width, shapes.inner(net), common.itemsize(net)
    made = [units.linear(D, A, size), units.linear(A, D, size)]
    made += [units.linear(D, 2 * A, size)] if net.route.kv == "routed" else []
    streams = [units.streamed(A, size)] * (2 if net.route.kv == "routed" else 1)
    gathered = [units.moved(D, size)] if dispatched else []
    # a fused kernel knows only plain causal attention of all tokens
    fused = not dispatched and net.route.kv == "all" and block.kernel_of(net, L) == "cudnn"
    return Routed([*gathered, *made, *streams], [units.pair(A, shapes.heads(net), size, fused)])


def _routed_attention(net: NetCfg, L: int, lay, each: Routed) -> tuple[Ops, Ops]:
    """(model, executed) operations of routed attention; lay: the layout of its dispatch, None where it is masked."""
    D, A, H = net.width, shapes.inner(net), shapes.heads(net)
    size, all_keys = common.itemsize(net), net.route.kv == "all"
    shared = (
        [units.linear(D, 2 * A, size).times(L), units.streamed(A, size).times(L)]
        if all_keys
        else []
    )
    model = [
        *(op.times(L) for op in each.token),
        *(op.times(block.pairs(net, L)) for op in each.pair),
        *shared,
    ]
    K = lay.K if lay else L
    plan = lay.plan(net.route.kv) if lay else block.dense_plan(net, L)
    kernel = block.kernel_of(net, L) if all_keys and not lay else block.masked_kernel(net, plan)
    return model, common.heavy(net, K, L if all_keys else K, common.visits(net, plan, A, H, kernel))


def _dispatch(net: NetCfg, L: int, lay, gathers: int, scatters: int, reads: int) -> tuple[Ops, Ops]:
    """(model, executed) operations that move tokens to their slots and back, so many times each; `reads`: whole numbers
    read with them, which is work only with one-hot matrices. What is gathered is priced with each kept token."""
    D, size = net.width, common.itemsize(net)
    back = [units.moved(D, size).times(scatters * L)]
    if net.route.lowering == "gather":
        return back, [units.moved(D, size).times(gathers * lay.K), *back]
    sizes = [(c1 - c0, b - a) for (a, b), (c0, c1) in zip(lay.tokens, lay.slots, strict=True)]
    moves = gathers + scatters
    product = [
        Op(prices.matmul_flops(k, n, D), (k * n + (k + n) * D) * size).times(moves)
        for k, n in sizes
    ]
    return back, [*product, *(Op(bytes=(FLOAT + 1) * k * n).times(reads) for k, n in sizes)]


def cerebra_each(net: NetCfg, L: int) -> Routed:
    """Attention, and with route.part=block the rest of the FFN."""
    each, rest = _attended(net, L, cerebra.dispatched(net)), cerebra.ffn_widths(net)[1]
    gathered = (
        [units.moved(net.width, common.itemsize(net))] if rest and cerebra.dispatched(net) else []
    )
    return each._replace(token=[*each.token, *gathered, *common.ffn(net, 1, rest)])


def _compressor(net: NetCfg, L: int) -> Ops:
    D, H, E, size = net.width, net.heads, compressor.channels(net), common.itemsize(net)
    win = compressor.windows(L, net.compress.r)
    M, W = win.idx_MxW.shape
    cut = [] if win.tiles else [units.moved(D, size).times(M * W)]
    if net.compress.kind == "conv":
        return [
            *cut,
            Op(prices.conv_flops(1, W, D, E), (W * D + E) * size, W * D * E * size).times(M),
        ]
    score = units.linear(D, H, FLOAT).times(M * W)
    pool = Op(prices.matmul_flops(1, W, D), (W * (H + D) + D) * size).times(M)
    return [*cut, score, Op(bytes=2 * M * W * H * FLOAT), pool, units.linear(D, E, size).times(M)]


def _light(net: NetCfg, L: int) -> tuple[Ops, Ops]:
    """(model, executed) operations of the compressed attention."""
    D, E, heads, size = (
        net.width,
        light_width(net.compress, net.width),
        light_heads(net),
        common.itemsize(net),
    )
    last_M = compressor.windows(L, net.compress.r).last_M
    M = len(last_M)
    linear = [op.times(L) for op in (units.linear(D, E, size), units.linear(E, D, size))]
    linear.append(units.linear(compressor.channels(net), 2 * E, size).times(M))
    linear.append(Op(bytes=L * E * FLOAT))  # queries times the null key
    pairs = int((L - last_M).sum()) if net.causal else L * M
    plan = compressor.light_plan(net, L)
    kernel = block.masked_kernel(net, plan, heads)
    return (
        [*linear, *common.looks(net, pairs, L, M, E, heads)],
        [*linear, *common.visits(net, plan, E, heads, kernel)],
    )


def cerebra_parts(net: NetCfg, L: int, vocab: int) -> Parts:
    parts = Parts({}, {})
    common.embed(net, L, parts)
    priced = functools.cache(lambda each: _cerebra_layer(each, L))  # most layers are alike
    for i, each in enumerate(shapes.each(net)):
        for part, ops in priced(each).items():
            parts.add(f"layer_{i:02d}/{part}", *ops)
    common.head(net, L, vocab, parts)
    return parts


def _cerebra_layer(net: NetCfg, L: int) -> dict[str, tuple[Ops, Ops]]:
    """{part: (model, executed) operations} of one layer."""
    mode, size = net.route.mode, common.itemsize(net)
    narrow, rest = cerebra.ffn_widths(net)
    lay = router.layout(net, L) if cerebra.dispatched(net) else None
    each = _attended(net, L, lay is not None)
    attention = (
        _routed_attention(net, L, lay, each) if cerebra.routed(net) else common.dense(net, L)
    )
    if mode == "soft":
        attention = (attention[0], common.dense(net, L)[1])
    K = lay.K if lay else L
    moves = 2 if rest else 1
    gathered = [units.moved(net.width, size).times(L)] if lay and rest else []

    def wide(rows: int) -> Ops:
        return common.ffn(net, rows, rest) if mode != "always_compressed" else []

    shared = [common.norm(net, L), *common.ffn(net, L, narrow)]
    found = {"norm": ([common.norm(net, L)],) * 2}
    if mode in router.SCORED:
        found["router"] = ([units.linear(net.width, 1, FLOAT).times(L)],) * 2
    if mode != "always_full":
        found["compressor"] = (_compressor(net, L),) * 2
        found["light"] = _light(net, L)
    if mode != "always_compressed":
        found["attention"] = attention
    if lay:
        found["dispatch"] = _dispatch(net, L, lay, moves, moves, 2)
    return found | {"ffn": ([*shared, *gathered, *wide(L)], shared + wide(K))}


def _filter(net: NetCfg, L: int, seen: bool) -> Ops:
    """DCT and its inverse in float32, or one matrix, then the norm."""
    how = operators.methods(net)
    if not seen and how.filter == "folded":
        return [
            units.linear(net.width, net.width, common.itemsize(net)).times(L),
            common.norm(net, L),
        ]
    once = _transform(net, how.transform if seen else how.filter).times(L)
    return [once, once, common.norm(net, L)]


def _transform(net: NetCfg, method: str) -> Op:
    """A DCT, or its inverse, of one token in float32."""
    D = net.width
    spectrum = 2 * (D // 2 + 1) * FLOAT  # of one real FFT
    return (
        Op(prices.dct_flops(D, method), D * FLOAT + spectrum)
        if method == "fft"
        else units.linear(D, D, FLOAT)
    )


def _chiar_score(net: NetCfg) -> Ops:
    """A learned score, or an entropy, which reads what it is of twice: its power, and p log p."""
    D, size = net.width, common.itemsize(net)
    if net.route.mode != "threshold":
        return [units.linear(D, 1, FLOAT)]
    read = Op(bytes=2 * D * FLOAT)
    return (
        [units.moved(D, size), _transform(net, operators.methods(net).transform), read]
        if net.route.score == "permuted"
        else [read]
    )


def chiar_each(net: NetCfg, L: int) -> Routed:
    each = _attended(net, L, chiar.dispatched(net))
    return each._replace(token=[*each.token, units.norm(net.width)])


def chiar_parts(net: NetCfg, L: int, vocab: int) -> Parts:
    parts, D = Parts({}, {}), net.width
    lay = chiar.layout(net, L) if chiar.dispatched(net) else None
    mode, (first, *between, end) = net.route.mode, shapes.each(net)

    def ffn(each: NetCfg) -> Ops:
        return [*common.ffn(net, L, shapes.hidden(each)), common.norm(net, L)]

    common.embed(net, L, parts)
    parts.add("layer_00/filter", _filter(net, L, False))
    if net.route.meta in ("prefix", "batch"):
        mean = Op(bytes=(2 if net.route.meta == "prefix" else 1) * D * FLOAT)
        parts.add("layer_00/meta_router", [mean.times(L), units.linear(D, 1, FLOAT).times(L)])
    parts.add("layer_00/ffn", ffn(first))
    for i, each in enumerate(between, 1):
        if mode != "always_full":
            parts.add(f"layer_{i:02d}/filter", _filter(net, L, operators.seen(net)))
        if mode in ("threshold", "hard", "soft"):
            parts.add(f"layer_{i:02d}/router", [op.times(L) for op in _chiar_score(net)])
        if mode != "always_compressed":
            parts.add(f"layer_{i:02d}/attention", *_chiar_attention(each, L, lay))
        if lay:
            parts.add(f"layer_{i:02d}/dispatch", *_dispatch(net, L, lay, 1, 1, 1))
        parts.add(f"layer_{i:02d}/ffn", ffn(each))
    last = f"layer_{net.depth - 1:02d}"
    parts.add(f"{last}/attention", *([*ops, common.norm(net, L)] for ops in common.dense(end, L)))
    parts.add(f"{last}/ffn", ffn(end))
    common.head(net, L, vocab, parts)
    return parts


def _chiar_attention(net: NetCfg, L: int, lay) -> tuple[Ops, Ops]:
    """(model, executed) operations of the attention of a layer between, and of the norm after it."""
    model, run = (
        _routed_attention(net, L, lay, chiar_each(net, L))
        if router.routed(net)
        else common.dense(net, L)
    )
    if not router.routed(net):  # of a kept token it is in the price of each
        model = [*model, common.norm(net, L)]
    return model, [*run, common.norm(net, lay.K if lay else L)]


def mod_each(net: NetCfg, L: int) -> Routed:
    """Attention, the norms (a gathered token has two, others one before the router), and the whole FFN."""
    each, norms = (
        _attended(net, L, net.route.dispatch),
        [units.norm(net.width)] * (1 + net.route.dispatch),
    )
    return each._replace(token=[*each.token, *norms, *common.ffn(net, 1, net.ffn_width)])


def mod_parts(net: NetCfg, L: int, vocab: int) -> Parts:
    parts, dispatched = common.transformer(net, L, vocab), net.route.dispatch
    lay = router.layout(net, L) if dispatched else None
    attention = _routed_attention(net, L, lay, _attended(net, L, dispatched))
    model, run = (
        [common.norm(net, n * (1 + dispatched)), *common.ffn(net, n, net.ffn_width)]
        for n in (L, lay.K if lay else L)
    )
    for i in range(1, net.depth, 2):
        layer = f"layer_{i:02d}"
        if net.route.mode in router.SCORED:
            parts.add(f"{layer}/router", [units.linear(net.width, 1, FLOAT).times(L)])
        parts.add(f"{layer}/attention", *([common.norm(net, L), *ops] for ops in attention))
        parts.add(f"{layer}/ffn", model, run)
        if lay:
            parts.add(f"{layer}/dispatch", *_dispatch(net, L, lay, 1, 1, 2))
    return parts
