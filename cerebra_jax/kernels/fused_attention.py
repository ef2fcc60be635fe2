"""Attention by the fused kernels that ship with JAX: cuDNN's on a GPU, Splash on a TPU.

They know causality, lengths and no other mask. `attend` brings the attention of a layer into that
form, which is `Blocks.form`:

    causal    all rows in order; each sees those up to itself
    windows   W queries a key, and a null key before them: a query sees the keys of the windows
              that end at or before it, which is W causal calls, made as one with W times the heads
    all       every query sees every key that is real, and the null key if there is one
    gathered  queries that were gathered from among the rows of the keys, segment by segment; each
              sees the keys up to its own row (`kernels.gathered_attention`)

All forms end in calls of `kernels.fused_call`, which knows where the program will run.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cerebra_jax.cost import prices
from cerebra_jax.errors import UserError
from cerebra_jax.kernels.attention import Blocks, Keys, Null, Queries
from cerebra_jax.kernels.fused_call import PLATFORMS, call
from cerebra_jax.kernels.gathered_attention import attend_gathered, halvings

SPLASH_ROWS = 1024
"""`auto` takes Splash from that many rows on. By the modelled time of a step on a v5e it takes a
little less than masks at 1,024 rows, and more at 256 (benchmarks/README.md)."""

WINDOWS_A_ROW = 2
"""So many windows of a compressor count there as one row: Splash takes more time than masks for 256
and for 1,024 windows. Whether it pays for 2,048 is not known."""

# whether there is one


def fused_kernel(choice: str, dtype: str, head_width: int, platform: str, rows: int) -> str:
    """Returns the fused kernel of a platform that net.attention stands for.

    It is "cudnn" or "splash"; "" says that there is none. `auto` takes one where it fits: in 16
    bits, with heads whose width is a multiple of 8 up to 128, and on a GPU from Ampere on. "cudnn"
    insists: it raises UserError where it does not fit. platform: cpu, gpu, old_gpu (which has no
    fused kernel) or tpu. rows: how many queries there are, and how many keys at
    most; of a compressor its windows, WINDOWS_A_ROW for one.
    """
    if choice == "cudnn":
        problem = _problem(dtype, head_width, platform)
        if problem:
            raise UserError(f"net.attention is cudnn, {problem}", "use net.attention=auto")
        return "cudnn"
    found = {platform: name for name, platform in PLATFORMS.items()}.get(platform, "")
    pays = found != "splash" or rows >= SPLASH_ROWS
    fits = choice == "auto" and not _problem(dtype, head_width, platform)
    return found if fits and pays else ""


def _problem(dtype: str, head_width: int, platform: str) -> str:
    """Returns why the kernel of a platform cannot be taken; "" where it can."""
    if dtype not in ("bfloat16", "float16"):
        return f"which computes in 16 bits, and net.dtype is {dtype}"
    if head_width % 8 or head_width > 128:
        return f"and a head is {head_width} wide, which is no multiple of 8 up to 128"
    if platform == "old_gpu":
        return "which needs a GPU of compute capability 8.0 or more, and this one has less"
    return ""


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
        return attend_gathered(blocks, queries, keys)
    q, k, v = (x.swapaxes(1, 2) for x in (queries.x_BxHxQxC, keys.k_BxHxKxC, keys.v_BxHxKxC))
    return call(blocks.kernel, q, k, v, causal=True).swapaxes(1, 2)


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

    o = call(kernel, rows, k, v, causal=True).reshape(B, M + 1, H, W, C)
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
    return call(blocks.kernel, q, k, v, causal=False, lengths_B=lengths_B).swapaxes(1, 2)


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
