"""Checks that a user can run on any model, ours or not.

Gradients do not show every leak: hard top-k over a sequence has a zero Jacobian, and yet later tokens change earlier
outputs. So `assert_causal` replaces the future with something else, by a finite and large change, and looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
        raise ValueError(f"f maps {x.shape} to {base.shape}: the first two axes must be batch and sequence")
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
            _same(base[b], np.asarray(f(other), np.float64)[b], f"other examples changed example {b}", atol)


def _same(before: np.ndarray, after: np.ndarray, what: str, atol: float) -> None:
    moved = np.abs(before - after)
    if not (moved <= atol).all():
        worst = np.unravel_index(np.nanargmax(np.where(np.isfinite(moved), moved, np.inf)), moved.shape)
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
