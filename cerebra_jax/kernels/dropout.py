"""Drops out entries by masks that do not depend on how the batch lies on the devices.

What counts is an example's index in the global batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(key, ex_B, x_BxLxD, rate: float) -> jax.Array:
    """Zeroes a fraction `rate` of the entries and scales the rest by 1/(1 − rate).

    It is the identity where `key` is None.
    """
    if key is None or rate == 0.0:
        return x_BxLxD
    mask = jax.vmap(
        lambda e: jax.random.bernoulli(jax.random.fold_in(key, e), 1 - rate, x_BxLxD.shape[1:])
    )(ex_B)
    return jnp.where(mask, x_BxLxD / (1 - rate), jnp.zeros((), x_BxLxD.dtype))
