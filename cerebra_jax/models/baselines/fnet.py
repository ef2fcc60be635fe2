"""FNet: tokens are mixed by a Fourier transform, which has no weights (Lee-Thorp et al. 2021, arXiv:2105.03824)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.cost import prices
from cerebra_jax.layers import block
from cerebra_jax.models.baselines import stack


def mix(x_BxLxD):
    """Real part of the orthonormal 2-D Fourier transform over tokens and features, in float32.

    Of real input, half of the transform tells the rest: its value at (l, d) is the conjugate of that at (−l, −d).
    """
    D = x_BxLxD.shape[2]
    half = jnp.fft.rfft2(x_BxLxD.astype(jnp.float32), axes=(1, 2), norm="ortho").real
    mirrored = jnp.roll(half[:, ::-1], 1, axis=1)[:, :, 1 : (D + 1) // 2]
    return jnp.concatenate([half, mirrored[:, :, ::-1]], axis=2).astype(x_BxLxD.dtype)


class Layer(nn.Module):
    """x + Re F(LN x), then x + FFN(LN x). The paper's LayerNorms stand after the sums and its transform is not scaled;
    before them and orthonormal, as here, it trains like the other models of the table."""

    net: block.NetCfg

    @nn.compact
    def __call__(self, x_BxLxD, number, ex_B, mask_BxL):
        net, drop = self.net, block.Drop(self.net.dropout)
        x_BxLxD += drop(ex_B, mix(stack.silenced(block.Norm(name="mix_norm")(x_BxLxD), mask_BxL)))
        ffn = block.FeedForward(net, out_scale=block.out_scale(net), name="ffn")
        return x_BxLxD + drop(ex_B, ffn(block.Norm(name="ffn_norm")(x_BxLxD))), None


class Fnet(stack.Stack):
    """Encoder of net.depth layers; every token sees every token, so there is no causal form."""

    layer = Layer

    @staticmethod
    def parts(net, L):
        """One real FFT of L · D points, and the FFN."""
        mixing, ffn = prices.rfft_flops(L * net.width), block.ffn_flops(net, L)
        return {"mix": (mixing, mixing), "ffn": (ffn, ffn)}
