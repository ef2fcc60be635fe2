"""LayerNorm whose backward pass is given its input and two numbers per row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x_NxD, scale_D, bias_D, epsilon: float):
    """Returns (x − mean)/√(var + ε) · scale + bias of each row, in float32, in the dtype of x.

    Ba et al. 2016, arXiv:1607.06450. The variance is E[x²] − E[x]², so x is read once.
    """
    return _forward(x_NxD, scale_D, bias_D, epsilon)[0]


def _forward(x_NxD, scale_D, bias_D, epsilon: float):
    x = x_NxD.astype(jnp.float32)
    mean_Nx1 = x.mean(-1, keepdims=True)
    square_Nx1 = jnp.square(x).mean(-1, keepdims=True)
    var_Nx1 = jnp.maximum(square_Nx1 - jnp.square(mean_Nx1), 0.0)
    rate_Nx1 = jax.lax.rsqrt(var_Nx1 + epsilon)
    y_NxD = (x - mean_Nx1) * (rate_Nx1 * scale_D[None]) + bias_D[None]
    return y_NxD.astype(x_NxD.dtype), (x_NxD, scale_D, mean_Nx1, rate_Nx1)


def _backward(epsilon: float, residuals, dy_NxD):
    """Returns the gradients, with z the normalised x and g = dy · scale.

    dx = (g − mean g − z · mean(g · z))/√(var + ε).
    """
    x_NxD, scale_D, mean_Nx1, rate_Nx1 = residuals
    dy = dy_NxD.astype(jnp.float32)
    z_NxD = (x_NxD.astype(jnp.float32) - mean_Nx1) * rate_Nx1
    g_NxD = dy * scale_D[None]
    along_Nx1 = (g_NxD * z_NxD).mean(-1, keepdims=True)
    dx_NxD = rate_Nx1 * (g_NxD - g_NxD.mean(-1, keepdims=True) - z_NxD * along_Nx1)
    return dx_NxD.astype(x_NxD.dtype), (dy * z_NxD).sum(0), dy.sum(0)


layer_norm.defvjp(_forward, _backward)
