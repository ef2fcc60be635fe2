"""What recurrent layers share: how they decode a chunk of which only some tokens join the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_tokens(step: Callable, state: Any, inputs: Any, keep_Bxn: jax.Array):
    """Returns (outputs (B, n, …), state), one token after the other.

    step(state, inputs of one token) -> (state, output). A token that is not kept leaves the state
    as it was; its output is that of a token that had been kept.
    """

    def one(state, now):
        inputs, keep_B = now
        new, out = step(state, inputs)

        def choose(new, old):
            return jnp.where(keep_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, new, state), out

    over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (inputs, keep_Bxn))
    state, out_nxB = jax.lax.scan(one, state, over_time)
    return out_nxB.swapaxes(0, 1), state
