"""What all models share: what a block is given, what becomes of its reports, prices of parts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import CompressCfg, NetCfg, RouteCfg
from cerebra_jax.kernels.attention import PAST, Blocks, pieces
from cerebra_jax.kernels.fused_attention import calls_of
from cerebra_jax.kernels.fused_call import PLATFORMS
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.compressor import ceil_share
from cerebra_jax.layers.embedding import embed
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.head import finish
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rows import Rows, ranks, token_segments, tokens
from cerebra_jax.models import pricing
from cerebra_jax.models.pricing import Block, Part, PriceList
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.decision_cost import mean_cost, pairs
from cerebra_jax.routing.routed import Capacity
from cerebra_jax.routing.routers import Circumstances, Thresholds, selected_tokens
from cerebra_jax.types import Aux, DecisionCost, LayerDecision, LayerReport


class Own(NamedTuple):
    """What differs from layer to layer, scanned over; scalars."""

    thresholds: Thresholds
    number: jax.Array


class Shared(NamedTuple):
    """What all layers of a pass are given."""

    temperature: jax.Array
    rate: jax.Array
    pos: jax.Array  # (B or 1, n)
    rank: jax.Array  # (B or 1, n)
    ex_B: jax.Array
    mask_BxL: jax.Array | None
    needed_BxL: jax.Array | None

    def rows(self, x_BxLxD, length: int, causal: bool, decoding: bool) -> Rows:
        """Returns all tokens of a pass, or of a chunk that is decoded, as rows."""
        if not decoding:
            return tokens(x_BxLxD, self.rank, causal, self.mask_BxL)
        return Rows(x_BxLxD, self.pos, self.pos, length, (), self.mask_BxL)

    def circumstances(self, own: Own, decoding: bool) -> Circumstances:
        """Returns what a router of that layer knows beside its tokens."""
        now = (own.thresholds, own.number, self.temperature, self.ex_B)
        return Circumstances(*now, self.needed_BxL, decoding)


def shared_of(net: NetCfg, batch, knobs, cache: cached.Cache | None, count: int):
    """Returns (context length L, `Shared`) of a batch, or of a chunk of `count` tokens."""
    L, pos, mask_BxL = cached.places(batch, count, cache)
    rank = ranks(L, net.causal, mask_BxL) if cache is None else pos
    needed_BxL = batch["needed_BxL"] if net.route.mode == "oracle" else None
    shared = Shared(knobs.temperature, knobs.rate, pos, rank, batch["ex_B"], mask_BxL, needed_BxL)
    return L, shared


def owns(routing: dict[str, jax.Array], count: int, first: int = 0) -> Own:
    """Returns what each of `count` layers has of its own, stacked."""
    none = jnp.zeros(count)
    found = Thresholds(*(routing.get(name, none) for name in Thresholds._fields))
    return Own(found, jnp.arange(first, first + count))


class Placed(NamedTuple):
    """Where a block stands: context length, platform of the kernels, what its decisions cost."""

    length: int
    platform: str
    cost: LayerDecision = LayerDecision()


def out_scale(net: NetCfg) -> float:
    """Returns by how much smaller the weights begin that write into the residual stream.

    It has 2 · depth parts (GPT-2).
    """
    return net.branch * (2 * net.depth) ** -0.5


def feed_forward(net: NetCfg, hidden: int, out: float, *, bias: bool = False) -> FeedForward:
    """Returns the FFN of a configuration with that many hidden features."""
    exact = net.compat
    sizes = (net.width, hidden, net.ffn, bias, net.init_std, out, exact)
    return FeedForward(*sizes, parent=None)


def costs_of(decisions: Decisions | None, count: int) -> tuple[LayerDecision, ...]:
    """Returns what a decision costs in each of `count` routed blocks, 0 where it is not known."""
    known = decisions is not None and decisions.cost.layers
    return decisions.cost.layers if known else (LayerDecision(),) * count


class Decisions(NamedTuple):
    """What becomes of the decisions of a model: their cost, and the weights of their losses."""

    cost: DecisionCost
    soft: bool = False  # both paths run for every token, whatever the gates say
    weights: dict[str, float] = {}


def aux_of(net: NetCfg, L: int, made: Decisions, report: LayerReport | None, B: int) -> Aux:
    """Returns what a pass says about itself, from the reports of its routed layers."""
    expected_B = hard_B = jnp.full(B, made.cost.fixed, jnp.float32)
    if report is None:
        return Aux(expected_B, hard_B, {}, {}, {}, {})
    if report.expected_B is not None:
        expected_B += report.expected_B.sum(0)
        hard_B += report.hard_B.sum(0)
    if made.soft:
        shares = [1.0] * len(made.cost.layers)
        cost = mean_cost(made.cost, shares, L, net.route.kv, net.causal)
        hard_B = jnp.full(B, cost, jnp.float32)
    stats = dict(report.stats)
    if "score" in report.scores:
        stats["score"] = report.scores["score"].mean(2)
    losses = {
        name: weight * report.losses[name].mean(0)
        for name, weight in made.weights.items()
        if name in report.losses
    }
    stats |= report.losses
    return Aux(expected_B, hard_B, stats, report.observed, report.scores, losses)


def capacity_of(net: NetCfg, route: Any, L: int, gathers: bool) -> Capacity:
    """Returns the slots of Cerebra's and MoD's routed layers.

    A fixed count needs no slack; an encoder sees everything, so it has one segment. So has an
    oracle: the tokens that a task needs stand close together, and the slots of a segment would not
    hold them.
    """
    soft = route.mode in ("soft", "always_full", "always_compressed")
    if not gathers or soft:
        layout = dispatch.layout(L, 1.0)
        return Capacity(L, layout, False, route.lowering, route.kv, soft)
    oracle = route.mode == "oracle"
    if net.causal and not oracle:
        layout = dispatch.layout(L, min(1.0, route.rate * route.capacity))
    else:
        exact = route.mode in ("topk", "random") or (oracle and not net.causal)
        slots = min(L, ceil_share(route.rate * route.capacity, L))
        K = selected_tokens(route, L) if exact else slots
        layout = dispatch.Layout(((0, L),), ((0, K),))
    return Capacity(L, layout, True, route.lowering, route.kv)


# prices


def abstract_rows(net: NetCfg, L: int) -> Rows:
    """Returns all tokens of an example, as shapes: their segments and order are real."""
    x = jax.ShapeDtypeStruct((1, L, net.width), jnp.dtype(net.dtype))
    index = jax.ShapeDtypeStruct((1, L), jnp.dtype("int32"))
    causal = net.causal
    return Rows(x, index, index, L, token_segments(L, causal), None, causal, causal)


def slots_and_keys(net: NetCfg, L: int, room: Capacity) -> tuple[Rows, Rows]:
    """Returns the queries and keys of a routed layer, as shapes."""
    every = abstract_rows(net, L)
    if not room.gathers:
        plain = every.plain and room.kv == "all"
        every = every._replace(plain=plain)
        return every, every
    x = jax.ShapeDtypeStruct((1, room.layout.K, net.width), every.x.dtype)
    index = jax.ShapeDtypeStruct((1, room.layout.K), every.pos.dtype)
    gathered = net.causal and room.kv == "all" and room.lowering == "gather"
    slot = every.rank if gathered else None
    queries = Rows(x, index, index, L, room.segments, None, room.compact, net.causal, slot=slot)
    if room.kv == "routed":
        return queries, queries
    return queries, every._replace(segments=room.layout.tokens, plain=False)


def score_blocks(blocks: Blocks) -> tuple[tuple[int, ...], ...]:
    """Returns (queries, keys) of each block of scores that a kernel computes.

    A fused kernel skips what is masked: (queries, keys, pairs).
    """
    if blocks.kernel in PLATFORMS:
        return calls_of(blocks)
    found = []
    for segment, chunk in pieces(blocks.layout, blocks.kernel):
        found += [(chunk, segment.keys)] * (segment.queries // chunk)
    return tuple(found)


def attending(net: NetCfg, name: str, layer: nn.Module, queries: Rows, keys: Rows) -> Part:
    """Returns attention of given queries and keys as a part; not routed."""
    reached = getattr(layer, "reach", PAST)
    alike = layer.clone(reach=PAST, parent=None) if reached != PAST else layer
    blocks = layer.blocks(queries, keys)
    fused = blocks.kernel in PLATFORMS
    price = pricing.mixing(alike, net.width, keys.x.shape[-1], net.dtype, fused)
    run = score_blocks(blocks)
    n, m = queries.count, keys.count
    L = queries.length
    visible = pairs(L, net.causal)
    if reached != PAST:
        back, ahead = reached
        visible = sum(min(L, i + ahead + 1) - max(0, i - back) for i in range(L))
    return Part(name, price, n, m, visible, n, m, run)


def mixing_part(net: NetCfg, name: str, layer: nn.Module, L: int, room: Capacity | None) -> Part:
    """Returns a layer that mixes tokens as a part: of all tokens, or of the slots of `room`."""
    if layer.pairwise:
        if room is None:
            every = abstract_rows(net, L)
            return attending(net, name, layer, every, every)
        queries, keys = slots_and_keys(net, L, room)
        part = attending(net, name, layer, queries, keys)
        return part._replace(rows=L, keys=L, decided="kept", keys_too=room.kv == "routed")
    price = pricing.recurrent(layer, net.width, net.dtype)
    slots = L if room is None else room.slots
    masked = room is not None
    program = pricing.recurrent_program(layer, net.width, net.dtype, slots, masked)
    return Part(name, price, L, decided="kept" if masked else "", program=program)


def rows_part(net: NetCfg, name: str, layer: nn.Module, L: int, room: Capacity | None) -> Part:
    """Returns a layer that works row by row as a part: of all tokens, or of the slots of `room`."""
    price = pricing.by_row(layer, net.width, net.dtype)
    slots = L if room is None else room.slots
    decided = "" if room is None else "kept"
    return Part(name, price, L, run_rows=slots, decided=decided)


def at_any_rate(router: nn.Module) -> nn.Module:
    """Returns the router as it is priced: a threshold costs the same whatever it lets through."""
    route = getattr(router, "route", None)
    if route is None or route.mode not in ("threshold", "hard"):
        return router
    usual = RouteCfg()
    names = ("rate", "floor", "ceiling", "capacity")
    route = dataclasses.replace(route, **{name: getattr(usual, name) for name in names})
    return router.clone(route=route)


def norm_part(net: NetCfg, rows: int) -> Part:
    """Returns LayerNorm of that many rows as a part."""
    price = pricing.by_row(Norm(parent=None), net.width, net.dtype)
    return Part("norm", price, rows, run_rows=rows)


def dispatch_part(net: NetCfg, L: int, room: Capacity, *, light: bool, assigns: bool) -> Part:
    """Returns the moves into slots and back as a part; the program has them, the model does not."""
    price = pricing.dispatching(net.width, net.dtype, room.lowering, light, assigns)
    layout = room.layout
    sizes = [(c1 - c0, b - a) for (a, b), (c0, c1) in zip(layout.tokens, layout.slots, strict=True)]
    return Part("dispatch", price, run_rows=room.layout.K, run_keys=L, run_blocks=tuple(sizes))


def ends(net: NetCfg, L: int, vocab: int) -> tuple[Block, Block]:
    """Returns the embedding, and the last norm with the head, as blocks."""
    # no router and no compressor changes them: one trace serves all the rates of a budget
    return _ends(dataclasses.replace(net, route=RouteCfg(), compress=CompressCfg()), L, vocab)


@functools.lru_cache(maxsize=64)
def _ends(net: NetCfg, L: int, vocab: int) -> tuple[Block, Block]:
    return Block("embed", (_embedding(net, L, vocab),)), Block("head", (_head(net, L, vocab),))


class _Ends(nn.Module):
    """Embedding and head alone, to be priced."""

    net: NetCfg
    vocab: int

    @nn.compact
    def __call__(self, batch, x_BxLxD=None, table_VxD=None):
        if x_BxLxD is None:
            return embed(self.net, self.vocab, batch)
        return finish(self.net, self.vocab, x_BxLxD, table_VxD, batch)


def listed(net: NetCfg, L: int, vocab: int, layers: Iterable[Any]) -> PriceList:
    """Returns embedding, layer_00, layer_01, … and head with prices, of layers with `parts`."""
    first, last = ends(net, L, vocab)
    middle = (Block(f"layer_{i:02d}", layer.parts(net)) for i, layer in enumerate(layers))
    return PriceList((first, *middle, last))


def prunable_of(layers: Iterable[Any]) -> list[Group]:
    """Returns what pruning may remove from layer_00, layer_01, …"""
    named = [(i, layer) for i, layer in enumerate(layers) if hasattr(layer, "prunable")]
    return [unit for i, layer in named for unit in layer.prunable(f"layer_{i:02d}", i)]


def _batch(net: NetCfg, L: int) -> dict[str, jax.ShapeDtypeStruct]:
    def shape(*sizes: int, dtype: str = "int32"):
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    batch = {"ex_B": shape(1)}
    if net.features:
        return batch | {"features_BxLxN": shape(1, L, net.features, dtype="float32")}
    batch["inputs_BxL"] = shape(1, L)
    if net.subwords:
        batch["subwords_BxLxG"] = shape(1, L, net.subwords)
    return batch


def _embedding(net: NetCfg, L: int, vocab: int) -> Part:
    layer = _Ends(net, vocab, parent=None)

    def make(batch):
        return layer.init(jax.random.key(0), batch)

    def run(params, batch):
        return layer.apply({"params": params}, batch)[0]

    return Part("", pricing.whole(make, run, (_batch(net, L),)))


def _head(net: NetCfg, L: int, vocab: int) -> Part:
    """Returns the last norm and the logits, which the loss reads twice: their maximum, their
    sum.
    """
    layer = _Ends(net, vocab, parent=None)
    x = jax.ShapeDtypeStruct((1, L, net.width), jnp.dtype(net.dtype))
    table = None  # a model of features has an output matrix of its own
    if not net.features:
        table = jax.ShapeDtypeStruct((vocab, net.width), jnp.dtype("float32"))

    def make(x, table):
        return layer.init(jax.random.key(0), {"ex_B": jnp.zeros(1, int)}, x, table)

    def run(params, x):
        own, table = params
        out = layer.apply({"params": own}, {"ex_B": jnp.zeros(1, int)}, x, table)
        h = out.h[:, : net.answers] if net.answers else out.h
        logits = jnp.einsum(
            "bld,vd->blv", h, out.head_VxD.astype(h.dtype), preferred_element_type=jnp.float32
        )
        top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        return jnp.exp(logits - top).sum(-1)

    tied = None if net.features else table  # of features, the head has a matrix of its own
    own = jax.eval_shape(make, x, tied).get("params", {})
    return Part("", pricing.fixed(pricing.count.operations(run, (own, tied), x)))
