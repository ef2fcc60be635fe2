"""Random-feature attention: a causal mixer whose weights are a Gaussian kernel, in linear time."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.kernels import rfa
from cerebra_jax.kernels.attention import rope
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.linear import linear
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.rows import Rows


class Memory(NamedTuple):
    """What the mixer knows of the tokens before: its sums, and how many keys they are."""

    sums_BxHxFxE: jax.Array
    keys_B: jax.Array


class RandomFeatureAttention(nn.Module):
    """Computes LN(x + Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)) over keys j ≤ i: (B, n, D) -> same.

    q and k are of length 1 per head and rotated by their positions: `kernels.rfa`. The rows of
    `mask` are the keys. With a memory it returns that, and the memory after these tokens.
    """

    width: int
    heads: int
    features: int
    dropout: float = 0.0
    dtype: str = "float32"

    pairwise = False
    step = rfa.CHUNK

    @nn.compact
    def __call__(self, rows: Rows, key_BxN, ex_B, memory: Memory | None = None):
        D, H = self.width, self.heads
        B, N, _ = rows.x.shape

        def heads(x):  # (B, n, H*C) -> (B, H, n, C)
            return x.reshape(B, N, H, D // H).swapaxes(1, 2)

        def rotated(x):
            x = heads(x).astype(jnp.float32)
            size = jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
            return rope(x * size, rows.pos)

        kv = linear(rows.x, 2 * D, 0.02, "kv", bias=True)
        q = linear(rows.x, D, 0.02, "q", bias=True)
        fq, fk = (rfa.features(rotated(x), self.features) for x in (q, kv[..., :D]))
        values = heads(kv[..., D:])
        if memory is None:
            y = rfa.average(fq, fk, values, key_BxN, None)
        else:
            y, after = rfa.average(fq, fk, values, key_BxN, memory)
        y = y.astype(rows.x.dtype).swapaxes(1, 2).reshape(B, N, D)
        y = linear(y, D, 0.02, "out", bias=True)
        out_BxNxD = Norm(name="norm")(rows.x + Drop(self.dropout)(ex_B, y))
        return out_BxNxD if memory is None else (out_BxNxD, Memory(*after))

    def decode(self, rows: Rows, key_BxN, ex_B, memory: Memory):
        """Returns the result for a chunk of tokens, and the memory after its keys."""
        return self(rows, key_BxN, ex_B, memory)

    def init_cache(self, batch: int, slots: int, length: int) -> Memory:
        """Returns the memory of rows that have read nothing."""
        shape = (batch, self.heads, 2 * self.features, self.width // self.heads + 1)
        return Memory(jnp.zeros(shape), jnp.zeros(batch, jnp.int32))
