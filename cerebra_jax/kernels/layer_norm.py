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
    """Returns the gradients, with c = x − mean, and u = dy · scale/√(var + ε).

    dx = u − mean u − c · mean(u · c)/(var + ε), in float32; shapes are those of the inputs. XLA's
    CPU compiler makes a faster program of this order than of one with the normalised x.
    """
    x_NxD, scale_D, mean_Nx1, rate_Nx1 = residuals
    dy = dy_NxD.astype(jnp.float32)
    c_NxD = x_NxD.astype(jnp.float32) - mean_Nx1
    u_NxD = dy * (rate_Nx1 * scale_D[None])
    along_Nx1 = (u_NxD * c_NxD).mean(-1, keepdims=True) * jnp.square(rate_Nx1)
    dx_NxD = u_NxD - u_NxD.mean(-1, keepdims=True) - c_NxD * along_Nx1
    return dx_NxD.astype(x_NxD.dtype), (dy * (c_NxD * rate_Nx1)).sum(0), dy.sum(0)


layer_norm.defvjp(_forward, _backward)
