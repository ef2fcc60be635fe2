"""Routing, the one place: combines a heavy layer on selected tokens with a light one on all.

It trains, masks, moves tokens by one-hot products, and decodes. What is routed are layers: anything
that maps queries and keys (`layers.rows.Rows`) to features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.rows import Ranges, Rows
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.routers import Route


@dataclass(frozen=True)
class Capacity:
    """What the compiled program has room for.

    layout: the slots of the selected tokens, as many as tokens where nothing is gathered. kv: which
    tokens are keys, "all" or the "routed" ones. soft: both paths run for every token. compact: the
    tokens of all segments stand in one run of slots, the empty ones last, so that attention among
    them is plain causal attention; who finds a slot is the same.
    """

    length: int
    layout: dispatch.Layout
    gathers: bool
    lowering: str = "gather"
    kv: str = "all"
    soft: bool = False
    compact: bool = False

    def suited(self, layer: Any) -> Capacity:
        """Returns the same slots as a layer wants them: compact where it then is a fused kernel."""
        able = self.gathers and self.kv == "routed" and self.lowering == "gather"
        fuses = able and hasattr(layer, "fuses") and layer.fuses(self.layout.K)
        return dataclasses.replace(self, compact=fuses)

    @property
    def segments(self) -> Ranges:
        """Returns the ranges of the slots that are filled each on its own."""
        return ((0, self.layout.K),) if self.compact else self.layout.slots

    @property
    def slots(self) -> int:
        """Returns how many tokens of an example run the heavy path."""
        return self.layout.K if self.gathers else self.length

    @property
    def remembered(self) -> int:
        """Returns how many slots a cache of the heavy path has."""
        return self.layout.K if self.kv == "routed" else self.length


class Decided(NamedTuple):
    """A decision as it is carried out."""

    kept_BxL: jax.Array  # bool: takes the heavy path; a selected token may have found no slot
    gate_BxL: jax.Array  # float32, 0 where a token is not kept
    slots: dispatch.Slots | None = None  # where the kept tokens stand; None: nothing is gathered
    run: jax.Array | None = None  # decoding: whether any token is kept; None: not known, or soft


class Memory(NamedTuple):
    """What a routed layer remembers while decoding."""

    heavy: Any
    used_BxS: jax.Array  # tokens of each segment that have wanted a slot


def carry_out(route: Route, capacity: Capacity) -> Decided:
    """Returns the decision with the slots that there are.

    What finds none stays on the light path.
    """
    if not capacity.gathers:
        return Decided(route.wanted, route.gate * route.wanted)
    slots = dispatch.assign(route.wanted, capacity.layout, capacity.lowering)
    if capacity.compact:
        slots = dispatch.compacted(slots)
    return Decided(slots.kept_BxL, route.gate * slots.kept_BxL, slots)


class Routed(nn.Module):
    """Combines heavy(selected rows) and light features by the gate: g · heavy + (1 − g) · light.

    heavy: a layer, heavy(queries, keys) -> features of the queries. Without light features, the
    result is g · heavy: the other tokens get nothing (Mixture-of-Depths).
    """

    heavy: Callable
    capacity: Capacity

    def __call__(self, tokens: Rows, decided: Decided, light_BxLxD=None) -> jax.Array:
        queries, keys = select(tokens, decided, self.capacity)
        heavy = self.heavy(queries, keys)
        gate = decided.gate_BxL.astype(tokens.x.dtype)
        return dispatch.combine(gate, heavy, light_BxLxD, decided.slots)

    def decode(self, tokens: Rows, route: Route, light_BxnxD, memory: Memory):
        """Returns (features of a chunk, the decision carried out, the memory after the chunk).

        With kv=routed, the slots of the dispatch are the slots of the cache.
        """
        room = self.capacity
        slot_Bxn, used_BxS = dispatch.place(route.wanted, tokens.pos, memory.used_BxS, room.layout)
        kept_Bxn = slot_Bxn < room.layout.K
        run = None if room.soft else kept_Bxn.any()
        decided = Decided(kept_Bxn, route.gate * kept_Bxn, None, run)

        # a query that is not kept is thrown away; it sees empty slots too, for without any key it
        # would be NaN
        queries = tokens._replace(rank=jnp.where(kept_Bxn, tokens.pos, room.length))
        everyone = room.kv == "all"
        slots = tokens.pos if everyone else slot_Bxn
        place = cached.Place(slots, room.remembered, run, not everyone)
        heavy, after = self.heavy.decode(queries, memory.heavy, place)

        gate = decided.gate_BxL.astype(tokens.x.dtype)
        y_BxnxD = dispatch.combine(gate, heavy, light_BxnxD)
        return y_BxnxD, decided, Memory(after, used_BxS)

    def init_cache(self, batch: int) -> Memory:
        """Returns the memory of rows that have read nothing."""
        room = self.capacity
        used_BxS = jnp.zeros((batch, len(room.layout.slots)), jnp.int32)
        return Memory(self.heavy.init_cache(batch, room.remembered, room.length), used_BxS)


def select(tokens: Rows, decided: Decided, room: Capacity) -> tuple[Rows, Rows]:
    """Returns the queries and the keys of the heavy layer."""
    if decided.slots is None:
        if room.kv == "all":
            return tokens, tokens
        # a token that is not kept is no key, and as a query it is thrown away
        rank = jnp.where(decided.kept_BxL, tokens.rank, room.length)
        masked = tokens._replace(rank=rank, mask=rank < room.length, plain=False)
        return masked, masked
    slots = decided.slots
    idx_BxK = slots.idx_BxK
    # an empty slot stands at `length`: no real query sees it as a key
    rank = dispatch.read(tokens.rank, slots, room.length) if _reordered(tokens) else idx_BxK
    # a selected token may be padding, where top-k found too few real ones: it is no key either
    x_BxKxD = dispatch.gather(tokens.x, slots)
    mask_BxK = rank < room.length
    whole = tokens.mask is None
    gathered = tokens.plain and whole and room.kv == "all" and not slots.onehot
    queries = Rows(
        x_BxKxD,
        idx_BxK,
        rank,
        room.length,
        room.segments,
        mask_BxK,
        plain=room.compact and tokens.plain and whole,
        causal=tokens.causal,
        tail=whole and len(room.segments) == 1,
        slot=slots.slot_BxL if gathered else None,
    )
    if room.kv == "routed":
        return queries, queries
    return queries, tokens._replace(segments=room.layout.tokens, plain=False)


def _reordered(tokens: Rows) -> bool:
    """Returns whether ranks may be other numbers than positions."""
    return not tokens.plain or tokens.mask is not None


def selected_only(compute: Callable, module: nn.Module, x_BxLxD, decided: Decided):
    """Returns g · compute(module, x) of the kept tokens, zeros elsewhere: (B, L, D) -> same.

    compute works row by row. Without slots every row is computed; while decoding only where some
    row is kept.
    """
    gate = decided.gate_BxL[..., None].astype(x_BxLxD.dtype)
    if decided.slots is not None:
        rows = compute(module, dispatch.gather(x_BxLxD, decided.slots))
        return dispatch.combine(gate, rows, slots=decided.slots)
    rows = cached.when(decided.run, compute, module, x_BxLxD, x_BxLxD.shape[-1])
    return dispatch.combine(gate, rows)


def fullest(wanted_BxL, causal: bool) -> jax.Array:
    """Returns the share of tokens that want a slot, (B,), in each example's fullest segment."""
    L = wanted_BxL.shape[1]
    tokens = dispatch.layout(L, 1.0).tokens if causal else ((0, L),)
    shares = [wanted_BxL[:, a:b].astype(jnp.float32).mean(1) for a, b in tokens]
    return jnp.stack(shares).max(0)
