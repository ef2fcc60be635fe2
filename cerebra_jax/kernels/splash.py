"""Splash attention, the fused kernel for TPUs that ships with JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library

BLOCKS = (512, 256, 128)
"""Rows of a block of scores; the largest that divides the rows is taken."""

INTERPRET = False
"""Whether the kernel's program is run step by step, which needs no TPU; for tests."""


def attend(q_BxQxNxC, k_BxKxHxC, v_BxKxHxC, causal: bool, lengths_B=None) -> jax.Array:
    """Returns attention of N query heads, N / H for each head of keys: (B, Q, N, C).

    Q and K are multiples of 128.
    """
    (B, Q, N, C), (_, K, H, _) = q_BxQxNxC.shape, k_BxKxHxC.shape
    q = (q_BxQxNxC * C**-0.5).astype(q_BxQxNxC.dtype)
    q_BxHxGxQxC = q.transpose(0, 2, 1, 3).reshape(B, H, N // H, Q, C)
    k_BxHxKxC, v_BxHxKxC = (x.swapaxes(1, 2) for x in (k_BxKxHxC, v_BxKxHxC))
    kernel = _kernel(N // H, Q, K, causal)
    if lengths_B is None:
        o = jax.vmap(jax.vmap(kernel))(q_BxHxGxQxC, k_BxHxKxC, v_BxHxKxC)
    else:
        seen_BxK = (jnp.arange(K)[None] < lengths_B[:, None]).astype(jnp.int32)
        ids = library.SegmentIds(jnp.ones((B, Q), jnp.int32), seen_BxK)
        heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        o = jax.vmap(heads)(q_BxHxGxQxC, k_BxHxKxC, v_BxHxKxC, ids)
    return o.reshape(B, N, Q, C).swapaxes(1, 2).astype(q.dtype)


def _kernel(groups: int, Q: int, K: int, causal: bool):
    """Returns the kernel of some query heads with one head of keys."""
    kind = library.CausalMask if causal else library.FullMask
    mask = library.MultiHeadMask([kind((Q, K)) for _ in range(groups)])
    queries, keys = (next(size for size in BLOCKS if n % size == 0) for n in (Q, K))
    sizes = library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    return library.make_splash_mqa_single_device(mask=mask, block_sizes=sizes, interpret=INTERPRET)
