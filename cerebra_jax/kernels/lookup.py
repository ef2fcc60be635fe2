"""Looks rows of a table up; on a GPU the gradient is a sum in a fixed order, without atomics.

XLA's gradient of a lookup on a GPU is a scatter that adds with atomic operations. Their order, and
so the last bits of the sum, differ from run to run. With jaxlib 0.10.2 to 0.11.0 each of them is a
compare-and-swap loop (github.com/openxla/xla/issues/46225), and the tokens of a text collide often.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def lookup(table_VxD, ids):
    """Returns table[ids], (…, D), of whole numbers 0 … V − 1."""
    return table_VxD[ids]


def _forward(table_VxD, ids):
    return table_VxD[ids], (table_VxD, ids)  # of the table only the shape is read


def _backward(residuals, slope):
    table_VxD, ids = residuals
    shape = table_VxD.shape
    rows_NxD = slope.reshape(-1, shape[1])
    ids_N = ids.reshape(-1)

    def scattered(rows_NxD, ids_N):
        return jnp.zeros(shape, rows_NxD.dtype).at[ids_N].add(rows_NxD)

    def in_order(rows_NxD, ids_N):
        return sum_by_id(rows_NxD, ids_N, shape[0])

    # chosen where the program is compiled for a platform
    made = jax.lax.platform_dependent(
        rows_NxD, ids_N, default=scattered, cuda=in_order, rocm=in_order
    )
    return made, np.zeros(ids.shape, jax.dtypes.float0)


lookup.defvjp(_forward, _backward)


def sum_by_id(rows_NxD, ids_N, V: int) -> jax.Array:
    """Returns (V, D): the sum of the rows of each id, in an order that the ids alone decide.

    Rows are sorted by id; running sums begin anew at each id, so that the last row of an id holds
    its sum.
    """
    order_N = jnp.argsort(ids_N, stable=True)
    sorted_N = ids_N[order_N]
    begins_N = jnp.concatenate([jnp.ones(1, bool), sorted_N[1:] != sorted_N[:-1]])

    def joined(before, after):
        begun, total = before
        begins, own = after
        return begun | begins, own + jnp.where(begins, 0.0, total)

    running = (begins_N[:, None], rows_NxD[order_N])
    _, totals_NxD = jax.lax.associative_scan(joined, running)
    id_V = jnp.arange(V, dtype=ids_N.dtype)
    last_V = jnp.searchsorted(sorted_N, id_V, side="right") - 1
    seen_V = sorted_N[jnp.maximum(last_V, 0)] == id_V
    return jnp.where(seen_V[:, None], totals_NxD[jnp.maximum(last_V, 0)], 0.0)
