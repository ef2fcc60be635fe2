"""Gated linear attention, in its chunked form (Yang et al. 2024, arXiv:2312.06635)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.linear import as_matrix, normal
from cerebra_jax.layers.parameters import Dense
from cerebra_jax.layers.prunable import Group, Member
from cerebra_jax.layers.recurrence import scan_tokens
from cerebra_jax.layers.rows import Rows, flip, mask_out

CHUNK = 16  # rows whose products are formed at once
SOFTNESS = 16.0  # the logarithm of a gate is divided by it: a new gate forgets little (their 4.4)
LOWEST = -2.5  # least logarithm of a gate: 16 of them leave e^-40, which float32 holds


def chunked_scan(q_BxHxLxC, k_BxHxLxC, v_BxHxLxC, log_gate_BxHxLxC):
    """Computes o_t = S_tᵀ q_t with S_t = diag(gate_t) S_{t−1} + k_t v_tᵀ, in float32: (B, H, L, C).

    Chunk by chunk (their equations 5 and 6): rows of a chunk see each other through a masked
    product, and all rows before it through the state, of C x C numbers a head. L is padded to whole
    chunks with rows whose key is 0 and whose gate is 1.
    """
    B, H, L, C = q_BxHxLxC.shape
    chunks = -(-L // CHUNK)

    def cut(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, chunks * CHUNK - L), (0, 0)))
        return jnp.moveaxis(x.reshape(B, H, chunks, CHUNK, C), 2, 0)

    earlier = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))[None, None]

    def chunk(state_BxHxCxC, now):
        q, k, v, log_gate = now
        decay = jnp.cumsum(log_gate, axis=2)
        q_decayed = q * jnp.exp(decay)
        within = jnp.einsum("bhic,bhjc->bhij", q_decayed, k * jnp.exp(-decay))
        within = jnp.where(earlier, within, 0.0)
        before = jnp.einsum("bhic,bhcv->bhiv", q_decayed, state_BxHxCxC)
        out = before + jnp.einsum("bhij,bhjv->bhiv", within, v)
        # the state after the chunk
        whole = decay[:, :, -1:]
        added = jnp.einsum("bhjc,bhjv->bhcv", k * jnp.exp(whole - decay), v)
        return jnp.exp(whole).swapaxes(2, 3) * state_BxHxCxC + added, out

    start = jnp.zeros((B, H, C, C), jnp.float32)
    inputs = tuple(map(cut, (q_BxHxLxC, k_BxHxLxC, v_BxHxLxC, log_gate_BxHxLxC)))
    out = jax.lax.scan(chunk, start, inputs)[1]
    return jnp.moveaxis(out, 0, 2).reshape(B, H, chunks * CHUNK, C)[:, :, :L]


class GatedLinearAttention(nn.Module):
    """Computes W_out(norm(GLA(q, k, v, gate)) ⊙ silu(W_r x)): (B, L, D) -> same, in linear time.

    q, k, v and the gates, sigmoid(W x)^(1/16) a feature of each key, are linear in x. The norm is a
    root mean square per head. The keys are the queries: a state reads the rows in order.
    """

    width: int
    heads: int
    head_width: int
    dtype: str = "float32"
    std: float = 0.02
    out_scale: float = 1.0

    pairwise = False
    directional = True  # it reads the rows in one direction
    step = CHUNK

    def setup(self):
        inner = self.heads * self.head_width
        self.q = self._linear(inner)
        self.kv = self._linear(2 * inner)
        self.gate = Dense(inner, True, jnp.float32, kernel_init=normal(self.std))
        self.up = self._linear(inner)
        init = normal(self.std * self.out_scale)
        self.out = Dense(self.width, False, jnp.dtype(self.dtype), kernel_init=init)

    @classmethod
    def of(cls, net: NetCfg, heads: int, out_scale: float, platform: str) -> GatedLinearAttention:
        """Returns the layer of a configuration, with so many of its heads left."""
        head_width = net.width // net.heads
        return cls(net.width, heads, head_width, net.dtype, net.init_std, out_scale, parent=None)

    def __call__(self, queries: Rows, keys: Rows, backwards=None) -> jax.Array:
        mask_BxL = None if keys.mask is None else flip(keys.mask, backwards)
        x_BxLxD = mask_out(flip(keys.x, backwards), mask_BxL)
        q, k, v, log_gate = self._projected(x_BxLxD)
        if mask_BxL is not None:  # padding changes no state
            log_gate = jnp.where(mask_BxL[:, None, :, None], log_gate, 0.0)
        o_BxHxLxC = chunked_scan(q, k, v, log_gate)
        return flip(self._result(o_BxHxLxC, x_BxLxD), backwards)

    def decode(self, rows: Rows, state_BxHxCxC, place: cached.Place):
        """Returns the result for a chunk of tokens, and the state after those that have a slot."""

        def step(state, now):
            q, k, v, log_gate = now
            state = jnp.exp(log_gate)[..., None] * state + k[..., None] * v[:, :, None]
            return state, jnp.einsum("bhc,bhcv->bhv", q, state)

        each = tuple(x.swapaxes(1, 2) for x in self._projected(rows.x))
        o_BxnxHxC, state_BxHxCxC = scan_tokens(step, state_BxHxCxC, each, place.keep)
        return self._result(o_BxnxHxC.swapaxes(1, 2), rows.x), state_BxHxCxC

    def init_cache(self, batch: int, slots: int, length: int) -> jax.Array:
        """Returns the state of rows that have read nothing."""
        return jnp.zeros((batch, self.heads, self.head_width, self.head_width), jnp.float32)

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its heads, which pruning may remove; `place` is its parameter path."""
        C = self.head_width
        makers = (("q", 1), ("kv", 2), ("gate", 1), ("up", 1))
        members = [Member(f"{place}/{name}/kernel", 1, C, blocks) for name, blocks in makers]
        members.append(Member(f"{place}/gate/bias", 0, C))
        out = Member(f"{place}/out/kernel", 0, C)
        return [Group(out.name, layer, "heads", self.heads, (out, *members))]

    def _linear(self, width: int) -> Dense:
        return Dense(width, False, jnp.dtype(self.dtype), kernel_init=normal(self.std))

    def _heads(self, x_BxLxA):
        B, L, _ = x_BxLxA.shape
        return x_BxLxA.reshape(B, L, self.heads, self.head_width).swapaxes(1, 2)

    def _projected(self, x_BxLxD):
        """Returns q, k, v and the logarithm of the gates, (B, H, L, C) float32 each."""
        q = self._heads(as_matrix(self.q, x_BxLxD)) * self.head_width**-0.5
        k, v = (self._heads(x) for x in jnp.split(as_matrix(self.kv, x_BxLxD), 2, axis=2))
        gate = self._heads(as_matrix(self.gate, x_BxLxD.astype(jnp.float32)))
        log_gate = jnp.maximum(jax.nn.log_sigmoid(gate) / SOFTNESS, LOWEST)
        return tuple(x.astype(jnp.float32) for x in (q, k, v, log_gate))

    def _result(self, o_BxHxLxC, x_BxLxD):
        B, H, L, C = o_BxHxLxC.shape
        size = jnp.square(o_BxHxLxC).mean(-1, keepdims=True)
        o_BxHxLxC = o_BxHxLxC * jax.lax.rsqrt(size + 1e-5)
        o_BxLxA = o_BxHxLxC.swapaxes(1, 2).reshape(B, L, H * C).astype(x_BxLxD.dtype)
        return as_matrix(self.out, o_BxLxA * jax.nn.silu(as_matrix(self.up, x_BxLxD)))
