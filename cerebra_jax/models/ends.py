"""The ends of a model: what a token is to it (its row of the table, those of its character n-grams, the number that it
carries), and how tokens become one."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg

_init = nn.initializers.normal(0.02)


class Embed(nn.Module):
    """Token table, (B, L) int32 -> (B, L, D); the same table is the output matrix (tied head).

    With n-grams, (B, L, G) rows of the same table or −1 for none, a token is its row + the mean of theirs: a word that
    training never showed is known by its parts. Bojanowski et al. 2017, arXiv:1607.04606.
    """

    vocab: int
    net: NetCfg

    @nn.compact
    def __call__(self, ids_BxL, subwords_BxLxG=None):
        table_VxD = self.param(
            "table", nn.initializers.normal(self.net.init_std), (self.vocab, self.net.width), jnp.float32
        )
        x_BxLxD = table_VxD[ids_BxL]
        if subwords_BxLxG is not None:
            there_BxLxG = subwords_BxLxG >= 0
            rows_BxLxGxD = jnp.where(there_BxLxG[..., None], table_VxD[jnp.maximum(subwords_BxLxG, 0)], 0.0)
            x_BxLxD += rows_BxLxGxD.sum(2) / jnp.maximum(there_BxLxG.sum(2), 1)[..., None]
        return x_BxLxD.astype(self.net.dtype), table_VxD


class Columns(nn.Module):
    """Tokens that carry numbers: value · embedding + a bias of the place (Gorishniy et al. 2021, arXiv:2106.11959)."""

    @nn.compact
    def __call__(self, x_BxLxD, values_BxL):
        bias_LxD = self.param("bias", _init, x_BxLxD.shape[1:], jnp.float32)
        return values_BxL[..., None].astype(x_BxLxD.dtype) * x_BxLxD + bias_LxD.astype(x_BxLxD.dtype)[None]


def pool(kind: str, h_BxLxD, mask_BxL):
    """(B, 1, D) in float32: the mean over the real tokens, or (max) each feature's largest value among them."""
    h = h_BxLxD.astype(jnp.float32)
    real_BxLx1 = None if mask_BxL is None else mask_BxL[..., None]
    if kind == "max":  # padding stands at the least of all values: finite, where nothing else is there
        return (h if mask_BxL is None else jnp.where(real_BxLx1, h, h.min(1, keepdims=True))).max(1, keepdims=True)
    if mask_BxL is None:
        return h.mean(1, keepdims=True)
    return jnp.where(real_BxLx1, h, 0.0).sum(1, keepdims=True) / jnp.maximum(real_BxLx1.sum(1, keepdims=True), 1)
