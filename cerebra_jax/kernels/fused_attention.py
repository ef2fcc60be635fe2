"""Attention by the fused kernels that ship with JAX: cuDNN's on a GPU, Splash on a TPU.

They know causality, lengths and no other mask. `attend` brings the attention of a layer into that
form, which is `Blocks.form`:

    causal    all rows in order; each sees those up to itself
    windows   W queries a key, and a null key before them: a query sees the keys of the windows
              that end at or before it, which is W causal calls, made as one with W times the heads
    all       every query sees every key that is real, and the null key if there is one
    gathered  queries that were gathered from among the rows of the keys, segment by segment; each
              sees the keys up to its own row

The first three are one call, and so is the fourth where it has one segment: its queries stand at
their rows again, between rows of zeros. Of more segments that computes what nobody asks for, so
they are halved: every query of the second half sees all keys of the first, which needs no mask, and
each half is attention of the same kind. Results are merged by their sums of exp(score).

All forms end in one call, `_call`, but for that merge (`_forward`, `_backward`). What is traced
there depends on where the program will run:

- On the platform that the kernel is made for, the kernel itself.
- Elsewhere, and wherever a program is counted, the formula of the same result, under the name scope
  of a fused region: it has the price of the kernel.
- Inside `with lowering_for("gpu"):` (or "tpu") the kernel, wherever that is. So a program is made
  for a device that is not there, by `jax.jit(f).trace(…).lower(lowering_platforms=("cuda",))`, by
  `jax.export` or by `jax.experimental.topologies`. The caller also builds its model for that
  platform (`objective.device`); this alone chooses no kernel. Trace and lower inside it:

        with lowering_for("gpu"):
            lowered = jax.jit(step).lower(*shapes)   # with shardings of the topology
        compiled = lowered.compile()
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cerebra_jax.cost import device, prices
from cerebra_jax.cost.count import FUSED_ATTENTION, FUSED_CAUSAL_ATTENTION
from cerebra_jax.errors import UserError
from cerebra_jax.kernels import attention, cudnn
from cerebra_jax.kernels.attention import Blocks, Keys, Null, Queries, Segment

PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}
"""The kernels, each with the platform that it is made for."""

NAME = "keep"
"""The name, to a remat policy, of merged results and sums: the backward pass needs no others."""

AMPERE = (8, 0)
"""The compute capability from which cuDNN has the kernel."""

EVEN = 8
"""An odd number of rows is padded to a multiple of this: cuDNN's backward pass wants even ones."""

LANES = 128
"""Splash works on blocks of this many rows, or a multiple; head widths below it waste the rest."""


# where the program will run


class _Target(NamedTuple):
    """Says for which platform programs are traced, and by which of JAX's implementations."""

    platform: str
    implementation: str


_target: contextvars.ContextVar[_Target | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def lowering_for(platform: str, implementation: str = "cudnn") -> Iterator[None]:
    """Lets programs traced inside hold the kernels of that platform, cpu, gpu or tpu.

    JAX keeps what it has traced, so its caches are cleared on the way in and out. implementation:
    how JAX computes what cuDNN would; with "xla" the calls for a GPU run on a CPU.
    """
    token = _target.set(_Target(platform, implementation))
    absent = platform == "gpu" and device.present_platform() != "gpu"
    jax.clear_caches()
    try:
        with cudnn.without_a_gpu() if absent else contextlib.nullcontext():
            yield
    finally:
        _target.reset(token)
        jax.clear_caches()


def _traced_for() -> _Target:
    """Returns where the program that is traced now will run."""
    if device.is_counting():
        return _Target("", "")
    return _target.get() or _Target(device.present_platform(), "cudnn")


# whether there is one


def fused_kernel(choice: str, dtype: str, head_width: int, platform: str) -> str:
    """Returns the fused kernel of a platform (cpu, gpu or tpu) that net.attention stands for.

    It is "cudnn" or "splash"; "" says that there is none. `auto` takes one where it fits: in 16
    bits, with heads whose width is a multiple of 8 up to 128, and on a GPU from Ampere on. "cudnn"
    insists: it raises UserError where it does not fit.
    """
    if choice == "cudnn":
        problem = _problem(dtype, head_width, "gpu")
        if problem:
            raise UserError(f"net.attention is cudnn, {problem}", "use net.attention=auto")
        return "cudnn"
    found = {platform: name for name, platform in PLATFORMS.items()}.get(platform, "")
    fits = choice == "auto" and not _problem(dtype, head_width, platform)
    return found if fits else ""


def _problem(dtype: str, head_width: int, platform: str) -> str:
    """Returns why the kernel of a platform cannot be taken; "" where it can."""
    if dtype not in ("bfloat16", "float16"):
        return f"which computes in 16 bits, and net.dtype is {dtype}"
    if head_width % 8 or head_width > 128:
        return f"and a head is {head_width} wide, which is no multiple of 8 up to 128"
    if platform == "gpu" and not _is_able():
        return "which needs a GPU of compute capability 8.0 or more, and this one has less"
    return ""


@functools.cache
def _capability() -> tuple[int, ...] | None:
    """Returns the compute capability of the GPU here; None where there is none, or not NVIDIA's."""
    if device.present_platform() != "gpu":
        return None
    text = getattr(jax.local_devices()[0], "compute_capability", "")
    return tuple(map(int, text.split("."))) if text.replace(".", "").isdigit() else None


def _is_able() -> bool:
    """Returns whether the GPU here is new enough; one that is not here is taken to be."""
    found = _capability()
    return found is None or found >= AMPERE


def is_windowed(queries: int, keys: int) -> bool:
    """Returns whether so many windows tile the queries equally: form "windows" is then theirs."""
    return keys > 0 and queries % keys == 0


def calls_of(blocks: Blocks) -> tuple[tuple[int, int, int], ...]:
    """Returns (queries, keys, pairs that are computed) of each call, the null key left out."""
    Q = blocks.layout[-1][1]
    K = max(segment[3] for segment in blocks.layout)
    if blocks.form == "gathered":
        levels = halvings(blocks)
        parts = 2**levels
        halves = [(Q // 2, K // 2, Q * K // 4 >> level) for level in range(levels)]
        return (K, K, parts * prices.causal_pairs(K // parts)), *halves
    return (_pairs_of(blocks, Q, K),)


def _pairs_of(blocks: Blocks, Q: int, K: int) -> tuple[int, int, int]:
    if blocks.form == "windows":  # each query has a pair with the null key, and W are padding
        return Q, K, Q // K * prices.causal_pairs(K + 1) - Q
    return Q, K, prices.causal_pairs(Q) if blocks.form == "causal" else Q * K


# attention


def attend(blocks: Blocks, queries: Queries, keys: Keys, null: Null | None = None) -> jax.Array:
    """Returns the attention of `Blocks` by a fused kernel: (B, H, Q, C)."""
    if blocks.form == "windows":
        assert null is not None, "the first queries see no other key"
        return _windows(blocks.kernel, queries.x_BxHxQxC, keys, null)
    if blocks.form == "all":
        return _all(blocks, queries, keys, null)
    if blocks.form == "gathered":
        return _gathered(blocks, queries, keys)
    q, k, v = (x.swapaxes(1, 2) for x in (queries.x_BxHxQxC, keys.k_BxHxKxC, keys.v_BxHxKxC))
    return _call(blocks.kernel, q, k, v, causal=True).swapaxes(1, 2)


def _windows(kernel: str, q_BxHxLxC, keys: Keys, null: Null) -> jax.Array:
    """Returns attention of L queries to the M windows of W tokens before them.

    The query at place r of window a sees the null key and windows 0 … a−1: row a of a causal
    triangle of M + 1 keys. At the last place it sees window a too: row a + 1. So the queries at
    each place are one head of a causal call, whose rows are the windows.
    """
    B, H, L, C = q_BxHxLxC.shape
    M = keys.k_BxHxKxC.shape[2]
    W = L // M
    k, v = _after_null(keys, null)

    # queries at the last place stand a row later than the others
    q_BxMxHxWxC = q_BxHxLxC.reshape(B, H, M, W, C).transpose(0, 2, 1, 3, 4)
    early = jnp.pad(q_BxMxHxWxC[:, :, :, : W - 1], ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    late = jnp.pad(q_BxMxHxWxC[:, :, :, W - 1 :], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    rows = jnp.concatenate([early, late], axis=3).reshape(B, M + 1, H * W, C)

    o = _call(kernel, rows, k, v, causal=True).reshape(B, M + 1, H, W, C)
    o = jnp.concatenate([o[:, :M, :, : W - 1], o[:, 1:, :, W - 1 :]], axis=3)
    return o.transpose(0, 2, 1, 3, 4).reshape(B, H, L, C)


def _all(blocks: Blocks, queries: Queries, keys: Keys, null: Null | None) -> jax.Array:
    """Returns attention to every real key.

    Their order is of no account, so the real ones are moved to the front and counted.
    """
    B = queries.x_BxHxQxC.shape[0]
    lengths_B = None
    if blocks.padding != "none":
        real_BxK = jnp.broadcast_to(keys.rank_BxK == 0, (B, keys.rank_BxK.shape[1]))
        if blocks.padding == "anywhere":
            keys = _real_first(keys, real_BxK)
        # a query without a key would be NaN; its row is thrown away
        lengths_B = jnp.maximum(real_BxK.sum(1, dtype=jnp.int32), 0 if null else 1)
        lengths_B = lengths_B if null is None else lengths_B + 1
    if null is None:
        k, v = keys.k_BxHxKxC.swapaxes(1, 2), keys.v_BxHxKxC.swapaxes(1, 2)
    else:
        k, v = _after_null(keys, null)
    q = queries.x_BxHxQxC.swapaxes(1, 2)
    return _call(blocks.kernel, q, k, v, causal=False, lengths_B=lengths_B).swapaxes(1, 2)


def _after_null(keys: Keys, null: Null) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values with those of the null key before them, (B, 1 + K, H, C)."""
    found = []
    for x_BxHxKxC, x_HxC in zip((keys.k_BxHxKxC, keys.v_BxHxKxC), null, strict=True):
        B, H, _, C = x_BxHxKxC.shape
        first = jnp.broadcast_to(x_HxC[None, None].astype(x_BxHxKxC.dtype), (B, 1, H, C))
        found.append(jnp.concatenate([first, x_BxHxKxC.swapaxes(1, 2)], axis=1))
    return found[0], found[1]


def _real_first(keys: Keys, real_BxK) -> Keys:
    """Returns the same keys and values, the real ones first.

    Where each goes, and from where each comes, are known, so that the gradient is a gather too.
    """
    from_BxK = jnp.argsort(~real_BxK, axis=1, stable=True)
    to_BxK = jnp.argsort(from_BxK, axis=1)
    k, v = (_moved(x, from_BxK, to_BxK) for x in (keys.k_BxHxKxC, keys.v_BxHxKxC))
    return Keys(k, v, keys.rank_BxK)


@jax.custom_vjp
def _moved(x_BxHxKxC, from_BxK, to_BxK):
    return jnp.take_along_axis(x_BxHxKxC, from_BxK[:, None, :, None], axis=2)


_moved.defvjp(
    lambda x, from_BxK, to_BxK: (_moved(x, from_BxK, to_BxK), (from_BxK, to_BxK)),
    lambda places, d: (_moved(d, places[1], places[0]), None, None),
)


# gathered queries


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


def _gathered(blocks: Blocks, queries: Queries, keys: Keys) -> jax.Array:
    """Returns attention of queries that stand among the rows of the keys."""
    assert queries.row_BxK is not None, "it needs the query of each row"
    places = _Places(queries.rank_BxQ, queries.row_BxK)
    q, k, v = (x.swapaxes(1, 2) for x in (queries.x_BxHxQxC, keys.k_BxHxKxC, keys.v_BxHxKxC))
    levels = halvings(blocks)
    if levels:
        return _halved((blocks.kernel, levels), q, k, v, places).swapaxes(1, 2)
    at_rows = _placed(q, places.of_rows_BxL, places.of_queries_BxQ)
    o = _call(blocks.kernel, at_rows, k, v, causal=True)
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
    o_PxTxHxC, lse_PxTxHx1 = _forward(kernel, q, k, v, causal=True)
    o = _rows_at(o_PxTxHxC.reshape(k_BxLxHxC.shape), places.of_queries_BxQ)
    lse = lse_PxTxHx1.reshape(*k_BxLxHxC.shape[:3], 1)
    lse = _rows_at(lse, places.of_queries_BxQ)
    o = o.astype(lse.dtype)

    # the second half of the queries sees the first half of the keys, at every level
    for level in range(levels):
        second = _half(q_BxQxHxC, level, 1)
        k, v = _half(k_BxLxHxC, level, 0), _half(v_BxLxHxC, level, 0)
        more_o, more_lse = _forward(kernel, second, k, v, causal=False)
        old_o, old_lse = _half(o, level, 1), _half(lse, level, 1)
        both = jnp.logaddexp(old_lse, more_lse)
        merged = jnp.exp(old_lse - both) * old_o + jnp.exp(more_lse - both) * more_o
        o, lse = _with_half(o, level, 1, merged), _with_half(lse, level, 1, both)

    o = checkpoint_name(o.astype(v_BxLxHxC.dtype), NAME)
    lse = checkpoint_name(lse, NAME)
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
    dq, dk, dv = _backward(kernel, rows, k, v, causal=True)
    dq = _rows_at(dq.reshape(k_BxLxHxC.shape), places.of_queries_BxQ).astype(lse.dtype)
    dk, dv = (x.reshape(k_BxLxHxC.shape).astype(lse.dtype) for x in (dk, dv))

    # the halves
    for level in range(levels):
        second = tuple(_half(x, level, 1) for x in rows_BxQ)
        k, v = _half(k_BxLxHxC, level, 0), _half(v_BxLxHxC, level, 0)
        more_q, more_k, more_v = _backward(kernel, second, k, v, causal=False)
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


def _forward(kernel: str, q_BxQxHxC, k_BxKxHxC, v_BxKxHxC, *, causal: bool):
    """Returns (attention, log Σ exp(scores) in float32, (B, Q, H, 1))."""
    Q = q_BxQxHxC.shape[1]
    if _is_real(kernel):
        q = _padded(q_BxQxHxC, EVEN, 2)
        o, lse_BxHxQ = cudnn.forward(q, k_BxKxHxC, v_BxKxHxC, causal)
        return o[:, :Q], lse_BxHxQ.swapaxes(1, 2)[:, :Q, :, None]
    with jax.named_scope(_scope(causal)):
        score = _scores(q_BxQxHxC, k_BxKxHxC, causal)
        lse_BxHxQx1 = jax.nn.logsumexp(score, axis=-1, keepdims=True)
        weight = jnp.exp(score - lse_BxHxQx1).astype(v_BxKxHxC.dtype)
        o = jnp.einsum("bhqk,bkhc->bqhc", weight, v_BxKxHxC)
        return o, lse_BxHxQx1.swapaxes(1, 2)


def _backward(kernel: str, rows: tuple, k_BxKxHxC, v_BxKxHxC, *, causal: bool):
    """Returns the gradients of queries, keys and values.

    rows: (queries, log Σ exp(scores), results, gradients of the results), over all keys.
    """
    q, lse, o, do = rows
    Q = q.shape[1]
    if _is_real(kernel):
        q, lse, o, do = (_padded(x, EVEN, 2) for x in rows)
        lse_BxHxQ = lse[..., 0].swapaxes(1, 2)
        dq, dk, dv = cudnn.backward((q, lse_BxHxQ, o, do), k_BxKxHxC, v_BxKxHxC, causal)
        return dq[:, :Q], dk, dv
    with jax.named_scope(_scope(causal)):
        score = _scores(q, k_BxKxHxC, causal)
        weight = jnp.exp(score - lse.swapaxes(1, 2))
        low = weight.astype(v_BxKxHxC.dtype)
        dv = jnp.einsum("bhqk,bqhc->bkhc", low, do)
        dp = jnp.einsum("bqhc,bkhc->bhqk", do, v_BxKxHxC, preferred_element_type=score.dtype)
        wide = do.astype(score.dtype) * o.astype(score.dtype)
        delta_BxHxQx1 = wide.sum(-1, keepdims=True).swapaxes(1, 2)
        ds = (weight * (dp - delta_BxHxQx1) * q.shape[-1] ** -0.5).astype(q.dtype)
        dq = jnp.einsum("bhqk,bkhc->bqhc", ds, k_BxKxHxC)
        dk = jnp.einsum("bhqk,bqhc->bkhc", ds, q)
        return dq, dk, dv


def _scores(q_BxQxHxC, k_BxKxHxC, causal: bool):
    """Returns q·kᵀ/√C in float32, or in float64 of such, (B, H, Q, K); −inf where masked."""
    (_, Q, _, C), K = q_BxQxHxC.shape, k_BxKxHxC.shape[1]
    wide = jnp.promote_types(q_BxQxHxC.dtype, jnp.float32)
    score = jnp.einsum("bqhc,bkhc->bhqk", q_BxQxHxC, k_BxKxHxC, preferred_element_type=wide)
    score = score * C**-0.5
    if not causal:
        return score
    return jnp.where(jnp.arange(K)[None] <= jnp.arange(Q)[:, None], score, -jnp.inf)


# the call


def _is_real(kernel: str) -> bool:
    """Returns whether the kernel itself is traced."""
    target = _traced_for()
    return target.platform == PLATFORMS[kernel] and target.implementation != "xla"


def _scope(causal: bool) -> str:
    return FUSED_CAUSAL_ATTENTION if causal else FUSED_ATTENTION


def _call(kernel: str, q_BxQxNxC, k_BxKxHxC, v_BxKxHxC, *, causal: bool, lengths_B=None):
    """Returns softmax(q·kᵀ/√C)·v of N query heads, N / H for each of H heads of keys: (B, Q, N, C).

    causal: as many queries as keys, each sees those up to its own row. lengths_B: so many of the
    keys, int32 and at least 1, are seen.
    """
    Q, K = q_BxQxNxC.shape[1], k_BxKxHxC.shape[1]
    target = _traced_for()
    if target.platform != PLATFORMS[kernel]:
        return _formula(q_BxQxNxC, k_BxKxHxC, v_BxKxHxC, causal, lengths_B)

    # rows that no real query sees, or whose results are thrown away
    size = EVEN if kernel == "cudnn" else LANES
    odd = 2 if kernel == "cudnn" else LANES
    q = _padded(q_BxQxNxC, size, odd)
    k, v = (_padded(x, size, odd) for x in (k_BxKxHxC, v_BxKxHxC))
    if k.shape[1] > K and not causal and lengths_B is None:
        lengths_B = jnp.full(q.shape[0], K, jnp.int32)

    if kernel == "splash":
        from cerebra_jax.kernels import splash  # imports Pallas, which takes a second

        return splash.attend(q, k, v, causal, lengths_B)[:, :Q]
    o = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=causal,
        key_value_seq_lengths=lengths_B,
        implementation=target.implementation,
    )
    return o[:, :Q]


def _padded(x_BxLxHxC, size: int, odd: int):
    """Returns x with rows of zeros up to a multiple of `size`, unless `odd` divides its rows."""
    L = x_BxLxHxC.shape[1]
    more = -L % size if L % odd else 0
    return jnp.pad(x_BxLxHxC, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x_BxLxHxC


def _formula(q_BxQxNxC, k_BxKxHxC, v_BxKxHxC, causal: bool, lengths_B) -> jax.Array:
    """Returns what the kernels compute, by masks, as a fused region."""
    Q, K, groups = q_BxQxNxC.shape[1], k_BxKxHxC.shape[1], q_BxQxNxC.shape[2] // k_BxKxHxC.shape[2]
    with jax.named_scope(_scope(causal)):
        q = q_BxQxNxC.swapaxes(1, 2)
        k, v = (jnp.repeat(x.swapaxes(1, 2), groups, axis=1) for x in (k_BxKxHxC, v_BxKxHxC))
        place_1xK = jnp.arange(K)[None]
        if causal:
            ranks = jnp.arange(Q)[None], place_1xK
        else:
            last_Bx1 = jnp.full((1, 1), K) if lengths_B is None else lengths_B[:, None]
            ranks = jnp.zeros((1, Q), jnp.int32), (place_1xK >= last_Bx1).astype(jnp.int32)
        blocks = Blocks((Segment(0, Q, 0, K),), "fused")
        o = attention.masked(blocks, Queries(q, ranks[0]), Keys(k, v, ranks[1]))
        return o.swapaxes(1, 2)
