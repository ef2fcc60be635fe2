"""Attention over static blocks: what causality or a window masks away is, block by block, left out.

A layout is a tuple of segments (q0, q1, k0, k1): queries [q0, q1) look at keys [k0, k1), and inside
of these the mask is `rank of the key <= rank of the query`, or a window of ranks (`Reach`). Dense
causal attention, a sliding window and attention of a gathered subset of queries are the same
function with another layout.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.kernels.remat import keep

Reach = tuple[int | None, int]
"""(back, ahead): a query at p sees keys at p − back … p + ahead; back None: all before it."""

PAST: Reach = (None, 0)

Padding = Literal["none", "last", "anywhere"]
"""Where rows may stand that hold nothing."""

Null = tuple[jax.Array, jax.Array]
"""A key and its value, (H, C) each, that every query sees."""

CHUNK = 128
"""Queries whose scores exist at once in the blockwise kernel; 256 takes 3 to 7 % less CPU time."""

LOWEST = -1e30
"""Masks where there is a null key: of a query that sees no other, these weigh 0 in the end."""

KEPT = 1 << 20
"""Scores per example and head that are kept for the backward pass; of more, the weights are formed
again, chunk by chunk. Measured on a CPU, and taken over for other platforms."""


class Segment(NamedTuple):
    """Says that queries [q0, q1) look at keys [k0, k1)."""

    q0: int
    q1: int
    k0: int
    k1: int

    @property
    def queries(self) -> int:
        return self.q1 - self.q0

    @property
    def keys(self) -> int:
        return self.k1 - self.k0


Layout = tuple[Segment, ...]
"""Segments in the order of their queries, which they tile; plain tuples of four numbers will do."""


class Piece(NamedTuple):
    """Says of a segment how many of its queries have scores at the same time."""

    segment: Segment
    chunk: int


class Queries(NamedTuple):
    """Holds queries and where they stand."""

    x_BxHxQxC: jax.Array
    rank_BxQ: jax.Array  # int32, (B or 1, Q)
    row_BxK: jax.Array | None = None  # form "gathered": the query of each key, Q where it has none


class Keys(NamedTuple):
    """Holds keys, their values, and where they stand."""

    k_BxHxKxC: jax.Array
    v_BxHxKxC: jax.Array
    rank_BxK: jax.Array  # int32, (B or 1, K)


class Blocks(NamedTuple):
    """Says which scores are computed, and how; static."""

    layout: Layout
    kernel: str  # full or blockwise; cudnn or splash, which are fused
    reach: Reach = PAST
    form: str = "causal"  # of a fused kernel, one of those in `kernels.fused_attention`
    padding: Padding = "none"  # form "all": where keys may be none; their rank is not 0


# which blocks, and by which kernel


def segment_bounds(L: int, count: int) -> tuple[tuple[int, int], ...]:
    """Returns `count` contiguous, nearly equal ranges that tile [0, L)."""
    cuts = [round(i * L / count) for i in range(count + 1)]
    return tuple(zip(cuts[:-1], cuts[1:], strict=True))


def segments_for(L: int) -> int:
    """Returns into how many static key prefixes a sequence of L tokens is cut.

    At most 8, none shorter than 64 tokens.
    """
    return max(1, min(8, L // 64))


def window_layout(L: int, reach: Reach) -> Layout:
    """Returns the layout of attention in a window: segments see the keys in their reach.

    A segment is as long as the window but has at least 64 tokens, and there are at most 32: each is
    a piece of program to compile.
    """
    back, ahead = reach
    assert back is not None, "a window has an end on either side"
    bounds = segment_bounds(L, max(1, min(32, L // max(64, back + 1))))
    return tuple(Segment(a, b, max(0, a - back), min(L, b + ahead)) for a, b in bounds)


def score_kernel(layout: Layout, platform: str, heads: float = 1.0) -> str:
    """Returns the kernel for masks of any kind on a platform, cpu, gpu or tpu: full or blockwise.

    Full keeps whole blocks of scores for the backward pass, where they are few. Blockwise forms the
    weights of a chunk of queries again in it, for a sixth more FLOPs. The choice is the same on
    every platform so far. heads: how many there are, as a fraction of those that KEPT is per.
    """
    scores = sum((q1 - q0) * (k1 - k0) for q0, q1, k0, k1 in layout)
    return "full" if heads * scores <= KEPT else "blockwise"


def pieces(layout: Layout, kernel: str) -> tuple[Piece, ...]:
    """Returns the segments, each with how many of its queries have scores at once.

    All have, but in the blockwise kernel only a chunk. A segment that is not a number of whole
    chunks is cut in two.
    """
    segments = [Segment(*segment) for segment in layout]
    if kernel != "blockwise":
        return tuple(Piece(segment, segment.queries) for segment in segments)

    # few keys (a compressed memory): more queries a chunk, for scores of the same size
    all_queries = segments[-1].q1
    most_keys = max(segment.keys for segment in segments)
    chunk = CHUNK * next(m for m in (4, 2, 1) if m == 1 or m * most_keys <= all_queries)

    found = []
    for q0, q1, k0, k1 in segments:
        cut = q1 - (q1 - q0) % chunk
        for start, end in ((q0, cut), (cut, q1)):
            if start < end:
                found.append(Piece(Segment(start, end, k0, k1), min(end - start, chunk)))
    return tuple(found)


# rotary positions


@functools.cache
def _angles(half: int, base: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin of 0, step, …, 1023·step positions at each of `half` frequencies.

    They are computed in float64.
    """
    angle = step * np.arange(1024)[:, None] * base ** (-np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _row_of(table_NxC: np.ndarray, index_BxL: jax.Array) -> jax.Array:
    """Returns rows of a table, (B, 1, L, C), for an index of 0 … N − 1.

    Indexing with brackets also asks whether a row is counted from the end, in as many operations.
    """
    return jnp.take(table_NxC, index_BxL, axis=0, mode="clip")[:, None]


def rope(x_BxHxLxC: jax.Array, pos_BxL: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Returns x with rotary position embedding, in the rotate-half form; same shape and dtype.

    Positions are int32 below 2²⁰, and may be (1, L). cos and sin come from two small tables, by the
    sum of angles: a float32 product position · frequency is wrong in the 4th digit at position
    4096, and XLA's CPU backend would compute a cosine for every element of x. Su et al. 2021,
    arXiv:2104.09864.
    """
    half = x_BxHxLxC.shape[-1] // 2
    low_BxL, high_BxL = pos_BxL & 1023, pos_BxL >> 10
    cos1, sin1 = (_row_of(table, low_BxL) for table in _angles(half, base, 1))
    cos2, sin2 = (_row_of(table, high_BxL) for table in _angles(half, base, 1024))
    cos = cos1 * cos2 - sin1 * sin2
    sin = sin1 * cos2 + cos1 * sin2
    a, b = jnp.split(x_BxHxLxC.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x_BxHxLxC.dtype)


# attention


def attend_blocks(
    queries: Queries, keys: Keys, blocks: Blocks, null: Null | None = None
) -> jax.Array:
    """Returns softmax(q·kᵀ/√C + mask)·v with the softmax in float32: (B, H, Q, C).

    The mask is `rank of the key <= rank of the query`, or `blocks.reach`. Each query must see at
    least one key of its segment (its own, in self attention) or the `null` key: without one the
    mask is −inf, no finite sentinel. To a fused kernel the ranks say which keys are real, and
    no more (`kernels.fused_attention`). Elsewhere the null key is not one of the matmul's: with
    2,049 columns XLA's CPU takes a tenth longer for all of it than with 2,048.
    """
    chex.assert_rank((queries.x_BxHxQxC, keys.k_BxHxKxC, keys.v_BxHxKxC), 4)
    chex.assert_rank((queries.rank_BxQ, keys.rank_BxK), 2)
    chex.assert_equal_shape((keys.k_BxHxKxC, keys.v_BxHxKxC))
    if blocks.kernel in ("cudnn", "splash"):
        from cerebra_jax.kernels import fused_attention  # which is made of this file

        return fused_attention.attend(blocks, queries, keys, null)
    return masked(blocks, queries, keys, null)


def masked(blocks: Blocks, queries: Queries, keys: Keys, null: Null | None = None) -> jax.Array:
    """Returns the same by masks, on any platform."""
    return _segments(blocks, queries, keys, null)


class _Residuals(NamedTuple):
    """Holds what the backward pass needs; numbers of a query are (B, H, Q, 1) float32."""

    queries: Queries  # divided by √C
    keys: Keys
    null: Null | None
    weights: list[jax.Array]  # exp(score − top) of each piece, in the full kernel; else none
    top: jax.Array  # the largest score of a query, the null key's apart
    share: jax.Array  # exp(score − top) times this is the softmax
    null_share: jax.Array | None  # the softmax at the null key
    o_BxHxQxC: jax.Array


class _Sums(NamedTuple):
    """Holds sums of each query over the keys of its piece, relative to exp(top)."""

    top: jax.Array  # (B, H, q, 1): the largest score
    total: jax.Array  # (B, H, q, 1)
    o: jax.Array  # (B, H, q, C)


class _Rows(NamedTuple):
    """Holds what the backward pass needs of each query, (B, H, chunk, ·)."""

    q: jax.Array
    do: jax.Array  # its gradient of the result, times its share
    less: jax.Array  # share · Σ do·o
    top: jax.Array
    rank: jax.Array  # (B or 1, 1, chunk, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _segments(blocks: Blocks, queries: Queries, keys: Keys, null: Null | None):
    """Returns the results of all segments.

    What is not of size Q x K is done for all of them at once: on a CPU a layer of 2,048 tokens is a
    few hundred kernels, whose starts are felt.
    """
    return _segments_fwd(blocks, queries, keys, null)[0]


def _segments_fwd(blocks: Blocks, queries: Queries, keys: Keys, null: Null | None):
    """Returns Σ eᵢ vᵢ / Σ eᵢ with eᵢ = exp(sᵢ − max s), and the residuals.

    What is divided has the size of the queries, not that of the scores. The null key joins after
    the sums; a query may see no other.
    """
    q = queries.x_BxHxQxC
    queries = queries._replace(x_BxHxQxC=q * q.shape[-1] ** -0.5)
    parts = pieces(blocks.layout, blocks.kernel)

    # sums over the keys of each piece
    found: list[_Sums] = []
    weights: list[jax.Array] = []
    for piece, q_piece in zip(parts, _cut(parts, queries.x_BxHxQxC), strict=True):
        look = functools.partial(_look, _keys_of(keys, piece), blocks, _hidden(null))
        rows = (q_piece, _ranks_of(queries, piece))
        _, (sums, kept) = _over_chunks(look, piece.chunk, None, rows)
        found.append(sums)
        weights += kept

    # the softmax, of all queries at once
    top, total, o = (_joined(column) for column in zip(*found, strict=True))
    o = o.astype(jnp.float32)
    null_share = None
    if null is None:
        share = 1 / total
        o = o * share
    else:
        null_k, null_v = _wide(null)
        null_score = (queries.x_BxHxQxC.astype(jnp.float32) * null_k).sum(-1, keepdims=True)
        most = jnp.maximum(top, null_score)
        share, null_share = jnp.exp(top - most), jnp.exp(null_score - most)
        total = share * total + null_share
        share, null_share = share / total, null_share / total
        o = o * share + null_share * null_v
    o = o.astype(keys.v_BxHxKxC.dtype)
    top, share, null_share, o = keep((top, share, null_share, o))
    return o, _Residuals(queries, keys, null, weights, top, share, null_share, o)


def _look(keys: Keys, blocks: Blocks, hidden: float, carry: None, rows):
    """Returns the sums of a chunk of queries over the keys of its piece, and [weights] to keep."""
    q, rank = rows
    scores = _scores(q, rank, keys, blocks.reach, hidden)
    top = scores.max(-1, keepdims=True, initial=-jnp.inf)
    e = jnp.exp(scores - top)
    low = e.astype(keys.v_BxHxKxC.dtype)
    o = jnp.einsum("bhqk,bhkc->bhqc", low, keys.v_BxHxKxC)
    sums = _Sums(top, e.sum(-1, keepdims=True), o)
    return carry, (sums, [low] if blocks.kernel == "full" else [])


def _segments_bwd(blocks: Blocks, residuals: _Residuals, do_BxHxQxC):
    """Returns the derivative by hand.

    Of what has the size Q x K it needs e alone, which was kept or is formed again from the scores
    and their maxima (Dao et al. 2022, arXiv:2205.14135, B.2).
    """
    queries, keys, null, weights, top, share, null_share, o = residuals
    q = queries.x_BxHxQxC
    parts = pieces(blocks.layout, blocks.kernel)

    # what each query brings along, cut as the pieces are
    do = do_BxHxQxC.astype(jnp.float32)
    delta = (do * o.astype(jnp.float32)).sum(-1, keepdims=True)
    shared = (do * share).astype(keys.v_BxHxKxC.dtype)
    columns = [_cut(parts, x) for x in (q, shared, share * delta, top)]

    # gradients of each piece, those of keys and values summed over its chunks
    found = []
    for i, (piece, *own) in enumerate(zip(parts, *columns, strict=True)):
        kept = weights[i] if weights else None
        back = functools.partial(_look_back, _keys_of(keys, piece), kept, blocks, _hidden(null))
        sums = None
        if piece.chunk != piece.segment.queries:
            B, H, _, C = keys.k_BxHxKxC.shape
            sums = (jnp.zeros((B, H, C, piece.segment.keys)),) * 2
        rows = _Rows(*own, _ranks_of(queries, piece))
        (dk, dv), dq = _over_chunks(back, piece.chunk, sums, rows)
        found.append((dq, dk, dv))

    # those of all pieces together
    dq, dk, dv = zip(*found, strict=True)
    dq = _joined(dq)
    ranges = tuple((piece.segment.k0, piece.segment.k1) for piece in parts)
    dk = _ranges_sum(ranges, keys.k_BxHxKxC, dk)
    dv = _ranges_sum(ranges, keys.v_BxHxKxC, dv)
    dnull = None
    if null is not None:
        null_k, null_v = _wide(null)
        dscore = null_share * ((do * null_v).sum(-1, keepdims=True) - delta)
        dq = (dq + dscore * null_k).astype(q.dtype)
        dnull_k = (dscore * q.astype(jnp.float32)).sum((0, 2)).astype(null[0].dtype)
        dnull_v = (null_share * do).sum((0, 2)).astype(null[1].dtype)
        dnull = (dnull_k, dnull_v)
    return Queries(dq * q.shape[-1] ** -0.5, None), Keys(dk, dv, None), dnull


def _look_back(keys: Keys, kept, blocks: Blocks, hidden: float, sums, rows):
    """Returns ((dk, dv) as (B, H, C, k), dq) of a chunk of queries, or with `sums` added to these.

    Products with eᵀ and dsᵀ are written from the left, doᵀ·e: XLA's CPU matmul is 3 times slower
    with the big matrix transposed. The barriers keep the transposes of the small matrices from
    being folded back into the product.
    """
    q, do, less, top, rank = rows
    k, v = keys.k_BxHxKxC, keys.v_BxHxKxC
    alone = jax.lax.optimization_barrier

    # the weights
    e = kept
    if e is None:
        e = jnp.exp(_scores(q, rank, keys, blocks.reach, hidden) - top).astype(v.dtype)

    # the gradients of values, scores, queries and keys
    do_flipped = alone(do.swapaxes(2, 3))
    dv = alone(jnp.einsum("bhcq,bhqk->bhck", do_flipped, e, preferred_element_type=jnp.float32))
    dp = jnp.einsum("bhqc,bhkc->bhqk", do, v, preferred_element_type=jnp.float32)
    ds = (e * (dp - less)).astype(v.dtype)
    dq = jnp.einsum("bhqk,bhkc->bhqc", ds, k)
    q_flipped = alone(q.swapaxes(2, 3))
    dk = alone(jnp.einsum("bhcq,bhqk->bhck", q_flipped, ds, preferred_element_type=jnp.float32))
    if sums is None:
        return (dk, dv), dq
    return (sums[0] + dk, sums[1] + dv), dq


_segments.defvjp(_segments_fwd, _segments_bwd)


# parts of these


def _hidden(null: Null | None) -> float:
    """Returns the score of a key that a query does not see."""
    return -jnp.inf if null is None else LOWEST


def _scores(q, rank, keys: Keys, reach: Reach, hidden: float):
    """Returns q·kᵀ + mask in float32; the ranks of the queries are (B or 1, 1, q, 1)."""
    seen = _seen(reach, rank[:, 0, :, 0], keys.rank_BxK)
    mask = jnp.where(seen, 0.0, hidden)[:, None]
    k = keys.k_BxHxKxC
    return jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32) + mask


def _seen(reach: Reach, qrank_BxQ, krank_BxK):
    """Returns (B, Q, K) bool: the keys in reach of each query."""
    back, ahead = reach
    q = qrank_BxQ[:, :, None]
    k = krank_BxK[:, None, :]
    seen = k <= (q + ahead if ahead else q)
    return seen if back is None else seen & (k >= q - back)


def _keys_of(keys: Keys, piece: Piece) -> Keys:
    _, _, k0, k1 = piece.segment
    k, v, rank = keys
    return Keys(k[:, :, k0:k1], v[:, :, k0:k1], rank[:, k0:k1])


def _ranks_of(queries: Queries, piece: Piece):
    """Returns (B or 1, 1, q, 1), which is cut into chunks as the queries are."""
    return queries.rank_BxQ[:, None, piece.segment.q0 : piece.segment.q1, None]


def _cut(parts: tuple[Piece, ...], x_BxHxQxC):
    """Returns the rows of each piece. The gradient of a split is no sum of padded arrays."""
    return jax.lax.split(x_BxHxQxC, [piece.segment.queries for piece in parts], axis=2)


def _joined(parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _wide(null: Null):
    """Returns (1, H, 1, C) float32 of (H, C), twice."""
    return tuple(x.astype(jnp.float32)[None, :, None] for x in null)


def _over_chunks(f, chunk: int, carry, rows):
    """Returns carry, outs = f(carry, rows) for one chunk of the queries after the other.

    The rows are (B or 1, H or 1, Q, C), and so are the outs.
    """
    if rows[0].shape[2] == chunk:
        return f(carry, rows)
    carry, outs = jax.lax.scan(f, carry, tuple(_chunks(chunk, x) for x in rows))
    return carry, jax.tree.map(_unchunked, outs)


def _chunks(chunk: int, x_BxHxQxC):
    """Returns (n, B, H, chunk, C) of n chunks."""
    B, H, Q, C = x_BxHxQxC.shape
    return jnp.moveaxis(x_BxHxQxC.reshape(B, H, Q // chunk, chunk, C), 2, 0)


def _unchunked(x_nxBxHxQxC):
    """Returns (B, H, all queries, C)."""
    _, B, H, _, C = x_nxBxHxQxC.shape
    return jnp.moveaxis(x_nxBxHxQxC, 0, 2).reshape(B, H, -1, C)


def _ranges_sum(ranges, like_BxHxKxC, flipped):
    """Returns (B, H, K, C): between two ends of ranges of keys, the sum of those that hold it.

    What JAX makes of slices, a sum of padded arrays, visits every key for every range: a tenth of
    the layer's time where few queries look at 8,192 keys. The sums are of transposes (B, H, C, k),
    whose rows are contiguous.
    """
    if like_BxHxKxC.size == 0:  # a causal segment before the first compressed token
        return like_BxHxKxC
    cuts = sorted({0, like_BxHxKxC.shape[2], *(end for pair in ranges for end in pair)})
    parts = []
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        held = [
            g[..., a - k0 : b - k0]
            for (k0, k1), g in zip(ranges, flipped, strict=True)
            if k0 <= a and b <= k1
        ]
        held = held or [jnp.zeros_like(like_BxHxKxC[:, :, a:b].swapaxes(2, 3))]
        parts.append(sum(held[1:], held[0]))
    joined = jnp.concatenate(parts, axis=3).astype(like_BxHxKxC.dtype)
    return jax.lax.optimization_barrier(joined).swapaxes(2, 3)
