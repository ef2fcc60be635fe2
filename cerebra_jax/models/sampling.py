"""Continues prompts with a cache: one chunk reads them, one scan writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cerebra_jax.layers.cache import Cache
from cerebra_jax.models import writing
from cerebra_jax.models.model import Model


def choose(key: jax.Array, logits_BxV: jax.Array, temperature, top_p) -> jax.Array:
    """Returns a token for each row, (B,) int32.

    The likeliest at temperature 0, else drawn from softmax(logits / temperature) cut to the fewest
    tokens that hold `top_p` of it (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751).
    """
    likeliest_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    scaled_BxV = logits_BxV / jnp.maximum(temperature, 1e-6)
    in_BxV = in_nucleus(scaled_BxV, top_p)
    drawn_B = jax.random.categorical(key, jnp.where(in_BxV, scaled_BxV, -jnp.inf))
    return jnp.where(temperature > 0, drawn_B.astype(jnp.int32), likeliest_B)


_ROWS = 8  # of the output matrix: a GPU multiplies numbers of 2 bytes by matrices of whole eights
_BITS = 4  # of the threshold in one pass: 8 passes of 15 sums over the vocabulary


def in_nucleus(logits_BxV: jax.Array, top_p) -> jax.Array:
    """Returns which tokens are in the nucleus: what is likelier does not hold `top_p` yet.

    Likelier than its least likely tokens is less than `top_p`; equal ones are in together, and the
    likeliest always. The threshold is found from its first bits to its last, without a sort.
    """
    p_BxV = jax.nn.softmax(logits_BxV, axis=-1)
    rank_BxV = _ordered(logits_BxV)

    # the largest threshold with `top_p` at or above it
    threshold_Bx1 = jnp.zeros((logits_BxV.shape[0], 1), jnp.uint32)
    for shift in range(32 - _BITS, -1, -_BITS):
        steps = jnp.arange(1, 2**_BITS, dtype=jnp.uint32) << shift
        above_BxSxV = rank_BxV[:, None] >= (threshold_Bx1 + steps[None])[..., None]
        mass_BxS = jnp.where(above_BxSxV, p_BxV[:, None], 0.0).sum(-1)
        taken_Bx1 = (mass_BxS >= top_p).sum(-1, keepdims=True, dtype=jnp.uint32)
        threshold_Bx1 += taken_Bx1 << shift

    in_BxV = (rank_BxV >= threshold_Bx1) | (top_p >= 1.0)
    return in_BxV | (rank_BxV == rank_BxV.max(-1, keepdims=True))


def _ordered(x: jax.Array) -> jax.Array:
    """Returns whole numbers, uint32, in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.uint32)  # −0 is 0
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


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
    writer = writing.prepared(model, variables)
    cache = writer.opened(cache)
    last_BxD = jnp.take_along_axis(out.h, (length_B - 1)[:, None, None], axis=1)[:, 0]
    head_VxD = out.head_VxD.astype(last_BxD.dtype)  # as in the loss: sums are float32
    V = head_VxD.shape[0]
    head_PxD = jnp.pad(head_VxD, ((0, -V % _ROWS), (0, 0)))  # a GPU pads it at each token otherwise

    def step(carry, key):
        h_BxD, cache = carry
        logits_BxP = jnp.einsum("bd,pd->bp", h_BxD, head_PxD, preferred_element_type=jnp.float32)
        token_B = choose(key, logits_BxP[:, :V], *drawing)
        after, cache = writer.model.decode(writer.variables, cache, token_B)
        return (after.h[:, 0], cache), token_B

    (_, cache), token_TxB = jax.lax.scan(step, (last_BxD, cache), jax.random.split(key, count))
    return token_TxB.T, writer.closed(cache)
