"""Checks that a user can run on any model, ours or not: `assert_causal`, and `assert_decodes` for one with a cache.

Gradients do not show every leak: hard top-k over a sequence has a zero Jacobian, and yet later tokens change earlier
outputs. So `assert_causal` replaces the future with something else, by a finite and large change, and looks.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> class RunningMean(nn.Module):                           # any module, (B, L, D) -> (B, L, D)
    ...     @nn.compact
    ...     def __call__(self, x, seen=0, total=0.0):           # after `seen` tokens, whose sum is `total`
    ...         count = seen + jnp.arange(1, x.shape[1] + 1)[None]
    ...         return nn.Dense(4)((total + jnp.cumsum(x, axis=1)) / count[..., None])
    >>> x = np.random.RandomState(0).standard_normal((3, 8, 4)).astype(np.float32)
    >>> model, variables = RunningMean(), RunningMean().init(jax.random.key(0), x)
    >>> full = jax.jit(lambda x: model.apply(variables, x))
    >>> assert_causal(full, x)
    >>> assert_causal(lambda x: jax.nn.softmax(x, axis=1), x)   # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: tokens from 1 on changed an output before 1: moved by ...
    >>> def decode(cache, x, new_B):                            # chunk=1: at most one token at a time
    ...     seen, total = cache
    ...     after = seen + new_B[:, None], total + new_B[:, None, None] * x
    ...     return model.apply(variables, x, seen, total), after
    >>> assert_decodes(full, decode, (jnp.zeros((3, 1), jnp.int32), jnp.zeros((3, 1, 4))), x, chunk=1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def assert_causal(
    f: Callable[[Any], Any],
    x_BxLx: np.ndarray,
    perturb: Callable[[np.ndarray, np.random.RandomState], np.ndarray] | None = None,
    *,
    cuts: Sequence[int] | None = None,
    batch_mates: bool = True,
    atol: float = 0.0,
    seed: int = 0,
) -> None:
    """AssertionError if an output at t depends on an input after t, or on another example of the batch.

    f maps inputs (B, L, …), tokens or features, to outputs (B, L, …); wrap a linen module as
    `lambda ids: model.apply(variables, ids)`, and jit it. For every t in `cuts` (default: all of 1 … L−1) the suffix
    [t:] of every example is replaced, and the outputs before t must not move by more than `atol` (default: not at all).
    With `batch_mates`, all other examples are replaced and each example's outputs must stay, one example at a time.
    `perturb(x, rng)` returns a replacement of the same shape and dtype that differs everywhere; by default integers are
    shuffled cyclically inside their observed range and floats are redrawn at 10 times their spread.
    """
    x = np.asarray(x_BxLx)
    perturb = perturb or _different
    rng = np.random.RandomState(seed)
    base = np.asarray(f(x), np.float64)
    if base.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"f maps {x.shape} to {base.shape}: the first two axes must be batch and sequence"
        )
    if not np.isfinite(base).all():
        raise AssertionError("outputs are not finite before anything was changed")
    L = x.shape[1]
    for t in range(1, L) if cuts is None else cuts:
        other = x.copy()
        other[:, t:] = perturb(x, rng)[:, t:]
        after = np.asarray(f(other), np.float64)
        _same(base[:, :t], after[:, :t], f"tokens from {t} on changed an output before {t}", atol)
    if batch_mates and x.shape[0] > 1:
        for b in range(x.shape[0]):
            other = perturb(x, rng)
            other[b] = x[b]
            _same(
                base[b],
                np.asarray(f(other), np.float64)[b],
                f"other examples changed example {b}",
                atol,
            )


def assert_decodes(
    full: Callable[[Any], Any],
    decode: Callable[[Any, Any, Any], tuple[Any, Any]],
    cache: Any,
    x_BxLx: np.ndarray,
    *,
    chunk: int = 3,
    decisions: Callable[[Any], Any] | None = None,
    rtol: float = 1e-5,
    seed: int = 0,
) -> None:
    """AssertionError unless decoding with a cache gives what one pass over the whole sequence gives.

    full(x_BxLx) -> outputs (B, L, …), best jitted. decode(cache, x_Bxnx, new_B) -> (outputs (B, n, …), cache after
    them): it reads the next n = `chunk` tokens, of which the first new_B are real, row by row. `cache`: of rows
    that have read nothing. Every row goes at its own random pace, 0 to n tokens a call, in one `lax.scan`; what
    fills up a chunk is random. Outputs may differ by `rtol` times the largest one (sums are taken in another
    order). With `decisions(cache)`, full returns (outputs, decisions), and the two must be equal: the cached model
    chose what the full pass chose.
    """
    x = np.asarray(x_BxLx)
    B, L = x.shape[:2]
    rng = np.random.RandomState(seed)
    want, chosen = full(x) if decisions else (full(x), None)
    pace, starts, at_B = [], [], np.zeros(B, int)
    while (at_B < L).any():
        new_B = np.minimum(rng.randint(0, chunk + 1, B), L - at_B)
        pace.append(new_B)
        starts.append(at_B.copy())
        at_B += new_B
    new_TxB, start_TxB = np.stack(pace).astype(np.int32), np.stack(starts)
    offset_n, row_B = np.arange(chunk), np.arange(B)
    take_TxBxn = start_TxB[..., None] + offset_n
    real_TxBxn = offset_n < new_TxB[..., None]
    take_TxBxn = np.where(real_TxBxn, take_TxBxn, rng.randint(0, L, take_TxBxn.shape))
    x_TxBxnx = x[row_B[None, :, None], take_TxBxn]

    def step(cache, chunk):
        y, cache = decode(cache, *chunk)
        return cache, y

    cache, y_TxBxnx = jax.jit(lambda *a: jax.lax.scan(step, *a))(cache, (x_TxBxnx, new_TxB))
    got = np.full(np.shape(want), np.nan)
    t, b, i = np.nonzero(real_TxBxn)
    got[b, take_TxBxn[t, b, i]] = np.asarray(y_TxBxnx, np.float64)[t, b, i]
    want = np.asarray(want, np.float64)
    if chosen is not None:
        kept = np.asarray(decisions(cache))
        if not np.array_equal(kept, chosen):
            raise AssertionError(
                f"{(kept != chosen).sum()} of {kept.size} decisions differ from the full pass"
            )
    _same(want, got, "cached decoding differs from the full pass", rtol * np.abs(want).max())


def _same(before: np.ndarray, after: np.ndarray, what: str, atol: float) -> None:
    moved = np.abs(before - after)
    if not (moved <= atol).all():
        worst = np.unravel_index(
            np.nanargmax(np.where(np.isfinite(moved), moved, np.inf)), moved.shape
        )
        raise AssertionError(f"{what}: moved by {moved[worst]:.3g} at {tuple(map(int, worst))}")


def _different(x: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """The same shape and dtype, other values everywhere."""
    if np.issubdtype(x.dtype, np.integer):
        low, high = int(x.min()), int(x.max())
        if low == high:
            raise ValueError("all inputs are equal: give varied inputs, or `perturb`")
        shift = rng.randint(1, high - low + 1, size=x.shape)
        return (low + (x - low + shift) % (high - low + 1)).astype(x.dtype)
    return (10 * (x.std() + 1) * rng.standard_normal(x.shape) + x).astype(x.dtype)
