"""FNet's mixing of tokens: a Fourier transform, which has no weights.

Lee-Thorp et al. 2021, arXiv:2105.03824.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.layers.rows import Rows, mask_out


def mix(x_BxLxD):
    """Returns the real part of the orthonormal 2-D Fourier transform over tokens and features.

    In float32. Of real input, half of the transform tells the rest: its value at (l, d) is the
    conjugate of that at (−l, −d).
    """
    D = x_BxLxD.shape[2]
    half = jnp.fft.rfft2(x_BxLxD.astype(jnp.float32), axes=(1, 2), norm="ortho").real
    mirrored = jnp.roll(half[:, ::-1], 1, axis=1)[:, :, 1 : (D + 1) // 2]
    return jnp.concatenate([half, mirrored[:, :, ::-1]], axis=2).astype(x_BxLxD.dtype)


class FourierMixing(nn.Module):
    """Mixes all tokens with `mix`; padding counts as zeros. (B, L, D) -> same."""

    pairwise = False
    step = 1

    def __call__(self, queries: Rows, keys: Rows) -> jax.Array:
        return mix(mask_out(keys.x, keys.mask))
