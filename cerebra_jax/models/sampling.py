"""Continues prompts with a cache: one chunk reads them, one scan writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.layers.cache import Cache
from cerebra_jax.models.model import Model


def choose(key: jax.Array, logits_BxV: jax.Array, temperature, top_p) -> jax.Array:
    """Returns a token for each row, (B,) int32.

    The likeliest at temperature 0, else drawn from softmax(logits / temperature) cut to the fewest
    tokens that hold `top_p` of it (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).
    """
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


class Prompts(NamedTuple):
    """Token ids of each row; the first `length_B` of them, at least one, are its prompt."""

    ids_BxP: jax.Array
    length_B: jax.Array


class Drawing(NamedTuple):
    """How a token is drawn: see `choose`."""

    temperature: Any = 0.0
    top_p: Any = 1.0


def generate(
    model: Model,
    variables: Any,
    key: jax.Array,
    prompts: Prompts,
    count: int,
    drawing: Drawing = Drawing(),  # noqa: B008  (immutable)
) -> tuple[jax.Array, Cache]:
    """Returns `count` tokens after each prompt, (B, count) int32, and the cache.

    The cache holds the decisions taken. A prompt and `count` tokens must fit into the context
    length. Pure, to be jitted with `model` and `count` static.
    """
    prompt_BxP, length_B = prompts
    variables = model.fold(variables)  # here, not in every step of the scan
    cache = model.init_cache(jnp.arange(prompt_BxP.shape[0]))
    out, cache = model.decode(variables, cache, prompt_BxP, length_B)
    last_BxD = jnp.take_along_axis(out.h, (length_B - 1)[:, None, None], axis=1)[:, 0]

    def step(carry, key):
        h_BxD, cache = carry
        logits_BxV = h_BxD.astype(jnp.float32) @ out.head_VxD.T
        token_B = choose(key, logits_BxV, *drawing)
        after, cache = model.decode(variables, cache, token_B)
        return (after.h[:, 0], cache), token_B

    (_, cache), token_TxB = jax.lax.scan(step, (last_BxD, cache), jax.random.split(key, count))
    return token_TxB.T, cache
