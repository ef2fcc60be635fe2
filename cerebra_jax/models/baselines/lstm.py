"""Stacked LSTM (Hochreiter & Schmidhuber 1997), each layer with a LayerNorm before it and a residual around it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.cost import prices
from cerebra_jax.layers import block
from cerebra_jax.models.baselines import stack


def _run(kernel_Dx4D, pre_LxBx4D, keep_LxB):
    """h_t of every t: gates i, f, g, o from pre_t + h_{t−1} W, c_t = σ(f) c_{t−1} + σ(i) tanh(g), h_t = σ(o) tanh(c_t).

    The cell state is float32. Where keep is False (padding), h and c stay as they are.
    """
    B, D, dtype = pre_LxBx4D.shape[1], kernel_Dx4D.shape[0], pre_LxBx4D.dtype

    def step(carry, x):
        (h, c), (pre, keep) = carry, x
        z = pre.astype(jnp.float32) + jnp.matmul(h, kernel_Dx4D, preferred_element_type=jnp.float32)
        i, f, g, o = jnp.split(z, 4, axis=-1)
        now = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        out = (jax.nn.sigmoid(o) * jnp.tanh(now)).astype(dtype)
        if keep is not None:
            out, now = jnp.where(keep[:, None], out, h), jnp.where(keep[:, None], now, c)
        return (out, now), out

    start = jnp.zeros((B, D), dtype), jnp.zeros((B, D), jnp.float32)
    return jax.lax.scan(step, start, (pre_LxBx4D, keep_LxB))[1]


@jax.custom_vjp
def recur(kernel_Dx4D, pre_LxBx4D, keep_LxB):
    """`_run`, whose kernel gets its gradient from one matmul after the loop: d kernel = Σ h_{t−1}ᵀ d pre_t. Left to
    autodiff, every step adds a whole matrix of gradients to the last."""
    return _run(kernel_Dx4D, pre_LxBx4D, keep_LxB)


def _fwd(kernel, pre, keep):
    h_LxBxD, back = jax.vjp(lambda pre: _run(kernel, pre, keep), pre)
    return h_LxBxD, (h_LxBxD, back)


def _bwd(res, dh):
    h_LxBxD, back = res
    (dpre,) = back(dh)
    before = jnp.concatenate([jnp.zeros_like(h_LxBxD[:1]), h_LxBxD[:-1]])
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    return (flat(before).T @ flat(dpre)).astype(h_LxBxD.dtype), dpre, None


recur.defvjp(_fwd, _bwd)


def _forget_one(key, shape, dtype=jnp.float32):
    """Biases 0, those of the forget gate 1 (Jozefowicz et al. 2015): a new cell remembers."""
    return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1)


class Layer(nn.Module):
    """x + LSTM(LN x), width D."""

    net: block.NetCfg

    @nn.compact
    def __call__(self, x_BxLxD, number, ex_B, mask_BxL):
        net, dtype = self.net, x_BxLxD.dtype
        B, L, D = x_BxLxD.shape
        h_LxBxD = stack.turned(net, number, block.Norm(name="norm")(x_BxLxD)).swapaxes(0, 1)
        init = block._init(D**-0.5)
        gates = nn.Dense(4 * D, True, dtype, kernel_init=init, bias_init=_forget_one, name="input")
        pre_LxBx4D = gates(h_LxBxD.reshape(L * B, D)).reshape(L, B, 4 * D)
        kernel = self.param("kernel", init, (D, 4 * D), jnp.float32).astype(dtype)
        keep_LxB = None if mask_BxL is None else stack.turned(net, number, mask_BxL).T
        y_BxLxD = stack.turned(net, number, recur(kernel, pre_LxBx4D, keep_LxB).swapaxes(0, 1))
        return x_BxLxD + block.Drop(net.dropout)(ex_B, y_BxLxD), None


class Lstm(stack.Stack):
    """net.depth LSTM layers of width net.width; an encoder reads forwards and backwards in turn."""

    layer = Layer

    @staticmethod
    def parts(net, L):
        """8 h (h + x) per token."""
        flops = 2 * L * prices.linear_flops(net.width, 4 * net.width)
        return {"lstm": (flops, flops)}
