"""The layers of CHIAR: LayerNorm stands after each part, x = LN(x + part(x)).

A routed block sends each token to the filter, to attention, or to a random-feature mixer.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.dct_filter import Filter
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rfa import Memory as MixerMemory
from cerebra_jax.layers.rfa import RandomFeatureAttention
from cerebra_jax.layers.rows import Rows
from cerebra_jax.models import pricing, stack
from cerebra_jax.models.pricing import Part
from cerebra_jax.models.stack import Own, Shared
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.entropy_router import EntropyRouter
from cerebra_jax.routing.report import NOTHING, Reporter
from cerebra_jax.routing.routed import Capacity, Decided, Memory, Routed, carry_out
from cerebra_jax.routing.routers import Circumstances, Route, Thresholds


class FeedForwardLN(nn.Module):
    """Computes LN(x + FFN(x))."""

    ffn: FeedForward
    norm: Norm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxLxD, ex_B):
        return self.norm(x_BxLxD + Drop(self.dropout)(ex_B, self.ffn(x_BxLxD)))


class AttentionLN(nn.Module):
    """Computes LN(x + Attention(x)) of gathered or all tokens.

    A layer, but for the examples' keys.
    """

    attention: Attention
    norm: Norm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, queries: Rows, keys: Rows, ex_B, memory=None, place=None):
        if place is None:
            y = self.attention(queries, keys)
        else:
            y, memory = self.attention.decode(queries, memory, place)
        x = self.norm(queries.x + Drop(self.dropout)(ex_B, y))
        return x if place is None else (x, memory)


@dataclasses.dataclass(frozen=True)
class Heavy:
    """The heavy layer of a pass: its dropout is keyed by these examples."""

    layer: AttentionLN
    ex_B: jax.Array | None

    def __call__(self, queries: Rows, keys: Rows):
        return self.layer(queries, keys, self.ex_B)

    def decode(self, rows: Rows, memory, place: cached.Place):
        """Returns the result for a chunk, and the memory after it."""
        return self.layer(rows, rows, self.ex_B, memory, place)

    def init_cache(self, batch: int, slots: int, length: int):
        """Returns an empty memory."""
        return self.layer.attention.init_cache(batch, slots, length)


class MixerState(NamedTuple):
    """What the third operator remembers while decoding."""

    sums: MixerMemory
    used_BxS: jax.Array


class Between(nn.Module):
    """The light layer of three operators: an RBF mixer for its tokens, the filter for the rest.

    kv=routed: only those tokens are its keys and they alone run, gathered. kv=all: every token is a
    key, so all run. Returns the features, who took the mixer, and the state after these tokens.
    """

    mixer: RandomFeatureAttention
    capacity: Capacity

    def __call__(self, rows: Rows, light_BxLxD, route: Route, ex_B, state=None):
        if state is not None:
            return self._decode(rows, light_BxLxD, route, (ex_B, state))
        decided = carry_out(route, self.capacity)
        if decided.slots is not None:
            idx_BxK = decided.slots.idx_BxK
            slots = rows._replace(x=dispatch.gather(rows.x, decided.slots), pos=idx_BxK)
            y = self.mixer(slots, idx_BxK < rows.length, ex_B)
        else:
            everyone = jnp.ones(decided.kept_BxL.shape, bool)
            y = self.mixer(rows, self._keys(decided.kept_BxL, everyone), ex_B)
        return self._joined(rows, decided, y, light_BxLxD), decided.kept_BxL, None

    def _decode(self, rows: Rows, light_BxLxD, route: Route, now):
        ex_B, state = now
        layout = self.capacity.layout
        slot_Bxn, used_BxS = dispatch.place(route.wanted, rows.pos, state.used_BxS, layout)
        kept = slot_Bxn < layout.K
        keys = self._keys(kept, rows.pos < rows.length)
        y, sums = self.mixer.decode(rows, keys, ex_B, state.sums)
        decided = Decided(kept, route.gate * kept)
        return self._joined(rows, decided, y, light_BxLxD), kept, MixerState(sums, used_BxS)

    def _keys(self, kept, everyone):
        return kept if self.capacity.kv == "routed" else everyone

    def _joined(self, rows: Rows, decided: Decided, y, light_BxLxD):
        gate = decided.gate_BxL.astype(rows.x.dtype)
        return dispatch.combine(gate, y, light_BxLxD, decided.slots)

    def init_cache(self, batch: int) -> MixerState:
        """Returns the state of rows that have read nothing."""
        used_BxS = jnp.zeros((batch, len(self.capacity.layout.slots)), jnp.int32)
        return MixerState(self.mixer.init_cache(batch, 0, 0), used_BxS)


class RoutedBlock(nn.Module):
    """One layer that sends each token to one of its operators, x -> (x, report).

    Without a router every token goes one way: to the filter, or without one to attention.
    """

    router: EntropyRouter | None
    filter: Filter | None
    heavy: AttentionLN | None
    rbf: Between | None
    mlp: FeedForwardLN
    capacity: Capacity
    reporter: Reporter

    @nn.compact
    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache: dict | None = None):
        decoding, ex_B = cache is not None, shared.ex_B
        rows = shared.rows(x_BxLxD, self.capacity.length, True, decoding)
        if self.router is None:
            return self._everyone(rows, ex_B, cache)
        after = {}

        # who takes which operator
        light_BxLxD, spectrum = self.filter(x_BxLxD)
        choice = self.router(rows, spectrum, shared.circumstances(own, decoding))
        rbf_kept = None
        if self.rbf is not None:
            state = cache["rbf"] if decoding else None
            found = self.rbf(rows, light_BxLxD, choice.rbf, ex_B, state)
            light_BxLxD, rbf_kept, after["rbf"] = found

        # attention of the selected tokens
        routed = Routed(Heavy(self.heavy, ex_B), self.capacity)
        if decoding:
            memory = cache["heavy"]
            found = routed.decode(rows, choice.attention, light_BxLxD, memory)
            x_BxLxD, decided, after["heavy"] = found
            if self.rbf is None:
                after.pop("rbf", None)
            return self.mlp(x_BxLxD, ex_B), (decided.kept_BxL, after)
        decided = carry_out(choice.attention, self.capacity)
        x_BxLxD = routed(rows, decided, light_BxLxD)
        report = self.reporter.report_choice(choice, decided, rbf_kept, shared.rate)
        return self.mlp(x_BxLxD, ex_B), report

    def _everyone(self, rows: Rows, ex_B, cache: dict | None):
        """Returns the layer of a control: all tokens take the filter, or all attend."""
        after = {}
        if self.filter is not None:
            x_BxLxD, _ = self.filter(rows.x)
        elif cache is None:
            x_BxLxD = self.heavy(rows, rows, ex_B)
        else:
            place = cached.Place(rows.pos, rows.length)
            x_BxLxD, after["heavy"] = self.heavy(rows, rows, ex_B, cache["heavy"], place)
        x_BxLxD = self.mlp(x_BxLxD, ex_B)
        return x_BxLxD, NOTHING if cache is None else (None, after)

    def init_cache(self, batch: int) -> dict[str, Any]:
        """Returns the memory of rows that have read nothing."""
        made: dict[str, Any] = {}
        L = self.capacity.length
        if self.router is not None:
            heavy = Heavy(self.heavy, None)
            room = self.capacity
            used_BxS = jnp.zeros((batch, len(room.layout.slots)), jnp.int32)
            made["heavy"] = Memory(heavy.init_cache(batch, room.remembered, L), used_BxS)
        elif self.heavy is not None:
            made["heavy"] = Heavy(self.heavy, None).init_cache(batch, L, L)
        if self.rbf is not None:
            made["rbf"] = self.rbf.init_cache(batch)
        return made

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        L = self.capacity.length
        room = self.capacity if self.router is not None else None
        found = []
        if self.filter is not None:
            found.append(filter_part(net, self.filter, L))
        if self.router is not None:
            router = stack.at_any_rate(self.router)
            found.append(Part("router", _routing(router, net.width, net.dtype, L)))
        if self.rbf is not None:
            found += _mixer_parts(net, self.rbf, L)
        if self.heavy is not None:
            found.append(stack.mixing_part(net, "attention", self.heavy.attention, L, room))
            found.append(stack.rows_part(net, "norm", self.heavy.norm, L, room))
        if room is not None and room.gathers:
            found.append(stack.dispatch_part(net, L, room, light=True, assigns=True))
        return (*found, *mlp_parts(net, self.mlp, L))

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its heads, coefficients of the filter and hidden features."""
        found = []
        if self.heavy is not None:
            found += self.heavy.attention.prunable(f"{place}heavy/attention", layer)
        if self.filter is not None:
            found += self.filter.prunable(f"{place}filter", layer)
        return found + self.mlp.ffn.prunable(f"{place}mlp/ffn", layer)


# prices


def filter_part(net: NetCfg, layer: Filter, L: int) -> Part:
    """Returns a filter of all tokens as a part."""
    return stack.rows_part(net, "filter", layer, L, None)


def mlp_parts(net: NetCfg, layer: FeedForwardLN, L: int) -> tuple[Part, Part]:
    """Returns the FFN and its norm as parts."""
    return stack.rows_part(net, "ffn", layer.ffn, L, None), stack.norm_part(net, L)


def _mixer_parts(net: NetCfg, between: Between, L: int) -> list[Part]:
    """Returns the third operator with prices: its program works on chunks of tokens."""
    room, mixer = between.capacity, between.mixer
    price = _mixing(mixer, net.width, net.dtype, room.slots)
    decided = "mixed" if room.gathers else ""
    found = [Part("rbf", price, L, run_rows=room.slots, decided=decided)]
    if room.gathers:
        found.append(stack.dispatch_part(net, L, room, light=True, assigns=True))
    return found


@functools.cache
def _mixing(mixer: nn.Module, width: int, dtype: str, rows: int) -> pricing.Price:
    """Returns the price of the mixer by its rows, at as many rows as it runs: not bilinear."""

    def make(x, index):
        slots = Rows(x, index, index, pricing.FAR, ((0, rows),))
        return mixer.init(jax.random.key(0), slots, index < 1, index[:, 0])

    def run(params, x, index):
        slots = Rows(x, index, index, pricing.FAR, ((0, rows),))
        return mixer.apply({"params": params}, slots, index < 1, index[:, 0])

    x = jax.ShapeDtypeStruct((1, rows, width), jnp.dtype(dtype))
    index = jax.ShapeDtypeStruct((1, rows), jnp.dtype("int32"))
    ops = pricing.whole(make, run, (x, index)).fixed
    return pricing.per_row(ops, rows)


@functools.cache
def _routing(router: EntropyRouter, width: int, dtype: str, L: int) -> pricing.Price:
    """Returns the price of the decisions: the entropy of what the filter has computed, or a
    score.
    """

    def given(x, index, scalar):
        rows = Rows(x, index, index, L, ((0, L),))
        now = Circumstances(Thresholds(scalar, scalar, scalar), 0, scalar, index[:, 0])
        return rows, dct.Spectrum(x.astype(jnp.float32)), now

    def make(*args):
        return router.init(jax.random.key(0), *given(*args))

    def run(params, *args):
        return router.apply({"params": params}, *given(*args))

    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))
    index = jax.ShapeDtypeStruct((1, L), jnp.dtype("int32"))
    scalar = jax.ShapeDtypeStruct((), jnp.dtype("float32"))
    return pricing.whole(make, run, (x, index, scalar))
