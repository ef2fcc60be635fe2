"""Dispatch with static shapes: kept tokens move into slots, only slots run, results move back.

A sequence is cut into segments, each with its own slots. A slot of segment s needs keys up to the
end of s only, so causality costs half the square here too. Tokens fill the slots of their segment
in
order. What does not fit is overflow and stays on the light path: earliest first, so that a token's
fate never depends on a later one.

There are two lowerings of one thing: gathers, which cost no FLOPs, or products with one-hot
matrices, for exporters and devices without batched gather and scatter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.kernels.attention import segment_bounds, segments_for

FEWEST = 32  # slots of a segment


class Layout(NamedTuple):
    """The static shape of a dispatch: token ranges and slot ranges, one pair a segment."""

    tokens: tuple[tuple[int, int], ...]
    slots: tuple[tuple[int, int], ...]

    @property
    def K(self) -> int:
        """Returns the number of slots of an example."""
        return self.slots[-1][1]


def layout(L: int, share: float) -> Layout:
    """Returns slots for `share` of L tokens, rounded up in each segment.

    Segments have at least 512 tokens and FEWEST slots: the share of tokens that overflow grows as
    segments shrink, and with kv=all each of them reads all keys before its end, which for few
    queries takes longer than the scores it saves.
    """
    tokens = segment_bounds(L, max(1, min(segments_for(L), L // 512, int(share * L) // FEWEST)))
    slots, c = [], 0
    for a, b in tokens:
        size = min(b - a, math.ceil(share * (b - a) - 1e-9))
        slots.append((c, c + size))
        c += size
    return Layout(tokens, tuple(slots))


class Slots(NamedTuple):
    """Which token stands in which slot.

    idx_BxK: the token in each slot, L where empty. slot_BxL: the slot of each token, K where it has
    none. onehot: with that lowering, whether a slot holds a token, (B, slots, tokens) bool for each
    segment.
    """

    idx_BxK: jax.Array
    slot_BxL: jax.Array
    onehot: tuple[jax.Array, ...] = ()

    @property
    def kept_BxL(self) -> jax.Array:
        return self.slot_BxL < self.idx_BxK.shape[1]


def assign(keep_BxL: jax.Array, lay: Layout, lowering: str = "gather") -> Slots:
    """Returns slots for the tokens where keep is true, in order, segment by segment.

    The rest of them overflow.
    """
    B, L = keep_BxL.shape
    parts = []
    for (a, b), (c0, c1) in zip(lay.tokens, lay.slots, strict=True):
        keep = keep_BxL[:, a:b]
        rank = jnp.cumsum(keep.astype(jnp.int32), axis=1) - 1
        parts.append(jnp.where(keep & (rank < c1 - c0), c0 + rank, lay.K))
    slot_BxL = jnp.concatenate(parts, axis=1).astype(jnp.int32)
    if lowering == "onehot":
        onehot = tuple(
            slot_BxL[:, None, a:b] == jnp.arange(c0, c1)[None, :, None]
            for (a, b), (c0, c1) in zip(lay.tokens, lay.slots, strict=True)
        )
        slots = Slots(jnp.zeros((B, lay.K), jnp.int32), slot_BxL, onehot)
        return slots._replace(idx_BxK=read(jnp.arange(L, dtype=jnp.int32)[None], slots, L))
    return _filled(slot_BxL, lay.K)


def compacted(slots: Slots) -> Slots:
    """Returns the same tokens in the first slots, in order. Not for one-hot slots."""
    K = slots.idx_BxK.shape[1]
    kept_BxL = slots.kept_BxL
    rank_BxL = jnp.cumsum(kept_BxL.astype(jnp.int32), axis=1) - 1
    return _filled(jnp.where(kept_BxL, rank_BxL, K).astype(jnp.int32), K)


def _filled(slot_BxL: jax.Array, K: int) -> Slots:
    """Returns K slots with the tokens that stand in them.

    An integer scatter, once; every move of features is then a gather, forward and backward.
    """
    B, L = slot_BxL.shape
    token_BxL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L))
    empty_BxK = jnp.full((B, K), L, jnp.int32)
    idx_BxK = empty_BxK.at[jnp.arange(B)[:, None], slot_BxL].set(token_BxL, mode="drop")
    return Slots(idx_BxK, slot_BxL)


def place(keep_Bxn, pos_Bxn, used_BxS, lay: Layout) -> tuple[jax.Array, jax.Array]:
    """Returns `assign` for the next n tokens of each row, at their positions.

    Slots (B, n), K for none, and how many tokens of each segment have wanted one so far. A position
    beyond the last segment gets none.
    """
    ends_S = jnp.asarray([b for _, b in lay.tokens])
    first_S, size_S = (
        jnp.asarray(x) for x in zip(*((c0, c1 - c0) for c0, c1 in lay.slots), strict=True)
    )
    starts_S = jnp.asarray([a for a, _ in lay.tokens])
    pos_BxnxS = pos_Bxn[..., None]
    mine_BxnxS = (
        (starts_S[None, None] <= pos_BxnxS) & (pos_BxnxS < ends_S[None, None]) & keep_Bxn[..., None]
    )
    rank_BxnxS = used_BxS[:, None] + jnp.cumsum(mine_BxnxS.astype(jnp.int32), axis=1) - 1
    fits_BxnxS = mine_BxnxS & (rank_BxnxS < size_S[None, None])
    slot_Bxn = jnp.where(fits_BxnxS, first_S[None, None] + rank_BxnxS - lay.K, 0).sum(-1) + lay.K
    return slot_Bxn.astype(jnp.int32), used_BxS + mine_BxnxS.sum(1, dtype=jnp.int32)


def _take(x_BxNxD, at_BxM):
    """Returns rows of x at the given places; zeros where the place is N (none)."""
    N = x_BxNxD.shape[1]
    rows = jnp.take_along_axis(x_BxNxD, jnp.minimum(at_BxM, N - 1)[..., None], axis=1)
    return jnp.where((at_BxM < N)[..., None], rows, jnp.zeros((), rows.dtype))


def gather(x_BxLxD, slots: Slots) -> jax.Array:
    """Returns the rows of the kept tokens, (B, L, D) -> (B, K, D); empty slots are zeros.

    Its gradient is `scatter`.
    """
    return _products("bkl,bld->bkd", x_BxLxD, slots, 2) if slots.onehot else _gather(x_BxLxD, slots)


def scatter(y_BxKxD, slots: Slots) -> jax.Array:
    """Returns rows back at their tokens, (B, K, D) -> (B, L, D), zeros elsewhere.

    Its gradient is `gather`.
    """
    return (
        _products("bkl,bkd->bld", y_BxKxD, slots, 1) if slots.onehot else _scatter(y_BxKxD, slots)
    )


def read(n_BxL, slots: Slots, empty: int) -> jax.Array:
    """Returns whole numbers of the tokens (B or 1, L) as those of the slots (B, K).

    `empty` stands where there is no token.
    """
    if not slots.onehot:
        B, K = slots.idx_BxK.shape
        padded = jnp.pad(
            jnp.broadcast_to(n_BxL, (B, n_BxL.shape[1])), ((0, 0), (0, 1)), constant_values=empty
        )
        return jnp.take_along_axis(padded, slots.idx_BxK, axis=1)
    parts, a = [], 0
    for held_BxKxL in slots.onehot:
        n_Bx1xL = n_BxL[:, None, a : a + held_BxKxL.shape[2]]
        parts.append(jnp.where(held_BxKxL.any(2), jnp.where(held_BxKxL, n_Bx1xL, 0).sum(2), empty))
        a += held_BxKxL.shape[2]
    return jnp.concatenate(parts, axis=1)


def _products(how: str, x_BxNxD, slots: Slots, axis: int):
    """Returns each segment's share of x times its one-hot matrix.

    In full precision: rows must come through as they are.
    """
    parts, a = [], 0
    for held_BxKxL in slots.onehot:
        x = x_BxNxD[:, a : a + held_BxKxL.shape[axis]]
        parts.append(
            jnp.einsum(how, held_BxKxL.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST)
        )
        a += held_BxKxL.shape[axis]
    return jnp.concatenate(parts, axis=1)


def combine(g_BxL, heavy_BxLxD, light_BxLxD=None, slots: Slots | None = None):
    """Returns g · heavy + (1 − g) · light, or g · heavy.

    Each token has its own g, (B, L) or (B, L, 1).

    With slots, heavy is (B, K, D), and g is 0 (gate · kept) where a token has none. As matrices: of
    (1, 8192, 256) the gradient of g is a sum over D that XLA's CPU takes 16 times longer for with
    three axes.
    """
    if slots is not None and not slots.onehot:
        return merge(g_BxL.reshape(*slots.slot_BxL.shape, 1), heavy_BxLxD, light_BxLxD, slots)
    if slots is not None:
        heavy_BxLxD = scatter(heavy_BxLxD, slots)
    g = g_BxL.reshape(-1, 1)
    heavy = heavy_BxLxD.reshape(-1, heavy_BxLxD.shape[-1])
    y = g * heavy
    if light_BxLxD is not None:
        y = y + (1 - g) * light_BxLxD.reshape(heavy.shape)
    return y.reshape(heavy_BxLxD.shape)


@jax.custom_vjp
def merge(g_BxLx1, y_BxKxD, light_BxLxD, slots: Slots) -> jax.Array:
    """Returns g · y at the tokens of the slots, plus (1 − g) · light unless that is None: (B, L,
    D).

    It is `scatter` and a mix without a pass over rows that hold nothing. Where a token has no slot
    g must be 0, and has no gradient. Not for one-hot slots.
    """
    return _merge_fwd(g_BxLx1, y_BxKxD, light_BxLxD, slots)[0]


def _merge_fwd(g_BxLx1, y_BxKxD, light_BxLxD, slots):
    g_BxKx1 = _take(g_BxLx1, slots.idx_BxK)
    out_BxLxD, light_BxKxD = _take(g_BxKx1 * y_BxKxD, slots.slot_BxL), None
    if light_BxLxD is not None:
        light_BxKxD = _take(light_BxLxD, slots.idx_BxK)
        out_BxLxD = out_BxLxD + (1 - g_BxLx1) * light_BxLxD
    return out_BxLxD, (g_BxLx1, g_BxKx1, y_BxKxD, light_BxKxD, slots)


def _merge_bwd(res, d_BxLxD):
    g_BxLx1, g_BxKx1, y_BxKxD, light_BxKxD, slots = res
    d_BxKxD = _take(d_BxLxD, slots.idx_BxK)
    weight_BxKxD = d_BxKxD * (y_BxKxD if light_BxKxD is None else y_BxKxD - light_BxKxD)
    dg_BxKx1 = weight_BxKxD.reshape(-1, d_BxKxD.shape[-1]).sum(-1).reshape(g_BxKx1.shape)
    dlight_BxLxD = None if light_BxKxD is None else (1 - g_BxLx1) * d_BxLxD
    return _take(dg_BxKx1, slots.slot_BxL), g_BxKx1 * d_BxKxD, dlight_BxLxD, None


merge.defvjp(_merge_fwd, _merge_bwd)


@jax.custom_vjp
def _gather(x_BxLxD, slots: Slots):
    return _take(x_BxLxD, slots.idx_BxK)


@jax.custom_vjp
def _scatter(y_BxKxD, slots: Slots):
    return _take(y_BxKxD, slots.slot_BxL)


_gather.defvjp(
    lambda x, slots: (_take(x, slots.idx_BxK), slots),
    lambda slots, g: (_take(g, slots.slot_BxL), None),
)
_scatter.defvjp(
    lambda y, slots: (_take(y, slots.slot_BxL), slots),
    lambda slots, g: (_take(g, slots.idx_BxK), None),
)
