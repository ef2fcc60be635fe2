"""Attention by the fused kernels that ship with JAX: cuDNN's on a GPU, Splash on a TPU.

What is traced depends on where the program will run:

- On the platform that the kernel is made for, the kernel itself.
- Elsewhere the formula of the same result, under the name scope of a fused region: it has the
  price of the kernel, so that a program for a GPU can be counted, and tested, on a CPU.
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

import jax
import jax.numpy as jnp

from cerebra_jax.cost import device
from cerebra_jax.cost.count import FUSED_CAUSAL_ATTENTION
from cerebra_jax.kernels import attention, cudnn

PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}
"""The kernels, each with the platform that it is made for."""

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def lowering_for(platform: str) -> Iterator[None]:
    """Lets programs traced inside hold the kernels of that platform, cpu, gpu or tpu.

    JAX keeps what it has traced, so its caches are cleared on the way in and out.
    """
    token = _target.set(platform)
    absent = platform == "gpu" and device.present_platform() != "gpu"
    jax.clear_caches()
    try:
        with cudnn.without_a_gpu() if absent else contextlib.nullcontext():
            yield
    finally:
        _target.reset(token)
        jax.clear_caches()


def is_lowered_for(platform: str) -> bool:
    """Returns whether the program that is traced now will run on that platform."""
    return (_target.get() or device.present_platform()) == platform


def attend(blocks: attention.Blocks, q_BxHxQxC, k_BxHxKxC, v_BxHxKxC) -> jax.Array:
    """Returns the attention of `Blocks` by a fused kernel: (B, H, Q, C)."""
    q, k, v = (x.swapaxes(1, 2) for x in (q_BxHxQxC, k_BxHxKxC, v_BxHxKxC))
    return _call(blocks.kernel, q, k, v).swapaxes(1, 2)


def _call(kernel: str, q_BxQxHxC, k_BxKxHxC, v_BxKxHxC) -> jax.Array:
    """Returns causal attention: by the kernel where the program will run on its platform."""
    if is_lowered_for(PLATFORMS[kernel]):
        return jax.nn.dot_product_attention(
            q_BxQxHxC, k_BxKxHxC, v_BxKxHxC, is_causal=True, implementation="cudnn"
        )
    return _formula(q_BxQxHxC, k_BxKxHxC, v_BxKxHxC)


def _formula(q_BxQxHxC, k_BxKxHxC, v_BxKxHxC) -> jax.Array:
    """Returns what the kernel computes, as a fused region."""
    with jax.named_scope(FUSED_CAUSAL_ATTENTION):
        q, k, v = (x.swapaxes(1, 2) for x in (q_BxQxHxC, k_BxKxHxC, v_BxKxHxC))
        L = q.shape[2]
        rank_1xL = jnp.arange(L)[None]
        layout = (attention.Segment(0, L, 0, L),)
        queries, keys = attention.Queries(q, rank_1xL), attention.Keys(k, v, rank_1xL)
        o = attention.masked(attention.Blocks(layout, "fused"), queries, keys)
        return o.swapaxes(1, 2)
