"""Selective state space model, the Mamba block (Gu & Dao 2023, arXiv:2312.00752): gated, diagonal, input-dependent."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import device, prices
from cerebra_jax.layers import block
from cerebra_jax.models.baselines import stack

EXPAND = 2  # inner width E per width
CHUNK = 16  # tokens whose states are computed again in the backward pass instead of being kept
UNROLL = 8  # tokens per turn of the loop off the CPU, where every turn costs a launch; on a CPU it only costs compiling


def selective_scan(dt_BxLxE, u_BxLxE, b_BxLxS, c_BxLxS, a_SxE):
    """y_t = Σ_s c_ts h_ts with h_t = exp(Δ_t A) h_{t−1} + Δ_t u_t b_t, a state of S numbers per feature; float32.

    Token by token: 7 operations per state and token. An associative scan needs several times as many (5 times the CPU
    time here), and B E S parallel states fill a device. Only every CHUNK-th state is kept for the backward pass.
    """
    (B, L, E), S = u_BxLxE.shape, a_SxE.shape[0]
    chunks = -(-L // CHUNK)

    def cut(x):  # (B, L, n) -> (chunks, CHUNK, B, n); with Δ = 0 the last tokens change no state
        x = jnp.pad(x.swapaxes(0, 1), ((0, chunks * CHUNK - L), (0, 0), (0, 0)))
        return x.reshape(chunks, CHUNK, B, x.shape[-1])

    def step(h_BxSxE, now):
        dt, du, b, c = now
        h_BxSxE = jnp.exp(dt[:, None] * a_SxE[None]) * h_BxSxE + du[:, None] * b[..., None]
        return h_BxSxE, (h_BxSxE * c[..., None]).sum(1)

    unroll = 1 if device.present_platform() == "cpu" else UNROLL
    body = jax.checkpoint(lambda h, now: jax.lax.scan(step, h, now, unroll=unroll))
    inputs = tuple(map(cut, (dt_BxLxE, dt_BxLxE * u_BxLxE, b_BxLxS, c_BxLxS)))
    with jax.named_scope(jaxpr.RECURRENCE):
        y = jax.lax.scan(body, jnp.zeros((B, S, E), jnp.float32), inputs)[1]
    return y.reshape(chunks * CHUNK, B, E)[:L].swapaxes(0, 1)


def rank(D: int) -> int:
    """Width from which the step size Δ is made."""
    return math.ceil(D / 16)


def _dt_bias(key, shape, dtype=jnp.float32):
    """Softplus⁻¹ of step sizes drawn log-uniformly from [0.001, 0.1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return dt + jnp.log(-jnp.expm1(-dt))


def _log_a(key, shape, dtype=jnp.float32):
    """A = −(1, …, S) for every feature, S4D-real (Gu et al. 2022, arXiv:2206.11893)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))[:, None], shape)


class Layer(nn.Module):
    """x + W_out(SSM(silu(conv u)) · silu(z)) with (u, z) = W_in LN x."""

    net: block.NetCfg

    @nn.compact
    def __call__(self, x_BxLxD, number, ex_B, mask_BxL):
        net, dtype = self.net, x_BxLxD.dtype
        D, S, E, R = net.width, net.ssm_state, EXPAND * net.width, rank(net.width)
        h_BxLxD = stack.turned(net, number, block.Norm(name="norm")(x_BxLxD))
        mask_BxL = stack.turned(net, number, mask_BxL)
        u, z = jnp.split(
            block._dense(2 * E, False, stack.silenced(h_BxLxD, mask_BxL), D**-0.5, "in"), 2, axis=-1
        )
        conv = block.Local(
            dataclasses.replace(net, local=net.kernel, causal=True, init_std=net.kernel**-0.5),
            name="conv",
        )
        bias = self.param("bias", nn.initializers.zeros, (E,), jnp.float32).astype(dtype)
        u = jax.nn.silu(conv(u) + bias[None, None])

        u32 = u.astype(jnp.float32)  # what selects, and the states, are float32
        low = block._dense(R + 2 * S, False, u32, E**-0.5, "select")
        step = nn.Dense(
            E, True, jnp.float32, kernel_init=block._init(R**-0.5), bias_init=_dt_bias, name="dt"
        )
        dt = stack.silenced(
            jax.nn.softplus(step(low[..., :R])), mask_BxL
        )  # padding changes no state
        a_SxE = -jnp.exp(self.param("log_a", _log_a, (S, E), jnp.float32))
        y = selective_scan(dt, u32, low[..., R : R + S], low[..., R + S :], a_SxE)
        y += self.param("scale", nn.initializers.ones, (E,), jnp.float32)[None, None] * u32
        y = block._dense(D, False, y.astype(dtype) * jax.nn.silu(z), (E * net.depth) ** -0.5, "out")
        return x_BxLxD + block.Drop(net.dropout)(ex_B, stack.turned(net, number, y)), None


class Ssm(stack.Stack):
    """net.depth Mamba blocks, states of net.ssm_state; an encoder reads forwards and backwards in turn."""

    layer = Layer

    @staticmethod
    def parts(net, L):
        """Linear maps, and 7 E S per token for the recurrence; the program runs whole chunks of tokens."""
        D, S, E, R = net.width, net.ssm_state, EXPAND * net.width, rank(net.width)
        maps = ((D, 2 * E), (E, R + 2 * S), (R, E), (E, D))
        linear = L * sum(prices.linear_flops(a, b) for a, b in maps)
        padded = -(-L // CHUNK) * CHUNK
        return {
            "maps": (linear, linear),
            "scan": tuple(n * prices.ssm_flops(E, S) for n in (L, padded)),
        }
