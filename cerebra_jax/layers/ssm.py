"""Selective state space layer: gated, diagonal, input-dependent (Mamba).

Gu & Dao 2023, arXiv:2312.00752.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost.scopes import RECURRENCE
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.linear import as_matrix, normal
from cerebra_jax.layers.parameters import Dense, Module
from cerebra_jax.layers.recurrence import scan_tokens
from cerebra_jax.layers.rows import Rows, flip, mask_out
from cerebra_jax.layers.short_conv import ShortConv

EXPAND = 2  # inner width E per width
CHUNK = 16  # tokens whose states are computed again in the backward pass instead of being kept
UNROLL = 8  # tokens per turn of the loop off the CPU, where every turn costs a launch


def selective_scan(dt_BxLxE, u_BxLxE, b_BxLxS, c_BxLxS, a_SxE, unroll: int = 1):
    """Computes y_t = Σ_s c_ts h_ts with h_t = exp(Δ_t A) h_{t−1} + Δ_t u_t b_t, in float32.

    A state of S numbers per feature. Token by token: 7 operations per state and token. An
    associative scan needs several times as many (5 times the CPU time), and B E S parallel states
    fill a device. Only every CHUNK-th state is kept for the backward pass.
    """
    (B, L, E), S = u_BxLxE.shape, a_SxE.shape[0]
    chunks = -(-L // CHUNK)

    def cut(x):  # (B, L, n) -> (chunks, CHUNK, B, n); with Δ = 0 the last tokens change no state
        x = jnp.pad(x.swapaxes(0, 1), ((0, chunks * CHUNK - L), (0, 0), (0, 0)))
        return x.reshape(chunks, CHUNK, B, x.shape[-1])

    def step(h_BxSxE, now):
        return _step(h_BxSxE, now, a_SxE)

    def body(h, now):
        return jax.lax.scan(step, h, now, unroll=unroll)

    inputs = tuple(map(cut, (dt_BxLxE, dt_BxLxE * u_BxLxE, b_BxLxS, c_BxLxS)))
    with jax.named_scope(RECURRENCE):
        start = jnp.zeros((B, S, E), jnp.float32)
        y = jax.lax.scan(jax.checkpoint(body), start, inputs)[1]
    return y.reshape(chunks * CHUNK, B, E)[:L].swapaxes(0, 1)


def _step(h_BxSxE, now, a_SxE):
    dt, du, b, c = now
    h_BxSxE = jnp.exp(dt[:, None] * a_SxE[None]) * h_BxSxE + du[:, None] * b[..., None]
    return h_BxSxE, (h_BxSxE * c[..., None]).sum(1)


def rank(width: int) -> int:
    """Returns the width from which the step size Δ is made."""
    return math.ceil(width / 16)


def _dt_bias(key, shape, dtype=jnp.float32):
    """Returns softplus⁻¹ of step sizes drawn log-uniformly from [0.001, 0.1]."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return dt + jnp.log(-jnp.expm1(-dt))


def _log_a(key, shape, dtype=jnp.float32):
    """Returns log(1, …, S) for each feature: A of S4D-real (Gu et al. 2022, arXiv:2206.11893)."""
    row = jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))
    return jnp.broadcast_to(row[:, None], shape)


class Memory(NamedTuple):
    """What the layer remembers while decoding."""

    state_BxSxE: jax.Array
    recent: jax.Array  # of the short convolution


class SelectiveStateSpace(Module):
    """Computes W_out(SSM(silu(conv u)) · silu(z)) with (u, z) = W_in x: (B, L, D) -> same.

    The keys are the queries: a state reads the rows in order. `backwards`: an array; where true,
    from the last row to the first (an encoder's every second layer).
    """

    width: int
    state: int
    taps: int
    dtype: str = "float32"
    out_std: float = 0.02
    platform: str = "cpu"

    pairwise = False
    directional = True  # it reads the rows in one direction
    step = CHUNK

    def setup(self):
        D, E, S = self.width, EXPAND * self.width, self.state
        dtype = jnp.dtype(self.dtype)
        init = {"conv": self.taps**-0.5, "dt": rank(D) ** -0.5}
        self.conv = ShortConv(E, self.taps, True, init["conv"], self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (E,), jnp.float32)
        self.log_a = self.param("log_a", _log_a, (S, E), jnp.float32)
        self.scale = self.param("scale", nn.initializers.ones, (E,), jnp.float32)
        # the parameters stand under "in", which is a word of the language
        setattr(self, "in", Dense(2 * E, False, dtype, kernel_init=normal(D**-0.5)))
        select = normal(E**-0.5)
        self.select = Dense(rank(D) + 2 * S, False, jnp.float32, kernel_init=select)
        step = normal(init["dt"])
        self.dt = Dense(E, True, jnp.float32, kernel_init=step, bias_init=_dt_bias)
        self.out = Dense(D, False, dtype, kernel_init=normal(self.out_std))

    @classmethod
    def of(cls, net: NetCfg, heads: int, out_scale: float, platform: str) -> SelectiveStateSpace:
        """Returns the layer of a configuration; it has no heads."""
        out_std = (EXPAND * net.width) ** -0.5 * out_scale
        return cls(
            net.width,
            net.ssm_state,
            net.kernel,
            dtype=net.dtype,
            out_std=out_std,
            platform=platform,
            parent=None,
        )

    def __call__(self, queries: Rows, keys: Rows, backwards=None) -> jax.Array:
        mask_BxL = None if keys.mask is None else flip(keys.mask, backwards)
        x_BxLxD = mask_out(flip(keys.x, backwards), mask_BxL)
        u, z = jnp.split(as_matrix(getattr(self, "in"), x_BxLxD), 2, axis=-1)
        if mask_BxL is None:
            conv = self.conv(keys.with_x(u), keys.with_x(u))
        else:  # like the state, its taps skip padding, empty slots and tokens that are not kept
            conv = self.conv.skipping(u, mask_BxL)
        u32, dt, b, c = self._selected(conv, x_BxLxD.dtype, mask_BxL)
        a_SxE = -jnp.exp(self.log_a)
        unroll = 1 if self.platform == "cpu" else UNROLL  # on a CPU it only costs compiling
        y = selective_scan(dt, u32, b, c, a_SxE, unroll)
        return flip(self._result(y, u32, z, x_BxLxD.dtype), backwards)

    def decode(self, rows: Rows, memory: Memory, place: cached.Place):
        """Returns the result for a chunk of tokens, and the memory after those that have a slot."""
        keep_Bxn = place.keep
        u, z = jnp.split(as_matrix(getattr(self, "in"), rows.x), 2, axis=-1)
        conv, recent = self.conv.decode_some(u, memory.recent, keep_Bxn)
        u32, dt, b, c = self._selected(conv, rows.x.dtype, None)
        a_SxE = -jnp.exp(self.log_a)

        def step(h_BxSxE, now):
            return _step(h_BxSxE, now, a_SxE)

        with jax.named_scope(RECURRENCE):
            inputs = (dt, dt * u32, b, c)
            y, state = scan_tokens(step, memory.state_BxSxE, inputs, keep_Bxn)
        return self._result(y, u32, z, rows.x.dtype), Memory(state, recent)

    def init_cache(self, batch: int, slots: int, length: int) -> Memory:
        """Returns the memory of rows that have read nothing."""
        E = EXPAND * self.width
        recent = jnp.zeros((batch, self.taps - 1, E), self.dtype)
        return Memory(jnp.zeros((batch, self.state, E), jnp.float32), recent)

    def prunable(self, place: str, layer: int) -> list:
        """Returns nothing: what selects ties all features together."""
        return []

    def _selected(self, conv_BxLxE, dtype, mask_BxL):
        """Returns what the scan reads, in float32: u, Δ, b, c."""
        u32 = jax.nn.silu(conv_BxLxE + self.bias.astype(dtype)[None, None]).astype(jnp.float32)
        R, S = rank(self.width), self.state
        low = as_matrix(self.select, u32)
        dt = mask_out(jax.nn.softplus(self.dt(low[..., :R])), mask_BxL)  # padding changes no state
        return u32, dt, low[..., R : R + S], low[..., R + S :]

    def _result(self, y, u32, z, dtype):
        y += self.scale[None, None] * u32
        return as_matrix(self.out, y.astype(dtype) * jax.nn.silu(z))
