"""LSTM layer (Hochreiter & Schmidhuber 1997)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.linear import as_matrix, normal
from cerebra_jax.layers.parameters import Dense, Module
from cerebra_jax.layers.recurrence import scan_tokens
from cerebra_jax.layers.rows import Rows, flip


def _run(kernel_Dx4D, pre_LxBx4D, keep_LxB):
    """Returns h_t of every t: gates i, f, g, o from pre_t + h_{t−1} W.

    c_t = σ(f) c_{t−1} + σ(i) tanh(g), h_t = σ(o) tanh(c_t). The cell state is float32. Where keep
    is False (padding), h and c stay as they are.
    """
    B, D, dtype = pre_LxBx4D.shape[1], kernel_Dx4D.shape[0], pre_LxBx4D.dtype

    def step(carry, now):
        (h, c), (pre, keep) = carry, now
        out, cell = _cell(kernel_Dx4D, carry, pre)
        if keep is not None:
            out = jnp.where(keep[:, None], out, h)
            cell = jnp.where(keep[:, None], cell, c)
        return (out, cell), out

    start = (jnp.zeros((B, D), dtype), jnp.zeros((B, D), jnp.float32))
    return jax.lax.scan(step, start, (pre_LxBx4D, keep_LxB))[1]


def _cell(kernel_Dx4D, carry, pre_Bx4D):
    """Returns (h, c) after one token."""
    h, c = carry
    recurrent = jnp.matmul(h, kernel_Dx4D, preferred_element_type=jnp.float32)
    i, f, g, o = jnp.split(pre_Bx4D.astype(jnp.float32) + recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(cell)).astype(h.dtype), cell


@jax.custom_vjp
def recur(kernel_Dx4D, pre_LxBx4D, keep_LxB):
    """Returns `_run`; the kernel gets its gradient from one product after the loop.

    d kernel = Σ h_{t−1}ᵀ d pre_t. Left to autodiff, every step adds a whole matrix to the last.
    """
    return _run(kernel_Dx4D, pre_LxBx4D, keep_LxB)


def _forward(kernel, pre, keep):
    h_LxBxD, back = jax.vjp(lambda pre: _run(kernel, pre, keep), pre)
    return h_LxBxD, (h_LxBxD, back)


def _backward(residuals, dh_LxBxD):
    h_LxBxD, back = residuals
    (dpre,) = back(dh_LxBxD)
    before = jnp.concatenate([jnp.zeros_like(h_LxBxD[:1]), h_LxBxD[:-1]])
    rows, drows = (x.reshape(-1, x.shape[-1]) for x in (before, dpre))
    return (rows.T @ drows).astype(h_LxBxD.dtype), dpre, None


recur.defvjp(_forward, _backward)


def _forget_one(key, shape, dtype=jnp.float32):
    """Returns biases 0, of the forget gate 1 (Jozefowicz et al. 2015): a new cell remembers."""
    return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1)


class Memory(NamedTuple):
    """What the layer remembers while decoding."""

    h_BxD: jax.Array
    cell_BxD: jax.Array  # float32


class Lstm(Module):
    """Runs an LSTM over the rows, width D: (B, L, D) -> same."""

    width: int
    dtype: str = "float32"

    pairwise = False
    directional = True  # it reads the rows in one direction
    step = 1

    def setup(self):
        D, dtype = self.width, jnp.dtype(self.dtype)
        init = normal(D**-0.5)
        self.input = Dense(4 * D, True, dtype, kernel_init=init, bias_init=_forget_one)
        self.kernel = self.param("kernel", init, (D, 4 * D), jnp.float32)

    def __call__(self, queries: Rows, keys: Rows, backwards=None) -> jax.Array:
        B, L, D = keys.x.shape
        h_LxBxD = flip(keys.x, backwards).swapaxes(0, 1)
        pre_LxBx4D = self.input(h_LxBxD.reshape(L * B, D)).reshape(L, B, 4 * D)
        kernel = self.kernel.astype(jnp.dtype(self.dtype))
        keep_LxB = None if keys.mask is None else flip(keys.mask, backwards).T
        return flip(recur(kernel, pre_LxBx4D, keep_LxB).swapaxes(0, 1), backwards)

    def decode(self, rows: Rows, memory: Memory, place: cached.Place):
        """Returns the result for a chunk of tokens, and the memory after those that have a slot."""
        kernel = self.kernel.astype(jnp.dtype(self.dtype))

        def step(carry, pre_Bx4D):
            h, c = _cell(kernel, carry, pre_Bx4D)
            return Memory(h, c), h

        return scan_tokens(step, memory, as_matrix(self.input, rows.x), place.keep)

    def init_cache(self, batch: int, slots: int, length: int) -> Memory:
        """Returns the memory of rows that have read nothing."""
        cell_BxD = jnp.zeros((batch, self.width), jnp.float32)
        return Memory(cell_BxD.astype(self.dtype), cell_BxD)
