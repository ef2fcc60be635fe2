"""Layer normalisation in float32."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.kernels.layer_norm import layer_norm
from cerebra_jax.layers.linear import as_matrix
from cerebra_jax.layers.parameters import Module


class Norm(nn.Module):
    """Normalises the last axis (LayerNorm, Ba et al. 2016) in float32; keeps shape and dtype.

    As a matrix: the gradient of scale and bias is 9 times slower on XLA's CPU for (1, 8192, 256),
    because it is not cut into parallel tasks where the first axis is 1.
    """

    @nn.compact
    def __call__(self, x):
        return as_matrix(_OfRows(name="norm"), x)


class _OfRows(Module):
    """Normalises the rows of a matrix."""

    @nn.compact
    def __call__(self, x_NxD):
        shape = x_NxD.shape[1:]
        scale_D = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return layer_norm(x_NxD, scale_D, bias_D, 1e-5)
