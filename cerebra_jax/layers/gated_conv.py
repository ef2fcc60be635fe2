"""A gated, dilated 1-D convolution over the tokens.

Gates: Dauphin et al. 2017, arXiv:1612.08083. Dilations 1, 2, 4, …: van den Oord et al. 2016,
arXiv:1609.03499.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.layers.linear import linear
from cerebra_jax.layers.rows import Rows, mask_out


def cycle(taps: int, L: int) -> int:
    """Returns how many dilations 2⁰, 2¹, … it takes until a token sees L tokens."""
    n = 1
    while 1 + (taps - 1) * (2**n - 1) < L:
        n += 1
    return n


class GatedConv(nn.Module):
    """Computes a ⊙ σ(b) with (a, b) = conv(h): (B, L, D) -> same.

    A causal token sees itself and `taps` − 1 tokens before it, `dilation` apart; a token of an
    encoder sees them on both sides. The dilation follows from the layer's number: 1, 2, 4, … until
    a token sees all, and again from 1.
    """

    width: int
    taps: int
    depth: int  # of the model: the largest dilation
    causal: bool = True

    pairwise = False
    step = 1

    @nn.compact
    def __call__(self, queries: Rows, keys: Rows, number) -> jax.Array:
        L, D, taps = keys.count, self.width, self.taps
        n = cycle(taps, L)
        dilation = jnp.left_shift(1, number % n)  # an array: layers may be scanned
        ahead = 0 if self.causal else (taps - 1) // 2
        most = 2 ** (min(n, self.depth) - 1)
        before = (taps - 1 - ahead) * most
        x_BxLxD = mask_out(keys.x, keys.mask)
        padded = jnp.pad(x_BxLxD, ((0, 0), (before, ahead * most), (0, 0)))
        starts = [before + (ahead - i) * dilation for i in range(taps)]
        # side by side, the taps are one matrix product, whatever the dilation
        shifted = [jax.lax.dynamic_slice_in_dim(padded, start, L, axis=1) for start in starts]
        taps_BxLxKD = jnp.concatenate(shifted, axis=-1)
        ab_BxLx2D = linear(taps_BxLxKD, 2 * D, (taps * D) ** -0.5, "conv")
        a, b = jnp.split(ab_BxLx2D, 2, axis=-1)
        return a * jax.nn.sigmoid(b)
