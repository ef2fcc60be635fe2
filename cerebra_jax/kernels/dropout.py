"""Drops out entries by masks that do not depend on how the batch lies on the devices.

What counts is an example's index in the global batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

_LEVELS = 1 << 16  # the rate is rounded to a multiple of 1/65,536: a draw takes half a word


def dropout(key, ex_B, x_BxLxD, rate: float) -> jax.Array:
    """Zeroes a fraction `rate` of the entries and scales the rest by 1/(1 − rate).

    It is the identity where `key` is None.
    """
    if key is None or rate == 0.0:
        return x_BxLxD
    dropped = max(1, min(_LEVELS - 1, round(rate * _LEVELS)))
    kept_BxLxD = draws(key, ex_B, x_BxLxD.shape) >= dropped
    return jnp.where(kept_BxLxD, x_BxLxD / (1 - dropped / _LEVELS), jnp.zeros((), x_BxLxD.dtype))


def draws(key, ex_B, shape: tuple[int, int, int]) -> jax.Array:
    """Returns whole numbers, uniform in [0, 65,536), of shape (B, L, D).

    They are Threefry-2x32 (Salmon et al. 2011) of the counter (example, place in the example): one
    elementwise program for the whole batch. A key for each example, folded and mapped over, would
    be thousands of scalar kernels on a TPU. key: of any generator; ex_B: (B,) whole numbers.
    """
    B, L, D = shape
    columns = -(-D // 4)  # a counter gives two words, and a word two numbers
    key_2 = jax.random.bits(key, (2,), np.uint32)
    places_LxC = np.arange(L * columns, dtype=np.uint32).reshape(L, columns)
    place_BxLxC = jnp.broadcast_to(places_LxC[None], (B, L, columns))
    ex_BxLxC = jnp.broadcast_to(
        jnp.asarray(ex_B).astype(np.uint32)[:, None, None], place_BxLxC.shape
    )
    words = threefry2x32_p.bind(
        *(jnp.broadcast_to(word, place_BxLxC.shape) for word in key_2), ex_BxLxC, place_BxLxC
    )
    halves = [half for word in words for half in (word & (_LEVELS - 1), word >> 16)]
    return jnp.concatenate(halves, axis=2)[:, :, :D]
