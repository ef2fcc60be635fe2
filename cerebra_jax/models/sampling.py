"""Continues prompts with a cache: one chunk reads them, one scan writes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cerebra_jax.layers.cache import Cache
from cerebra_jax.models.model import Model


def choose(key: jax.Array, logits_BxV: jax.Array, temperature, top_p) -> jax.Array:
    """A token for each row, (B,) int32: the likeliest at temperature 0, else drawn from softmax(logits / temperature)
    cut to the fewest tokens that hold `top_p` of it (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751)."""
    likeliest_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    scaled_BxV = logits_BxV / jnp.maximum(temperature, 1e-6)
    falling_BxV = jnp.flip(jnp.sort(scaled_BxV, axis=-1), axis=-1)
    p_BxV = jax.nn.softmax(falling_BxV, axis=-1)
    in_BxV = jnp.cumsum(p_BxV, axis=-1) - p_BxV < top_p  # what is likelier does not hold top_p yet
    in_BxV |= falling_BxV == falling_BxV[:, :1]  # the likeliest always
    least_Bx1 = jnp.where(in_BxV, falling_BxV, jnp.inf).min(-1, keepdims=True)
    drawn_B = jax.random.categorical(
        key, jnp.where(scaled_BxV >= least_Bx1, scaled_BxV, -jnp.inf)
    ).astype(jnp.int32)
    return jnp.where(temperature > 0, drawn_B, likeliest_B)


def generate(model: Model, variables: Any, key: jax.Array, prompt_BxP, length_B, count: int, temperature=0.0,
             top_p=1.0) -> tuple[jax.Array, Cache]:  # fmt: skip
    """`count` tokens after each prompt, (B, count) int32, and the cache, which holds the decisions taken.

    The first length_B tokens (at least one) of each row are its prompt; with `count` more they must fit into the
    context length. Pure, to be jitted with `model` and `count` static.
    """
    B, variables = prompt_BxP.shape[0], model.fold(variables)  # here, not in every step of the scan
    out, cache = model.decode(variables, model.init_cache(jnp.arange(B)), prompt_BxP, length_B)
    last_BxD = jnp.take_along_axis(out.h, (length_B - 1)[:, None, None], axis=1)[:, 0]

    def step(carry, key):
        h_BxD, cache = carry
        logits_BxV = h_BxD.astype(jnp.float32) @ out.head_VxD.T
        token_B = choose(key, logits_BxV, temperature, top_p)
        after, cache = model.decode(variables, cache, token_B)
        return (after.h[:, 0], cache), token_B

    (_, cache), token_TxB = jax.lax.scan(step, (last_BxD, cache), jax.random.split(key, count))
    return token_TxB.T, cache
