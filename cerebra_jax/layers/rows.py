"""What passes between layers: features, and where they stand."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.kernels import attention as kernels
from cerebra_jax.kernels.attention import Layout, Segment, segment_bounds, segments_for

Ranges = tuple[tuple[int, int], ...]


class Rows(NamedTuple):
    """Features of n rows: all tokens of a sequence, those in the slots of a dispatch, or windows.

    A query sees the keys whose rank is not above its own. Rank `length` is that of padding and of
    empty slots: no real row sees them. `segments` are static ranges of the rows; a query of
    segment s needs keys up to the end of segment s only. `plain`: all rows in order, each of which
    sees those before it. `causal`: ranks are positions; in an encoder every real row has rank 0.
    `tail`: the rows that hold no token, by the mask, stand last.
    `slot`: these rows were gathered from plain tokens, and this is the row of each, n of none.
    """

    x: jax.Array  # (B, n, D)
    pos: jax.Array  # (B or 1, n) int32, for rotary embeddings
    rank: jax.Array  # (B or 1, n) int32
    length: int  # context length L
    segments: Ranges
    mask: jax.Array | None = None  # (B, n) bool: which rows hold a token; None: all of them
    plain: bool = False
    causal: bool = True
    tail: bool = False
    slot: jax.Array | None = None  # (B, L) int32

    @property
    def count(self) -> int:
        """Returns n."""
        return self.x.shape[1]

    @property
    def padding(self) -> kernels.Padding:
        """Returns where rows stand that hold no token."""
        if self.mask is None:
            return "none"
        return "last" if self.tail else "anywhere"

    def with_x(self, x_BxnxD: jax.Array) -> Rows:
        """Returns other features at the same places."""
        return self._replace(x=x_BxnxD)


def token_segments(length: int, causal: bool) -> Ranges:
    """Returns the segments of all tokens: an encoder has one, a causal model up to 8."""
    if not causal:
        return ((0, length),)
    return segment_bounds(length, segments_for(length))


def ranks(length: int, causal: bool, mask_BxL: jax.Array | None = None) -> jax.Array:
    """Returns the ranks of all tokens, (B or 1, L) int32.

    Causal: their positions. Encoder: 0 for all. Padding has rank L: no real token sees it, and it
    sees everything, because a query without a key would be NaN.
    """
    rank_1xL = jnp.arange(length)[None] if causal else jnp.zeros((1, length), jnp.int32)
    return rank_1xL if mask_BxL is None else jnp.where(mask_BxL, rank_1xL, length)


def block_layout(queries: Rows, keys: Rows) -> Layout:
    """Returns which keys each segment of the queries looks at."""
    pairs = zip(queries.segments, keys.segments, strict=True)
    return tuple(Segment(q0, q1, 0, k1) for (q0, q1), (_, k1) in pairs)


def tokens(x_BxLxD: jax.Array, rank: jax.Array, causal: bool, mask_BxL=None) -> Rows:
    """Returns all tokens of a sequence as rows; `rank` is that of `ranks`."""
    L = x_BxLxD.shape[1]
    segments = token_segments(L, causal)
    return Rows(x_BxLxD, jnp.arange(L)[None], rank, L, segments, mask_BxL, causal, causal)


def flip(x_BxL: jax.Array, on: jax.Array | None) -> jax.Array:
    """Returns (B, L, …) from the last token to the first where `on`; its own inverse.

    An encoder's recurrences read every second layer so: two layers then see both sides.
    """
    if on is None:
        return x_BxL
    return jnp.where(on, x_BxL[:, ::-1], x_BxL)


def mask_out(x_BxLxD, mask_BxL):
    """Returns x with zeros where there is padding."""
    if mask_BxL is None:
        return x_BxLxD
    return jnp.where(mask_BxL[..., None], x_BxLxD, jnp.zeros((), x_BxLxD.dtype))
