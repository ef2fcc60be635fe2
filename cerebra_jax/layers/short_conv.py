"""A short depthwise convolution over the tokens."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.linear import normal
from cerebra_jax.layers.parameters import Module
from cerebra_jax.layers.rows import Rows, mask_out


class ShortConv(Module):
    """Computes Σ_i w_i ⊙ h_{t−i} over this token and the taps − 1 before it: (B, L, D) -> same.

    In an encoder the taps lie around the token. A causal token cannot see the compressed window
    that it stands in, and with route.kv=routed not even its neighbour: this is how it does.
    Multiply-adds of shifted arrays, elementwise work by the conventions. Poli et al. 2023,
    arXiv:2302.10866, and Gu & Dao 2023, arXiv:2312.00752, put one before long-range mixing.
    """

    width: int
    taps: int
    causal: bool = True
    std: float = 0.02
    dtype: str = "float32"

    pairwise = False
    step = 1

    @classmethod
    def of(cls, net: NetCfg, heads: int, out_scale: float, platform: str) -> ShortConv:
        """Returns the convolution of a configuration: of net.local tokens, or net.kernel."""
        taps = net.local or net.kernel
        return cls(net.width, taps, net.causal, taps**-0.5 * out_scale, net.dtype, parent=None)

    def setup(self):
        self.w = self.param("w", normal(self.std), (self.taps, self.width), jnp.float32)

    def __call__(self, queries: Rows, keys: Rows) -> jax.Array:
        after = 0 if self.causal else (self.taps - 1) // 2
        x_BxLxD = mask_out(keys.x, keys.mask)
        padded = jnp.pad(x_BxLxD, ((0, 0), (self.taps - 1 - after, after), (0, 0)))
        return self._sum(padded, keys.count)

    def skipping(self, x_BxLxD, mask_BxL):
        """Returns the causal sum over the real tokens alone, as if they stood side by side."""
        # they move to the front, in order, and their sums back to where they stood
        order_BxL = jnp.argsort(~mask_BxL, axis=1, stable=True)
        packed = jnp.take_along_axis(mask_out(x_BxLxD, mask_BxL), order_BxL[..., None], axis=1)
        padded = jnp.pad(packed, ((0, 0), (self.taps - 1, 0), (0, 0)))
        back_BxLx1 = jnp.argsort(order_BxL, axis=1)[..., None]
        return jnp.take_along_axis(self._sum(padded, x_BxLxD.shape[1]), back_BxLx1, axis=1)

    def decode(self, rows: Rows, recent_BxTxD, place=None):
        """Returns the same for a chunk of tokens, and the tokens before the next chunk."""
        x_BxnxD = mask_out(rows.x, rows.mask)
        padded, recent_BxTxD = cached.slide(recent_BxTxD, x_BxnxD, rows.mask)
        return self._sum(padded, rows.count), recent_BxTxD

    def decode_some(self, x_BxnxD, recent_BxTxD, keep_Bxn):
        """Returns the same where only the tokens of `keep` join, wherever they stand in it."""
        w_TxD = self.w.astype(x_BxnxD.dtype)

        def step(recent_BxTxD, now):
            x_BxD, keep_B = now
            seen = jnp.concatenate([recent_BxTxD, x_BxD[:, None]], axis=1)
            y_BxD = (seen * w_TxD[None]).sum(1)
            return jnp.where(keep_B[:, None, None], seen[:, 1:], recent_BxTxD), y_BxD

        each = (x_BxnxD.swapaxes(0, 1), keep_Bxn.T)
        recent_BxTxD, y_nxBxD = jax.lax.scan(step, recent_BxTxD, each)
        return y_nxBxD.swapaxes(0, 1), recent_BxTxD

    def init_cache(self, batch: int, slots: int, length: int) -> jax.Array:
        """Returns the tokens before the first one: zeros."""
        return jnp.zeros((batch, self.taps - 1, self.width), self.dtype)

    def _sum(self, padded, L: int) -> jax.Array:
        w_TxD = self.w.astype(padded.dtype)
        shifted = (padded[:, i : i + L] * w_TxD[i][None, None] for i in range(self.taps))
        return cast(jax.Array, sum(shifted))  # of one tap or more, so it is no bare 0
