"""Mixture-of-Depths' blocks: one for all tokens, and one that kept tokens take."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.rows import Rows
from cerebra_jax.models import light, stack
from cerebra_jax.models.dense_block import DenseBlock
from cerebra_jax.models.pricing import Part
from cerebra_jax.models.stack import Own, Placed, Shared
from cerebra_jax.routing.report import Reporter
from cerebra_jax.routing.routed import Capacity, Memory, Routed, carry_out
from cerebra_jax.routing.routers import router_of, scored


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
        if scored(net.route):
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


def routed_block(net: NetCfg, made: Placed) -> RoutedBlock:
    """Returns one block that kept tokens take."""
    scale = stack.out_scale(net)
    heavy = mixer(net.heavy, net, net.heads, scale, made.platform)
    capacity = stack.capacity_of(net, net.route, made.length, net.route.dispatch)
    return RoutedBlock(
        router_of(net.width, net.route, net.causal),
        heavy,
        stack.feed_forward(net, net.ffn_width, scale),
        Norm(parent=None),
        Norm(parent=None),
        capacity.suited(heavy),
        Reporter(net.route, net.causal, made.cost),
        net.dropout,
        parent=None,
    )
