"""Calls a fused attention kernel: softmax(q·kᵀ/√C)·v that is causal, or of all keys.

What is traced depends on where the program will run:

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
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.cost import device
from cerebra_jax.cost.scopes import FUSED_ATTENTION, FUSED_CAUSAL_ATTENTION
from cerebra_jax.kernels import attention, cudnn
from cerebra_jax.kernels.attention import Blocks, Keys, Queries, Segment

PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}
"""The kernels, each with the platform that it is made for."""

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


# calls


def _is_real(kernel: str) -> bool:
    """Returns whether the kernel itself is traced."""
    target = _traced_for()
    return target.platform == PLATFORMS[kernel] and target.implementation != "xla"


def _scope(causal: bool) -> str:
    return FUSED_CAUSAL_ATTENTION if causal else FUSED_ATTENTION


def call(kernel: str, q_BxQxNxC, k_BxKxHxC, v_BxKxHxC, *, causal: bool, lengths_B=None):
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


def forward(kernel: str, q_BxQxHxC, k_BxKxHxC, v_BxKxHxC, *, causal: bool):
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


def backward(kernel: str, rows: tuple, k_BxKxHxC, v_BxKxHxC, *, causal: bool):
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
