"""Attention of gathered queries by fused kernels: each sees the keys up to its own row.

The queries stand at their rows again, between rows of zeros: one causal call. Of more segments that
computes what nobody asks for, so they are halved: every query of the second half sees all keys of
the first, which needs no mask, and each half is attention of the same kind. Results are merged by
their sums of exp(score).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.kernels import cudnn
from cerebra_jax.kernels.attention import Blocks, Keys, Queries
from cerebra_jax.kernels.fused_call import backward, call, forward
from cerebra_jax.kernels.remat import keep


class _Places(NamedTuple):
    """Says where queries stand among the rows of the keys, and which query each row has."""

    of_queries_BxQ: jax.Array  # L of a query that is none
    of_rows_BxL: jax.Array  # Q of a row without a query


def halvings(blocks: Blocks) -> int:
    """Returns how often the layout of gathered queries is halved into equal parts.

    Parts have whole segments and an even number of keys. On a TPU there is one part: Splash gives
    no sums to merge by.
    """
    queries = {q1 - q0 for q0, q1, _, _ in blocks.layout}
    ends = [0, *(segment[3] for segment in blocks.layout)]
    keys = {b - a for a, b in zip(ends[:-1], ends[1:], strict=True)}
    if len(queries) > 1 or len(keys) > 1 or blocks.kernel != "cudnn" or not cudnn.is_known():
        return 0
    levels, parts = 0, len(blocks.layout)
    while parts % 2 == 0 and (ends[-1] >> levels + 1) % 2 == 0:
        levels, parts = levels + 1, parts // 2
    return levels


def attend_gathered(blocks: Blocks, queries: Queries, keys: Keys) -> jax.Array:
    """Returns attention of queries that stand among the rows of the keys."""
    assert queries.row_BxK is not None, "it needs the query of each row"
    places = _Places(queries.rank_BxQ, queries.row_BxK)
    q, k, v = (x.swapaxes(1, 2) for x in (queries.x_BxHxQxC, keys.k_BxHxKxC, keys.v_BxHxKxC))
    levels = halvings(blocks)
    if levels:
        return _halved((blocks.kernel, levels), q, k, v, places).swapaxes(1, 2)
    at_rows = _placed(q, places.of_rows_BxL, places.of_queries_BxQ)
    o = call(blocks.kernel, at_rows, k, v, causal=True)
    return _placed(o, places.of_queries_BxQ, places.of_rows_BxL).swapaxes(1, 2)


def _rows_at(x_BxNxHxC, at_BxM):
    """Returns rows of x, zeros where the place is N."""
    N = x_BxNxHxC.shape[1]
    at_BxMx1x1 = at_BxM[:, :, None, None]
    rows = jnp.take_along_axis(x_BxNxHxC, jnp.minimum(at_BxMx1x1, N - 1), axis=1)
    return jnp.where(at_BxMx1x1 < N, rows, jnp.zeros((), rows.dtype))


@jax.custom_vjp
def _placed(x_BxNxHxC, at_BxM, back_BxN):
    """Returns rows of x, zeros where the place is N; no row twice, so its gradient is a gather."""
    return _rows_at(x_BxNxHxC, at_BxM)


_placed.defvjp(
    lambda x, at, back: (_rows_at(x, at), back),
    lambda back, d: (_rows_at(d, back), None, None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _halved(static: tuple[str, int], q_BxQxHxC, k_BxLxHxC, v_BxLxHxC, places: _Places):
    """Returns attention by parts; static: (kernel, how often the rows are halved)."""
    return _halved_fwd(static, q_BxQxHxC, k_BxLxHxC, v_BxLxHxC, places)[0]


def _halved_fwd(static, q_BxQxHxC, k_BxLxHxC, v_BxLxHxC, places: _Places):
    """Returns Σᵢ exp(lᵢ − l) oᵢ of the parts i that a query sees, l = log Σᵢ exp(lᵢ)."""
    kernel, levels = static

    # each part on its own, at its rows
    q = _parts(_rows_at(q_BxQxHxC, places.of_rows_BxL), levels)
    k, v = _parts(k_BxLxHxC, levels), _parts(v_BxLxHxC, levels)
    o_PxTxHxC, lse_PxTxHx1 = forward(kernel, q, k, v, causal=True)
    o = _rows_at(o_PxTxHxC.reshape(k_BxLxHxC.shape), places.of_queries_BxQ)
    lse = lse_PxTxHx1.reshape(*k_BxLxHxC.shape[:3], 1)
    lse = _rows_at(lse, places.of_queries_BxQ)
    o = o.astype(lse.dtype)

    # the second half of the queries sees the first half of the keys, at every level
    for level in range(levels):
        second = _half(q_BxQxHxC, level, 1)
        k, v = _half(k_BxLxHxC, level, 0), _half(v_BxLxHxC, level, 0)
        more_o, more_lse = forward(kernel, second, k, v, causal=False)
        old_o, old_lse = _half(o, level, 1), _half(lse, level, 1)
        both = jnp.logaddexp(old_lse, more_lse)
        merged = jnp.exp(old_lse - both) * old_o + jnp.exp(more_lse - both) * more_o
        o, lse = _with_half(o, level, 1, merged), _with_half(lse, level, 1, both)

    o, lse = keep((o.astype(v_BxLxHxC.dtype), lse))
    return o, (q_BxQxHxC, k_BxLxHxC, v_BxLxHxC, places, o, lse)


def _halved_bwd(static, residuals, do_BxQxHxC):
    """Returns the gradients: those of each part, with the sums and results of the whole.

    With these, the weights that the kernel forms again are those of the whole softmax, and so is
    Σ do·o: nothing is left to correct.
    """
    kernel, levels = static
    q_BxQxHxC, k_BxLxHxC, v_BxLxHxC, places, o, lse = residuals
    rows_BxQ = (q_BxQxHxC, lse, o, do_BxQxHxC)

    # each part on its own; rows without a query are zeros, whose gradients are zeros
    rows = tuple(_parts(_rows_at(x, places.of_rows_BxL), levels) for x in rows_BxQ)
    k, v = _parts(k_BxLxHxC, levels), _parts(v_BxLxHxC, levels)
    dq, dk, dv = backward(kernel, rows, k, v, causal=True)
    dq = _rows_at(dq.reshape(k_BxLxHxC.shape), places.of_queries_BxQ).astype(lse.dtype)
    dk, dv = (x.reshape(k_BxLxHxC.shape).astype(lse.dtype) for x in (dk, dv))

    # the halves
    for level in range(levels):
        second = tuple(_half(x, level, 1) for x in rows_BxQ)
        k, v = _half(k_BxLxHxC, level, 0), _half(v_BxLxHxC, level, 0)
        more_q, more_k, more_v = backward(kernel, second, k, v, causal=False)
        dq = _with_half(dq, level, 1, _half(dq, level, 1) + more_q)
        dk = _with_half(dk, level, 0, _half(dk, level, 0) + more_k)
        dv = _with_half(dv, level, 0, _half(dv, level, 0) + more_v)
    dtype = q_BxQxHxC.dtype
    return dq.astype(dtype), dk.astype(dtype), dv.astype(dtype), None


_halved.defvjp(_halved_fwd, _halved_bwd)


def _parts(x_BxLxHxC, levels: int):
    """Returns the parts as examples, (B · 2^levels, L / 2^levels, H, C)."""
    B, L, *rest = x_BxLxHxC.shape
    return x_BxLxHxC.reshape(B << levels, L >> levels, *rest)


def _half(x_BxLxHxC, level: int, which: int):
    """Returns the first or the second half of each part of a level, as examples."""
    B, L, *rest = x_BxLxHxC.shape
    halves = x_BxLxHxC.reshape(B << level, 2, L >> level + 1, *rest)
    return halves[:, which]


def _with_half(x_BxLxHxC, level: int, which: int, half):
    """Returns x with another half in each part of a level."""
    pair = [_half(x_BxLxHxC, level, 0), _half(x_BxLxHxC, level, 1)]
    pair[which] = half.astype(x_BxLxHxC.dtype)
    return jnp.stack(pair, axis=1).reshape(x_BxLxHxC.shape)
