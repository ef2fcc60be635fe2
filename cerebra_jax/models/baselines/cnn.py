"""Gated, dilated 1-D convolutions with residuals.

Gates: Dauphin et al. 2017, arXiv:1612.08083. Dilations 1, 2, 4, …: van den Oord et al. 2016, arXiv:1609.03499.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.cost import prices
from cerebra_jax.layers import block
from cerebra_jax.models.baselines import stack


def cycle(taps: int, L: int) -> int:
    """Dilations 2⁰ … 2ⁿ⁻¹ after which they start again: with those a token sees L tokens."""
    n = 1
    while 1 + (taps - 1) * (2**n - 1) < L:
        n += 1
    return n


class Layer(nn.Module):
    """x + a ⊙ σ(b) with (a, b) = conv(LN x): a causal token sees itself and K − 1 tokens before it, `dilation` apart; a
    token of an encoder sees them on both sides."""

    net: block.NetCfg

    @nn.compact
    def __call__(self, x_BxLxD, number, ex_B, mask_BxL):
        net = self.net
        L, D, taps = x_BxLxD.shape[1], net.width, net.kernel
        n = cycle(taps, L)
        dilation = jnp.left_shift(1, number % n)  # an array: layers may be scanned
        h_BxLxD = stack.silenced(block.Norm(name="norm")(x_BxLxD), mask_BxL)
        ahead = 0 if net.causal else (taps - 1) // 2
        most = 2 ** (min(n, net.depth) - 1)
        before = (taps - 1 - ahead) * most
        padded = jnp.pad(h_BxLxD, ((0, 0), (before, ahead * most), (0, 0)))
        starts = [before + (ahead - i) * dilation for i in range(taps)]
        # side by side, the taps are one matrix product: the FLOPs of the convolution, whatever the dilation
        taps_BxLxKD = jnp.concatenate(
            [jax.lax.dynamic_slice_in_dim(padded, s, L, axis=1) for s in starts], axis=-1
        )
        a, b = jnp.split(
            block._dense(2 * D, False, taps_BxLxKD, (taps * D) ** -0.5, "conv"), 2, axis=-1
        )
        return x_BxLxD + block.Drop(net.dropout)(ex_B, a * jax.nn.sigmoid(b)), None


class Cnn(stack.Stack):
    """net.depth gated convolutions of net.kernel taps, dilated 1, 2, 4, … until a token sees all, and again from 1."""

    layer = Layer

    @staticmethod
    def parts(net, L):
        """2 K D · 2 D per token."""
        flops = prices.conv_flops(L, net.kernel, net.width, 2 * net.width)
        return {"conv": (flops, flops)}
