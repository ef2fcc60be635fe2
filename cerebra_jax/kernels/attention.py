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

CHUNK = 128  # queries whose scores exist at once in the blockwise kernel; 256 takes 3 to 7 % less time on a CPU
LOWEST = -1e30  # masks where there is a null key: of a query that sees no other, what these weigh is 0 in the end
KEPT = (
    1 << 20
)  # scores per example and head that are kept for the backward pass; more are formed again, by chunks


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
    able = (
        jax.default_backend() == "gpu"
        and dtype == "bfloat16"
        and head_width % 8 == 0
        and head_width <= 128
    )
    return kernel == "cudnn" or (kernel == "auto" and able)


def score_kernel(plan: Plan, heads: float = 1.0) -> str:
    """Whole score blocks, kept for the backward pass, where they are few; else query chunks whose weights are formed
    again in it, a sixth more FLOPs. `heads`: as a share of what KEPT is per."""
    return (
        "full"
        if heads * sum((q1 - q0) * (k1 - k0) for q0, q1, k0, k1 in plan) <= KEPT
        else "blockwise"
    )


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


def pieces(plan: Plan, kernel: str) -> tuple[tuple[tuple[int, int, int, int], int], ...]:
    """The segments, each with how many of its queries have scores at once: all, or in the blockwise kernel a chunk. A
    segment that is not a number of whole chunks is cut in two."""
    if kernel != "blockwise":
        return tuple((segment, segment[1] - segment[0]) for segment in plan)
    # few keys (a compressed memory): more queries a chunk, for scores of the same size
    all_q, most, found = plan[-1][1], max(k1 - k0 for _, _, k0, k1 in plan), []
    chunk = CHUNK * next(m for m in (4, 2, 1) if m == 1 or m * most <= all_q)
    for q0, q1, k0, k1 in plan:
        cut = q1 - (q1 - q0) % chunk
        found += [((a, b, k0, k1), min(b - a, chunk)) for a, b in ((q0, cut), (cut, q1)) if a < b]
    return tuple(found)


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
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="cudnn"
        ).swapaxes(1, 2)
    return _segments(plan, kernel, reach, q_BxHxQxC, k_BxHxKxC, v_BxHxKxC, qpos_BxQ, kpos_BxK, null)


def _cut(segments, x_BxHxQxC):
    """The queries' rows of each segment. The gradient of a split is no sum of padded arrays."""
    return jax.lax.split(x_BxHxQxC, [q1 - q0 for q0, q1, _, _ in segments], axis=2)


def _joined(parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _seen(reach, qpos_BxQ, kpos_BxK):
    """(B, Q, K) bool: the keys in reach of each query."""
    back, ahead = reach
    q, k = qpos_BxQ[:, :, None], kpos_BxK[:, None, :]
    seen = k <= (q + ahead if ahead else q)
    return seen if back is None else seen & (k >= q - back)


def _chunks(chunk, x_BxHxQxC):
    """(n, B, H, chunk, C) of n chunks."""
    B, H, Q, C = x_BxHxQxC.shape
    return jnp.moveaxis(x_BxHxQxC.reshape(B, H, Q // chunk, chunk, C), 2, 0)


def _over_chunks(f, chunk, carry, arrays):
    """carry, outs = f(carry, arrays) for one chunk of the queries after the other; the arrays are (B or 1, H or 1, Q,
    C), the outs (B, H, Q, C)."""
    if arrays[0].shape[2] == chunk:
        return f(carry, arrays)
    carry, outs = jax.lax.scan(f, carry, tuple(_chunks(chunk, x) for x in arrays))
    whole = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[4])  # noqa: E731
    return carry, jax.tree.map(whole, outs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _segments(plan, kernel, reach, q, k, v, qpos, kpos, null):
    """All segments. What is not of size Q x K is done for all of them at once: on a CPU a layer of 2,048 tokens is a
    few hundred kernels, whose starts are felt."""
    return _segments_fwd(plan, kernel, reach, q, k, v, qpos, kpos, null)[0]


def _scores(reach, null, q, k, qpos, kpos):
    """q·kᵀ + mask; positions are (B or 1, Q) and (B or 1, K)."""
    mask = jnp.where(_seen(reach, qpos, kpos), 0.0, -jnp.inf if null is None else LOWEST)[:, None]
    return jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32) + mask


def _segments_fwd(plan, kernel, reach, q, k, v, qpos, kpos, null):
    """Σ eᵢ vᵢ / Σ eᵢ, eᵢ = exp(sᵢ − max s): what is divided has the size of the queries, not that of the scores. The
    null key joins after the sums; a query may see no other."""
    q, parts = q * q.shape[-1] ** -0.5, pieces(plan, kernel)
    segments, kept, found = [segment for segment, _ in parts], [], []
    for ((q0, q1, k0, k1), chunk), q_s in zip(parts, _cut(segments, q), strict=True):
        k_s, v_s, kpos_s = k[:, :, k0:k1], v[:, :, k0:k1], kpos[:, k0:k1]

        def look(_, x, k_s=k_s, v_s=v_s, kpos_s=kpos_s):
            s = _scores(reach, null, x[0], k_s, x[1][:, 0, :, 0], kpos_s)
            top = s.max(-1, keepdims=True, initial=-jnp.inf)
            e = jnp.exp(s - top)
            low = e.astype(v.dtype)
            o = jnp.einsum("bhqk,bhkc->bhqc", low, v_s)
            return None, (top, e.sum(-1, keepdims=True), o, *([low] if kernel == "full" else []))

        (top, total, o, *e) = _over_chunks(look, chunk, None, (q_s, qpos[:, None, q0:q1, None]))[1]
        found.append((top, total, o))
        kept += e
    top, total, o = (_joined(x) for x in zip(*found, strict=True))
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
    return o, (q, k, v, qpos, kpos, null, kept, top, share, share0, o)


def _wide(null):
    """(H, C) -> (1, H, 1, C) float32, twice."""
    return tuple(x.astype(jnp.float32)[None, :, None] for x in null)


def _segments_bwd(plan, kernel, reach, res, do):
    """The derivative by hand: of what has the size Q x K it needs e alone, kept or formed again from the scores and
    their maxima (Dao et al. 2022, arXiv:2205.14135, B.2).

    Products with eᵀ and dsᵀ are written from the left, doᵀ·e: XLA's CPU matmul is 3 times slower with the big matrix
    transposed. The barriers keep the transposes of the small matrices from being folded back into the product.
    """
    q, k, v, qpos, kpos, null, kept, top, share, share0, o = res
    alone = jax.lax.optimization_barrier
    flip = lambda x: alone(x.swapaxes(2, 3))  # noqa: E731
    whole = do.astype(jnp.float32)
    delta = (whole * o.astype(jnp.float32)).sum(-1, keepdims=True)
    parts = pieces(plan, kernel)
    segments, found = [segment for segment, _ in parts], []
    rows = (_cut(segments, x) for x in (q, (whole * share).astype(v.dtype), share * delta, top))
    for i, (((q0, q1, k0, k1), chunk), *own) in enumerate(zip(parts, *rows, strict=True)):
        k_s, v_s, kpos_s = k[:, :, k0:k1], v[:, :, k0:k1], kpos[:, k0:k1]

        def back(sums, x, i=i, k_s=k_s, v_s=v_s, kpos_s=kpos_s):
            q_c, do_c, less_c, top_c, qpos_c = x
            if kernel == "full":
                e = kept[i]
            else:
                s = _scores(reach, null, q_c, k_s, qpos_c[:, 0, :, 0], kpos_s)
                e = jnp.exp(s - top_c).astype(v.dtype)
            dv = alone(
                jnp.einsum("bhcq,bhqk->bhck", flip(do_c), e, preferred_element_type=jnp.float32)
            )
            dp = jnp.einsum("bhqc,bhkc->bhqk", do_c, v_s, preferred_element_type=jnp.float32)
            ds = (e * (dp - less_c)).astype(v.dtype)
            dq = jnp.einsum("bhqk,bhkc->bhqc", ds, k_s)
            dk = alone(
                jnp.einsum("bhcq,bhqk->bhck", flip(q_c), ds, preferred_element_type=jnp.float32)
            )
            return (dk, dv) if sums is None else (sums[0] + dk, sums[1] + dv), dq

        sums = None if chunk == q1 - q0 else (jnp.zeros((*k.shape[:2], k.shape[3], k1 - k0)),) * 2
        sums, dq = _over_chunks(back, chunk, sums, (*own, qpos[:, None, q0:q1, None]))
        found.append((dq, *sums))
    dq, dk, dv = zip(*found, strict=True)
    dq, ranges = _joined(dq), tuple((k0, k1) for _, _, k0, k1 in segments)
    dk, dv, dnull = _ranges_sum(ranges, k, dk), _ranges_sum(ranges, v, dv), None
    if null is not None:
        k0, v0 = _wide(null)
        ds0 = share0 * ((whole * v0).sum(-1, keepdims=True) - delta)
        dq = (dq + ds0 * k0).astype(q.dtype)
        sums = ((w * x.astype(jnp.float32)).sum((0, 2)) for w, x in ((ds0, q), (share0, whole)))
        dnull = tuple(g.astype(x.dtype) for g, x in zip(sums, null, strict=True))
    return dq * q.shape[-1] ** -0.5, dk, dv, None, None, dnull


_segments.defvjp(_segments_fwd, _segments_bwd)


def _ranges_sum(ranges, like_BxHxKxC, flipped):
    """Between two ends of ranges of keys, the sum of those that hold it. What JAX makes of slices, a sum of padded
    arrays, visits every key for every range: a tenth of the layer's time where few queries look at 8,192 keys. The sums
    are of transposes (B, H, C, k), whose rows are contiguous."""
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
        parts.append(
            sum(held[1:], held[0])
            if held
            else jnp.zeros_like(like_BxHxKxC[:, :, a:b].swapaxes(2, 3))
        )
    whole = jnp.concatenate(parts, axis=3).astype(like_BxHxKxC.dtype)
    return jax.lax.optimization_barrier(whole).swapaxes(2, 3)
