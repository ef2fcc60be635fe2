"""What the machine can do at this moment: the rates of a large matmul and of a large copy.

Import `common` before it, which finds the package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.cost.timing import best_rate

MATMUL = 1024  # rows and columns
COPY = 1 << 24  # float32 numbers


class Rates(NamedTuple):
    """FLOP/s of a matmul, and bytes/s, read and written, of a copy."""

    matmul: float
    copy: float


class BestRates:
    """Keeps the best rates of several measurements: other load can only slow one down."""

    def __init__(self) -> None:
        self.best = Rates(0.0, 0.0)

    def measure(self) -> None:
        found = machine_rates()
        self.best = Rates(*map(max, self.best, found))


class _Work(NamedTuple):
    run: Callable[[], Any]
    amount: int  # FLOPs or bytes


@functools.cache
def _works() -> tuple[_Work, _Work]:
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.standard_normal((MATMUL, MATMUL)), jnp.float32)
    x = jnp.asarray(rng.standard_normal(COPY), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    copy = jax.jit(lambda x: x + 1)
    return (
        _Work(lambda: matmul(a, a).block_until_ready(), 2 * MATMUL**3),
        _Work(lambda: copy(x).block_until_ready(), 2 * x.nbytes),
    )


def machine_rates() -> Rates:
    """Measures both rates now."""
    return Rates(*(best_rate(work.run, work.amount) for work in _works()))
