"""Multi-head attention of given queries over given keys, each at its own position."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import attention as kernels
from cerebra_jax.kernels.fused_attention import fused_kernel
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.linear import as_matrix, normal
from cerebra_jax.layers.parameters import Dense
from cerebra_jax.layers.prunable import Group, Member
from cerebra_jax.layers.rows import Rows, block_layout


def masked_blocks(
    kernel: str, layout: kernels.Layout, platform: str, heads: float = 1.0
) -> kernels.Blocks:
    """Returns the scores to compute where masks are more than causality, all a fused kernel knows.

    `heads`: how many there are, as a share of those that the bound on kept scores is for.
    """
    if kernel in ("auto", "cudnn"):
        kernel = kernels.score_kernel(layout, platform, heads)
    return kernels.Blocks(layout, kernel)


class Attention(nn.Module):
    """Computes softmax(q·kᵀ/√C + mask)·v with rotary embeddings: (B, Q, D) over (B, K, D).

    Queries and keys that are all tokens are plain self-attention; fewer queries, gathered, are
    routed attention. A query sees the keys whose rank is not above its own. Which key blocks are
    visited follows from the segments of both. `heads` may be fewer than D / head_width (pruned).
    `reach`: how many positions before and after its own a query sees; None: all before it.
    """

    width: int
    heads: int
    head_width: int
    dtype: str = "float32"
    bias: bool = False
    std: float = 0.02
    out_scale: float = 1.0
    kernel: str = "auto"
    reach: kernels.Reach = kernels.PAST
    platform: str = "cpu"

    pairwise = True  # its cost has a term for each visible pair of a query and a key
    step = 1

    def setup(self):
        inner = self.heads * self.head_width
        self.kv = self._linear(2 * inner, self.std)
        self.q = self._linear(inner, self.std)
        self.out = self._linear(self.width, self.std * self.out_scale)

    def _linear(self, width: int, std: float) -> Dense:
        return Dense(width, self.bias, jnp.dtype(self.dtype), kernel_init=normal(std))

    @classmethod
    def of(cls, net: NetCfg, heads: int, out_scale: float, platform: str) -> Attention:
        """Returns the layer of a configuration, with so many of its heads left."""
        return cls(
            net.width,
            heads,
            net.width // net.heads,
            dtype=net.dtype,
            std=net.init_std,
            out_scale=out_scale,
            kernel=net.attention,
            platform=platform,
            parent=None,
        )

    def __call__(self, queries: Rows, keys: Rows) -> jax.Array:
        k, v = self._keys(keys)
        q = kernels.Queries(self._queries(queries.x, queries.pos), queries.rank, queries.slot)
        memory = kernels.Keys(k, v, keys.rank)
        return self._joined(kernels.attend_blocks(q, memory, self.blocks(queries, keys)))

    def decode(self, rows: Rows, kv: cached.KV, place: cached.Place):
        """Returns the result for a chunk of tokens whose keys join the cache, and the cache.

        All slots are visited. A query whose rank is `length` is thrown away by the caller.
        """

        def make(layer, x):
            return as_matrix(layer.kv, x)

        inner = self.heads * self.head_width
        made = cached.when(place.run if place.lazy else None, make, self, rows.x, 2 * inner)
        k, v = self._split(made, rows.pos)
        kv = cached.write(kv, place.slot_Bxn, k, v, rows.pos)
        layout = cached.layout(rows.count, kv.order_BxN.shape[1])
        blocks = masked_blocks(self.kernel, layout, self.platform)._replace(reach=self.reach)

        def look(layer, x):
            q = kernels.Queries(layer._queries(x, rows.pos), rows.rank)
            return layer._joined(kernels.attend_blocks(q, kernels.Keys(*kv), blocks))

        return cached.when(place.run, look, self, rows.x, self.width), kv

    def init_cache(self, batch: int, slots: int, length: int) -> cached.KV:
        """Returns an empty memory of that many keys and values for each row."""
        sizes = (batch, self.heads, slots, self.head_width)
        return cached.empty_kv(*sizes, self.dtype, length)

    def blocks(self, queries: Rows, keys: Rows) -> kernels.Blocks:
        """Returns which scores are computed, and by which kernel."""
        if self.reach != kernels.PAST:
            layout = kernels.window_layout(queries.count, self.reach)
            blocks = masked_blocks(self.kernel, layout, self.platform)
            return blocks._replace(reach=self.reach)
        layout = block_layout(queries, keys)
        kernel = self._fused_kernel(queries.count)
        if kernel and not queries.causal:
            return kernels.Blocks(layout, kernel, form="all", padding=keys.padding)
        if kernel and queries.plain and keys.plain:
            return kernels.Blocks(layout, kernel)
        if kernel and queries.slot is not None and keys.count == queries.length:
            return kernels.Blocks(layout, kernel, form="gathered")
        return masked_blocks(self.kernel, layout, self.platform)

    def fuses(self, rows: int) -> bool:
        """Returns whether a fused kernel computes it of so many rows, which are plain."""
        return bool(self._fused_kernel(rows)) and self.reach == kernels.PAST

    def _fused_kernel(self, rows: int) -> str:
        return fused_kernel(self.kernel, self.dtype, self.head_width, self.platform, rows)

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its heads, which pruning may remove; `place` is its parameter path."""
        C = self.head_width
        makers = (("q", 1), ("kv", 2))
        members = [Member(f"{place}/{name}/kernel", 1, C, blocks) for name, blocks in makers]
        if self.bias:
            members += [Member(f"{place}/{name}/bias", 0, C, blocks) for name, blocks in makers]
        out = Member(f"{place}/out/kernel", 0, C)
        return [Group(out.name, layer, "heads", self.heads, (out, *members))]

    def _heads(self, x_BxnxA):
        B, n, _ = x_BxnxA.shape
        return x_BxnxA.reshape(B, n, self.heads, self.head_width).swapaxes(1, 2)

    def _keys(self, keys: Rows):
        return self._split(as_matrix(self.kv, keys.x), keys.pos)

    def _split(self, kv_Bxnx2A, pos):
        k, v = (self._heads(x) for x in jnp.split(kv_Bxnx2A, 2, axis=2))
        return kernels.rope(k, pos), v

    def _queries(self, x_BxQxD, pos):
        return kernels.rope(self._heads(as_matrix(self.q, x_BxQxD)), pos)

    def _joined(self, o_BxHxQxC):
        B, H, Q, C = o_BxHxQxC.shape
        return as_matrix(self.out, o_BxHxQxC.swapaxes(1, 2).reshape(B, Q, H * C))
