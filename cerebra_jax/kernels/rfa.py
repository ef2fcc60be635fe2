"""Averages values by a Gaussian kernel between queries and keys, in linear time.

κ(q, k) = exp(−‖q − k‖²/2) ≈ φ(q)·φ(k) with φ(x) = [cos Ωx, sin Ωx]/√M and M frequencies from
N(0, I) (Rahimi & Recht 2007); of unit vectors κ ≥ e⁻², which bounds the sums that the estimate is
divided by. Σ_{j ≤ i} φ(k_j) v_jᵀ is a state of fixed size: chunk by chunk its prefix sums serve all
later tokens, and inside a chunk pairs are looked at (Katharopoulos et al. 2020, arXiv:2006.16236;
Peng et al. 2021, arXiv:2103.02143).
"""

from __future__ import annotations

import functools
import math
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 64  # tokens whose pairs are looked at; earlier ones are in the state

State = tuple[jax.Array, jax.Array]
"""Of the keys so far: Σ φ(k) [v, 1]ᵀ, (B, H, F, E), and how many they are, (B,)."""


@functools.lru_cache(maxsize=16)
def frequencies(heads: int, C: int, M: int) -> np.ndarray:
    """Returns Ω, (H, C, M), which is the same in every layer and run."""
    return np.random.RandomState(0).standard_normal((heads, C, M)).astype(np.float32)


def features(x_BxHxNxC, M: int) -> jax.Array:
    """Returns φ(x), (B, H, N, 2M) float32."""
    _, H, _, C = x_BxHxNxC.shape
    angle = jnp.einsum("bhnc,hcm->bhnm", x_BxHxNxC.astype(jnp.float32), frequencies(H, C, M))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) * M**-0.5


def prefix(fq_BxHxNxF, fk_BxHxNxF, v_BxHxNxE, state_BxHxFxE=None):
    """Returns Σ_{j ≤ i} (φ(q_i)·φ(k_j)) v_j for every i, (B, H, N, E) float32.

    Where v_j is 0, token j is no key. With the state of the tokens before (decoding) it returns
    (that, the state after them).
    """
    B, H, N, F = fq_BxHxNxF.shape
    E = v_BxHxNxE.shape[-1]
    c = min(N, CHUNK)
    n = -(-N // c)

    def chunks(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, n * c - N), (0, 0)))
        return x.reshape(B, H, n, c, x.shape[-1])

    # pairs inside the chunks
    q, k, v = chunks(fq_BxHxNxF), chunks(fk_BxHxNxF), chunks(v_BxHxNxE)
    past = np.tril(np.ones((c, c), bool))[None, None, None]
    pair = jnp.where(past, jnp.einsum("bhncf,bhnkf->bhnck", q, k), 0.0)
    y = jnp.einsum("bhnck,bhnke->bhnce", pair, v)

    # what stands before each chunk; without a state that is nothing before the first, and what the
    # last adds is not used
    first = int(state_BxHxFxE is None)
    if n > first:
        added = jnp.einsum("bhncf,bhnce->bhnfe", k[:, :, : n - first], v[:, :, : n - first])
        if first:
            before = jnp.cumsum(added, axis=2)
        else:
            sums = jnp.cumsum(jnp.concatenate([state_BxHxFxE[:, :, None], added], axis=2), axis=2)
            before, state_BxHxFxE = sums[:, :, :-1], sums[:, :, -1]
        seen = jnp.einsum("bhncf,bhnfe->bhnce", q[:, :, first:], before)
        y += jnp.pad(seen, ((0, 0), (0, 0), (first, 0), (0, 0), (0, 0)))
    y = y.reshape(B, H, n * c, E)[:, :, :N]
    return y if first else (y, state_BxHxFxE)


@overload
def average(fq_BxHxNxF, fk_BxHxNxF, v_BxHxNxC, key_BxN, state: None = None) -> jax.Array: ...


@overload
def average(
    fq_BxHxNxF, fk_BxHxNxF, v_BxHxNxC, key_BxN, state: State
) -> tuple[jax.Array, State]: ...


def average(fq_BxHxNxF, fk_BxHxNxF, v_BxHxNxC, key_BxN, state: State | None = None):
    """Returns Σ κ̂ v / Σ κ̂ over the keys so far, (B, H, N, C) float32; zeros where there is none.

    With the state of the tokens before, (Σ φ(k) [v, 1]ᵀ, how many keys (B,)), it returns (that, the
    state after them).
    """
    # the sums, and how many keys they are over
    one_BxHxNx1 = jnp.ones((*v_BxHxNxC.shape[:3], 1), jnp.float32)
    v1 = jnp.concatenate([v_BxHxNxC.astype(jnp.float32), one_BxHxNx1], axis=-1)
    v1 = jnp.where(key_BxN[:, None, :, None], v1, 0.0)
    count_BxN = jnp.cumsum(key_BxN.astype(jnp.int32), axis=1)
    if state is None:
        y = prefix(fq_BxHxNxF, fk_BxHxNxF, v1)
    else:
        count_BxN += state[1][:, None]
        y, sums = prefix(fq_BxHxNxF, fk_BxHxNxF, v1, state[0])
        state = (sums, count_BxN[:, -1])

    # divided by what Σ κ̂ is at least, where the estimate is less
    least = math.exp(-2) * jnp.maximum(count_BxN, 1).astype(jnp.float32)[:, None, :, None]
    y = y[..., :-1] / jnp.maximum(y[..., -1:], least)
    return y if state is None else (y, state)
