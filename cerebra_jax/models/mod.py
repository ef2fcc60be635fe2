"""Mixture-of-Depths: every second block runs for a few tokens, the rest skip it.

Raposo et al. 2024, arXiv:2404.02258. x += g · (a + FFN(LN(x + a))), a = attention(LN x), for the
kept tokens, gathered into slots; the others pass unchanged. The paper takes the top k of the
sequence, which no causal model can know: here a causal model keeps the tokens above a running
quantile, as Cerebra does, with the same router and gate; an encoder the top k.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.head import finish
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.rows import Rows
from cerebra_jax.layers.scan_layers import Repeat, scan_layers
from cerebra_jax.models import light, stack
from cerebra_jax.models.pricing import Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.models.stack import Decisions, Own, Shared
from cerebra_jax.models.transformer import DenseBlock
from cerebra_jax.models.transformer import block as dense_block
from cerebra_jax.routing import thresholds
from cerebra_jax.routing.report import Reporter
from cerebra_jax.routing.routed import Capacity, Memory, Routed, carry_out
from cerebra_jax.routing.routers import SCORED, router_of
from cerebra_jax.types import LayerDecision


class RoutedBlock(nn.Module):
    """A whole block that kept tokens take, x -> (x, report): the heavy layer is the block
    itself.
    """

    router: nn.Module
    attention: nn.Module
    ffn: FeedForward
    attention_norm: Norm
    ffn_norm: Norm
    capacity: Capacity
    reporter: Reporter
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache: Memory | None = None):
        decoding = cache is not None
        rows = shared.rows(x_BxLxD, self.capacity.length, self.reporter.causal, decoding)
        normed = rows.with_x(self.attention_norm(x_BxLxD))
        route = self.router(normed, shared.circumstances(own, decoding))
        routed = Routed(WholeBlock(self), self.capacity)
        if decoding:
            taken, decided, after = routed.decode(rows, route, None, cache)
            return x_BxLxD + taken, (decided.kept_BxL, after)
        decided = carry_out(route, self.capacity)
        taken = routed(rows, decided)
        x_BxLxD += Drop(self.dropout)(shared.ex_B, taken)
        return x_BxLxD, self.reporter.report(route, decided, shared.mask_BxL, shared.rate)

    def added(self, queries: Rows, keys: Rows):
        """Returns what the block adds to the queries."""
        q = queries.with_x(self.attention_norm(queries.x))
        m = q if keys is queries else keys.with_x(self.attention_norm(keys.x))
        a_BxKxD = self.attention(q, m)
        return a_BxKxD + self.ffn(self.ffn_norm(queries.x + a_BxKxD))

    def decode_added(self, rows: Rows, memory, place: cached.Place):
        """Returns what the block adds to a chunk of tokens, and the memory after it."""
        normed = rows.with_x(self.attention_norm(rows.x))
        a_BxnxD, memory = self.attention.decode(normed, memory, place)
        x_BxnxD = rows.x + a_BxnxD
        f_BxnxD = cached.when(place.run, _feed_forward, self, x_BxnxD, x_BxnxD.shape[-1])
        return a_BxnxD + f_BxnxD, memory

    def init_cache(self, batch: int) -> Memory:
        """Returns the memory of rows that have read nothing."""
        return Routed(WholeBlock(self), self.capacity, parent=None).init_cache(batch)

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        room, L = self.capacity, self.capacity.length
        found = [stack.norm_part(net, L)]
        if net.route.mode in SCORED:
            found.append(light.router_part(net, self.router, L))
        # of a gathered token its two norms, else the second
        norms = stack.rows_part(net, "norm", self.ffn_norm, L, room)
        found += [norms] * (1 + room.gathers)
        found.append(stack.mixing_part(net, "attention", self.attention, L, room))
        found.append(stack.rows_part(net, "ffn", self.ffn, L, room))
        if room.gathers:
            found.append(stack.dispatch_part(net, L, room, light=False, assigns=True))
        return tuple(found)


def _feed_forward(module: RoutedBlock, x_BxnxD):
    return module.ffn(module.ffn_norm(x_BxnxD))


@dataclasses.dataclass(frozen=True)
class WholeBlock:
    """A block as a layer: what it adds to the queries."""

    block: RoutedBlock

    def __call__(self, queries: Rows, keys: Rows):
        return self.block.added(queries, keys)

    def decode(self, rows: Rows, memory, place: cached.Place):
        """Returns the same for a chunk of tokens, and the memory after it."""
        return self.block.decode_added(rows, memory, place)

    def init_cache(self, batch: int, slots: int, length: int):
        """Returns an empty memory of that many slots."""
        return self.block.attention.init_cache(batch, slots, length)


class PairMemory(NamedTuple):
    """What a pair of blocks remembers while decoding."""

    dense: dict[str, Any]
    routed: Memory


class Pair(nn.Module):
    """A block for all tokens, then one for the kept ones."""

    dense: DenseBlock
    routed: RoutedBlock

    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache: PairMemory | None = None):
        if cache is None:
            x_BxLxD, _ = self.dense(x_BxLxD, own, shared)
            return self.routed(x_BxLxD, own, shared)
        x_BxLxD, (_, dense) = self.dense(x_BxLxD, own, shared, cache.dense)
        x_BxLxD, (kept, routed) = self.routed(x_BxLxD, own, shared, cache.routed)
        return x_BxLxD, (kept, PairMemory(dense, routed))

    def init_cache(self, batch: int) -> PairMemory:
        """Returns the memory of rows that have read nothing."""
        return PairMemory(self.dense.init_cache(batch), self.routed.init_cache(batch))


def blocks(net: NetCfg, L: int, platform: str, decisions: Decisions | None = None):
    """Returns (the pairs of a dense and a routed block, a last dense block or None)."""
    scale, shapes, pairs = stack.out_scale(net), layer_shapes(net), []
    for i in range(net.depth // 2):
        known = decisions is not None and decisions.cost.layers
        cost = decisions.cost.layers[i] if known else LayerDecision()
        heavy = mixer(net.heavy, net, net.heads, scale, platform)
        routed = RoutedBlock(
            router_of(net.width, net.route, net.causal),
            heavy,
            stack.feed_forward(net, net.ffn_width, scale),
            Norm(parent=None),
            Norm(parent=None),
            stack.capacity_of(net, net.route, L, net.route.dispatch).suited(heavy),
            Reporter(net.route, net.causal, cost),
            net.dropout,
            parent=None,
        )
        pairs.append(Pair(dense_block(net, shapes[2 * i], L, platform), routed, parent=None))
    last = dense_block(net, shapes[-1], L, platform) if net.depth % 2 else None
    return tuple(pairs), last


@register("mod")
class Mod(nn.Module):
    """Language model or encoder of net.depth blocks, the second, fourth, … of them routed.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth // 2, with a threshold; else empty.
    """

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
        pairs, last = blocks(net, L, self.platform, self.decisions)
        own, mode = stack.owns(routing, len(pairs)), Repeat(net.scan, net.remat)
        memory = None if cache is None else cache.layers
        x_BxLxD, report = scan_layers(pairs, mode, x_BxLxD, own, shared, memory)
        rest = {}
        if last is not None:
            last = last.clone(name="last", parent=self)
            first = stack.owns({}, 1)
            if cache is None:
                x_BxLxD, _ = last(x_BxLxD, first, shared)
            else:
                found = last(x_BxLxD, first, shared, cache.rest["last"])
                x_BxLxD, (_, rest["last"]) = found
        out = finish(net, self.vocab, x_BxLxD, table_VxD, batch)
        if cache is not None:
            kept_RxBxn, after = report
            return out, cached.advance(cache, shared.pos, after, kept_RxBxn, rest)
        return out, stack.aux_of(net, L, self.decisions, report, B)

    @staticmethod
    def price_list(net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        pairs, last = blocks(net, L, platform)
        layers = [layer for pair in pairs for layer in (pair.dense, pair.routed)]
        return stack.listed(net, L, vocab, layers if last is None else [*layers, last])

    @staticmethod
    def init_cache(net: NetCfg, L: int, ex_B, platform: str) -> cached.Cache:
        """Returns the cache of rows that have read nothing."""
        pairs, last = blocks(net, L, platform)
        B = len(ex_B)
        made = tuple(pair.init_cache(B) for pair in pairs)
        rest = {} if last is None else {"last": last.init_cache(B)}
        return cached.empty(L, ex_B, len(pairs), made, net.scan, rest)

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks."""
        return tuple(f"layer_{i:02d}" for i in range(1, net.depth, 2))

    @staticmethod
    def init_routing(net: NetCfg):
        """Returns its thresholds before any data."""
        return thresholds.initial([net.route] * (net.depth // 2))

    @staticmethod
    def decision_weights(net: NetCfg) -> dict[str, float]:
        """Returns the weights of the losses that its layers report."""
        return {"z_loss": net.route.z_loss}
