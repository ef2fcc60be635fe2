"""Attention over static key ranges: what is masked away by causality or a window is, block by block, never computed.

A `Plan` is a tuple of segments (q0, q1, k0, k1): queries [q0, q1) see keys [k0, k1), and inside them the mask
`kpos <= qpos`, or a window of positions (`Reach`). Dense causal attention, a sliding window and attention of a gathered
subset of queries are the same function with another plan, and their price is read off the plan.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.cost import prices

Plan = tuple[tuple[int, int, int, int], ...]
Reach = tuple[int | None, int]
"""(back, ahead): a query at p sees keys at p − back … p + ahead; back None: all before it."""

PAST: Reach = (None, 0)

Null = tuple[jax.Array, jax.Array]
"""A key and its value, (H, C) each, that every query sees."""

CHUNK = 128  # queries whose scores exist at once in the blockwise kernel; 128 to 256 measured best on CPU
LOWEST = -1e30  # masks where there is a null key: of a query that sees no other, what these weigh is 0 in the end
KEPT = 1024  # scores per token and head that are kept for the backward pass; more are formed again, chunk by chunk


def segment_bounds(L: int, count: int) -> tuple[tuple[int, int], ...]:
    """`count` contiguous, nearly equal ranges that tile [0, L)."""
    cuts = [round(i * L / count) for i in range(count + 1)]
    return tuple(zip(cuts[:-1], cuts[1:], strict=True))


def segments_for(L: int) -> int:
    """How many static key prefixes a sequence of L tokens is cut into: at most 8, none shorter than 64 tokens."""
    return max(1, min(8, L // 64))


def causal_plan(L: int) -> Plan:
    """Every token is a query; segment s sees the keys up to its own end."""
    return tuple((a, b, 0, b) for a, b in segment_bounds(L, segments_for(L)))


def window_plan(L: int, reach: tuple[int, int]) -> Plan:
    """Every token is a query; segment s, as long as the window but at least 64 tokens, sees the keys in its reach. At
    most 32 segments: each is a piece of program to compile."""
    back, ahead = reach
    bounds = segment_bounds(L, max(1, min(32, L // max(64, back + 1))))
    return tuple((a, b, max(0, a - back), min(L, b + ahead)) for a, b in bounds)


def scores_flops(plan: Plan, width: int, kernel: str = "full") -> int:
    """Forward FLOPs per example of q·k and p·v over the key blocks that are visited: 4 · Σ (q1 − q0)(k1 − k0) · D.

    cuDNN's causal kernel skips what is masked: the visible pairs of the plan's L tokens.
    """
    if kernel == "cudnn":
        return prices.attention_pairs_flops(prices.causal_pairs(plan[-1][1]), width)
    return sum(prices.attention_scores_flops(q1 - q0, k1 - k0, width) for q0, q1, k0, k1 in plan)


def fused(kernel: str, dtype: str, head_width: int) -> bool:
    """Whether cuDNN's kernel runs: asked for, or `auto` on a GPU that can (bf16, head width a multiple of 8 to 128)."""
    able = jax.default_backend() == "gpu" and dtype == "bfloat16" and head_width % 8 == 0 and head_width <= 128
    return kernel == "cudnn" or (kernel == "auto" and able)


def score_kernel(plan: Plan, tokens: int, heads: float = 1.0) -> str:
    """Whole score blocks where all of them are few for a sequence of so many tokens, else query chunks whose scores
    are formed again in the backward pass, a third more FLOPs. `heads`: as a share of what KEPT is per."""
    scores = heads * sum((q1 - q0) * (k1 - k0) for q0, q1, k0, k1 in plan)
    return "full" if scores // tokens <= KEPT else "blockwise"


@functools.cache
def _angles(half: int, base: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 0, step, …, 1023·step positions at each of `half` frequencies, computed in float64."""
    angle = step * np.arange(1024)[:, None] * base ** (-np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope(x_BxHxLxC: jax.Array, pos_BxL: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding, rotate-half form (Su et al. 2021, arXiv:2104.09864); `pos` < 2²⁰, may be (1, L).

    cos and sin come from two small tables, by the sum of angles: a float32 product position · frequency is wrong in
    the 4th digit at position 4096, and XLA's CPU backend would compute a cosine for every element of x.
    """
    half = x_BxHxLxC.shape[-1] // 2
    cos1, sin1 = (jnp.asarray(t)[pos_BxL & 1023][:, None] for t in _angles(half, base, 1))
    cos2, sin2 = (jnp.asarray(t)[pos_BxL >> 10][:, None] for t in _angles(half, base, 1024))
    cos, sin = cos1 * cos2 - sin1 * sin2, sin1 * cos2 + cos1 * sin2
    a, b = jnp.split(x_BxHxLxC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxHxLxC.dtype)


def chunk_of(plan: Plan, count: int, kernel: str) -> int:
    """Queries whose scores exist at once, of a segment of `count`: all of them, or in the blockwise kernel a chunk."""
    # few keys (a compressed memory): more queries a chunk, for scores of the same size
    all_q, most = plan[-1][1], max(k1 - k0 for _, _, k0, k1 in plan)
    more = next(m for m in (4, 2, 1) if m == 1 or m * most <= all_q and count % (m * CHUNK) == 0)
    return more * CHUNK if kernel == "blockwise" and count % (more * CHUNK) == 0 else count


def attend(q_BxHxQxC, k_BxHxKxC, v_BxHxKxC, qpos_BxQ, kpos_BxK, plan: Plan, kernel: str,
           reach: Reach = PAST, null: Null | None = None) -> jax.Array:  # fmt: skip
    """softmax(q·kᵀ/√C + mask)·v with mask kpos <= qpos, or `reach`; softmax in float32; -> (B, H, Q, C).

    Positions are (B, n) or (1, n) int32. Each query must see at least one key of its segment (its own, in self
    attention) or the `null` key, (H, C) twice: without one the mask is −inf, no finite sentinel. `cudnn` needs the
    causal plan of all tokens. The null key is not one of the matmul's: with 2,049 columns XLA's CPU takes a tenth
    longer for all of it than with 2,048.
    """
    if kernel == "cudnn":
        q, k, v = (x.swapaxes(1, 2) for x in (q_BxHxQxC, k_BxHxKxC, v_BxHxKxC))
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn").swapaxes(1, 2)
    if kernel == "full":
        return _segments(plan, reach, q_BxHxQxC, k_BxHxKxC, v_BxHxKxC, qpos_BxQ, kpos_BxK, null)
    outs = []
    ranges = tuple((k0, k1) for _, _, k0, k1 in plan)
    keys, values = _ranges(ranges, k_BxHxKxC), _ranges(ranges, v_BxHxKxC)
    for (q0, q1, k0, k1), q, k, v in zip(plan, _cut(plan, q_BxHxQxC), keys, values, strict=True):
        qpos, kpos = qpos_BxQ[:, q0:q1], kpos_BxK[:, k0:k1]
        outs.append(_chunked(chunk_of(plan, q1 - q0, kernel), reach, q, k, v, qpos, kpos, null))
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=2)


def _cut(plan, x_BxHxQxC):
    """The queries' rows of each segment. The gradient of a split is no sum of padded arrays."""
    return jax.lax.split(x_BxHxQxC, [q1 - q0 for q0, q1, _, _ in plan], axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ranges(ranges, x_BxHxKxC):
    """The keys or values of each segment."""
    return tuple(x_BxHxKxC[:, :, a:b] for a, b in ranges)


def _ranges_sum(ranges, like_BxHxKxC, flipped):
    """Between two ends of ranges, the sum of those that hold it. What JAX makes of slices, a sum of padded arrays,
    visits every key for every range: a tenth of the layer's time where few queries look at 8,192 keys. The sums are
    of transposes (B, H, C, k), whose rows are contiguous."""
    if like_BxHxKxC.size == 0:  # a causal segment before the first compressed token
        return like_BxHxKxC
    cuts = sorted({0, like_BxHxKxC.shape[2], *(end for pair in ranges for end in pair)})
    parts = []
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        held = [g[..., a - k0 : b - k0] for (k0, k1), g in zip(ranges, flipped, strict=True) if k0 <= a and b <= k1]
        parts.append(sum(held[1:], held[0]) if held else jnp.zeros_like(like_BxHxKxC[:, :, a:b].swapaxes(2, 3)))
    return jax.lax.optimization_barrier(jnp.concatenate(parts, axis=3)).swapaxes(2, 3)


_ranges.defvjp(
    lambda ranges, x: (_ranges(ranges, x), x),
    lambda ranges, like, grads: (_ranges_sum(ranges, like, [g.swapaxes(2, 3) for g in grads]),),
)


def _seen(reach, qpos_BxQ, kpos_BxK):
    """(B, Q, K) bool: the keys in reach of each query."""
    back, ahead = reach
    q, k = qpos_BxQ[:, :, None], kpos_BxK[:, None, :]
    seen = k <= (q + ahead if ahead else q)
    return seen if back is None else seen & (k >= q - back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _segments(plan, reach, q, k, v, qpos, kpos, null):
    """All segments with whole score blocks. What is not of size Q x K is done for all of them at once: on a CPU a
    layer of 2,048 tokens is a few hundred kernels, whose starts are felt."""
    return _segments_fwd(plan, reach, q, k, v, qpos, kpos, null)[0]


def _segments_fwd(plan, reach, q, k, v, qpos, kpos, null):
    """Σ eᵢ vᵢ / Σ eᵢ: what is divided has the size of the queries, not that of the scores. The null key joins after the
    sums; a query may see no other."""
    q = q * q.shape[-1] ** -0.5
    weights, found = [], []
    for (q0, q1, k0, k1), q_s in zip(plan, _cut(plan, q), strict=True):
        seen = _seen(reach, qpos[:, q0:q1], kpos[:, k0:k1])
        mask = jnp.where(seen, 0.0, -jnp.inf if null is None else LOWEST)[:, None]
        s = jnp.einsum("bhqc,bhkc->bhqk", q_s, k[:, :, k0:k1], preferred_element_type=jnp.float32) + mask
        top = s.max(-1, keepdims=True, initial=-jnp.inf)
        e = jnp.exp(s - top)
        weights.append(e.astype(v.dtype))
        found.append((top, e.sum(-1, keepdims=True), jnp.einsum("bhqk,bhkc->bhqc", weights[-1], v[:, :, k0:k1])))
    top, total, o = found[0] if len(plan) == 1 else (jnp.concatenate(x, axis=2) for x in zip(*found, strict=True))
    o = o.astype(jnp.float32)
    if null is None:
        share, share0 = 1 / total, None
        o = o * share
    else:
        k0, v0 = _wide(null)
        s0 = (q.astype(jnp.float32) * k0).sum(-1, keepdims=True)
        most = jnp.maximum(top, s0)
        share, share0 = jnp.exp(top - most), jnp.exp(s0 - most)
        total = share * total + share0
        share, share0 = share / total, share0 / total
        o = o * share + share0 * v0
    o = o.astype(v.dtype)
    return o, (q, k, v, null, weights, share, share0, o)


def _wide(null):
    """(H, C) -> (1, H, 1, C) float32, twice."""
    return tuple(x.astype(jnp.float32)[None, :, None] for x in null)


def _segments_bwd(plan, reach, res, do):
    """The derivative by hand: it keeps e and nothing else of size Q x K (Dao et al. 2022, arXiv:2205.14135, B.2).

    Products with eᵀ and dsᵀ are written from the left, doᵀ·e: XLA's CPU matmul is 3 times slower with the big matrix
    transposed. The barriers keep the transposes of the small matrices from being folded back into the product.
    """
    q, k, v, null, weights, share, share0, o = res
    alone = jax.lax.optimization_barrier
    flip = lambda x: alone(x.swapaxes(2, 3))  # noqa: E731
    whole = do.astype(jnp.float32)
    delta = (whole * o.astype(jnp.float32)).sum(-1, keepdims=True)
    parts, found = (_cut(plan, x) for x in (q, (whole * share).astype(v.dtype), share * delta)), []
    for (_, _, k0, k1), e, q_s, do_s, less_s in zip(plan, weights, *parts, strict=True):
        dv = alone(jnp.einsum("bhcq,bhqk->bhck", flip(do_s), e))
        dp = jnp.einsum("bhqc,bhkc->bhqk", do_s, v[:, :, k0:k1], preferred_element_type=jnp.float32)
        ds = (e * (dp - less_s)).astype(v.dtype)
        dq = jnp.einsum("bhqk,bhkc->bhqc", ds, k[:, :, k0:k1])
        found.append((dq, alone(jnp.einsum("bhcq,bhqk->bhck", flip(q_s), ds)), dv))
    dq, dk, dv = zip(*found, strict=True)
    dq, ranges = jnp.concatenate(dq, axis=2), tuple((k0, k1) for _, _, k0, k1 in plan)
    dk, dv, dnull = _ranges_sum(ranges, k, dk), _ranges_sum(ranges, v, dv), None
    if null is not None:
        k0, v0 = _wide(null)
        ds0 = share0 * ((whole * v0).sum(-1, keepdims=True) - delta)
        dq = (dq + ds0 * k0).astype(q.dtype)
        sums = ((w * x.astype(jnp.float32)).sum((0, 2)) for w, x in ((ds0, q), (share0, whole)))
        dnull = tuple(g.astype(x.dtype) for g, x in zip(sums, null, strict=True))
    return dq * q.shape[-1] ** -0.5, dk, dv, None, None, dnull


_segments.defvjp(_segments_fwd, _segments_bwd)


def _chunked(chunk, reach, q, k, v, qpos, kpos, null):
    """A segment, scores recomputed in the backward pass: by a scan over chunks of its queries, if it is longer than
    one, chunk x K scores live, never Q x K."""
    B, H, Q, C = q.shape
    n = Q // chunk
    scores = jax.checkpoint(functools.partial(_segments, ((0, chunk, 0, k.shape[2]),), reach))
    if n == 1:
        return scores(q, k, v, qpos, kpos, null)
    q_n = jnp.moveaxis(q.reshape(B, H, n, chunk, C), 2, 0)
    qpos_n = jnp.moveaxis(jnp.broadcast_to(qpos, (qpos.shape[0], Q)).reshape(-1, n, chunk), 1, 0)
    _, out_n = jax.lax.scan(lambda _, x: (None, scores(x[0], k, v, x[1], kpos, null)), None, (q_n, qpos_n))
    return jnp.moveaxis(out_n, 0, 2).reshape(B, H, Q, C)
