"""Checks that a user can run on any model, ours or not.

`assert_causal` finds what looks into the future, and `assert_decodes` compares a cache with the
full pass. Gradients do not show every leak: hard top-k over a sequence has a zero Jacobian, and
yet later tokens change earlier outputs. So `assert_causal` replaces the future with something
else, by a finite and large change, and looks.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
    >>> class RunningMean(nn.Module):                           # any module, (B, L, D) -> (B, L, D)
    ...     @nn.compact
    ...     def __call__(self, x, seen=0, total=0.0):           # after `seen` tokens, of that sum
    ...         count = seen + jnp.arange(1, x.shape[1] + 1)[None]
    ...         return nn.Dense(4)((total + jnp.cumsum(x, axis=1)) / count[..., None])
    >>> x = np.random.RandomState(0).standard_normal((3, 8, 4)).astype(np.float32)
    >>> model, variables = RunningMean(), RunningMean().init(jax.random.key(0), x)
    >>> full = jax.jit(lambda x: model.apply(variables, x))
    >>> assert_causal(full, x)
    >>> assert_causal(lambda x: jax.nn.softmax(x, axis=1), x)   # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: tokens from 1 on changed an output before 1: moved by ...
    >>> def decode(cache, x, new_B):                            # at most one token at a time
    ...     seen, total = cache
    ...     after = seen + new_B[:, None], total + new_B[:, None, None] * x
    ...     return model.apply(variables, x, seen, total), after
    >>> cache = jnp.zeros((3, 1), jnp.int32), jnp.zeros((3, 1, 4))
    >>> assert_decodes(full, decode, cache, x, chunk=1)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

Perturb = Callable[[np.ndarray, np.random.RandomState], np.ndarray]


def assert_causal(  # noqa: PLR0913  (the options are a user's, by keyword)
    f: Callable[[Any], Any],
    x_BxLx: np.ndarray,
    perturb: Perturb | None = None,
    *,
    cuts: Sequence[int] | None = None,
    batch_mates: bool = True,
    atol: float = 0.0,
    seed: int = 0,
) -> None:
    """Raises AssertionError if an output depends on a later input, or on another example.

    f: maps inputs (B, L, …), tokens or features, to outputs (B, L, …). Wrap a linen module as
      `lambda ids: model.apply(variables, ids)`, and jit it.
    perturb: perturb(x, rng) returns a replacement of the same shape and dtype that differs
      everywhere. By default integers are shuffled cyclically inside their observed range, and
      floats are redrawn at 10 times their spread.
    cuts: for each t of them (default: all of 1 … L−1) the inputs [t:] of every example are
      replaced, and the outputs before t must not move by more than `atol` (default: not at all).
    batch_mates: replaces all other examples too; each example's outputs must stay, one at a time.

    Raises ValueError where the outputs of f have other axes than its inputs.
    """
    x = np.asarray(x_BxLx)
    rng = np.random.RandomState(seed)
    base = np.asarray(f(x), np.float64)
    if base.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"f maps {x.shape} to {base.shape}: the first two axes must be batch and sequence"
        )
    if not np.isfinite(base).all():
        raise AssertionError("outputs are not finite before anything was changed")

    def replaced() -> np.ndarray:
        other = (perturb or _different)(x, rng)
        chex.assert_trees_all_equal_shapes_and_dtypes(other, x)
        return other

    # the future
    B, L = x.shape[:2]
    for t in range(1, L) if cuts is None else cuts:
        other = x.copy()
        other[:, t:] = replaced()[:, t:]
        after = np.asarray(f(other), np.float64)
        found = f"tokens from {t} on changed an output before {t}"
        _assert_close(base[:, :t], after[:, :t], found, atol)

    # the other examples
    if not batch_mates or B == 1:
        return
    for b in range(B):
        other = replaced()
        other[b] = x[b]
        after = np.asarray(f(other), np.float64)
        _assert_close(base[b], after[b], f"other examples changed example {b}", atol)


def assert_decodes(  # noqa: PLR0913  (the options are a user's, by keyword)
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
    """Raises AssertionError unless decoding with a cache gives what one pass over all tokens gives.

    full: full(x_BxLx) returns outputs (B, L, …); jit it.
    decode: decode(cache, x_Bxnx, new_B) returns outputs (B, n, …) and the cache after them. It
      reads the next n = `chunk` tokens of each row, of which the first new_B are real.
    cache: that of rows which have read nothing.
    decisions: if given, `full` returns (outputs, decisions), and decisions(cache) must be equal to
      them: the cached model chose what the full pass chose.
    rtol: outputs may differ by so much of the largest one, for sums are taken in another order.

    Every row goes at its own random pace, 0 to n tokens a call, in one `lax.scan`, and what fills
    up a chunk is random.
    """
    x = np.asarray(x_BxLx)
    B, L = x.shape[:2]
    pace = _random_pace(B, L, chunk, np.random.RandomState(seed))
    expected, chosen = full(x) if decisions else (full(x), None)
    expected = np.asarray(expected, np.float64)
    chex.assert_equal_shape_prefix([expected, x], 2)

    # decode at that pace
    def step(cache, chunk):
        x_Bxnx, new_B = chunk
        y_Bxnx, cache = decode(cache, x_Bxnx, new_B)
        return cache, y_Bxnx

    @jax.jit
    def run(cache, x_TxBxnx, new_TxB):
        return jax.lax.scan(step, cache, (x_TxBxnx, new_TxB))

    row_1xBx1 = np.arange(B)[None, :, None]
    cache, y_TxBxnx = run(cache, x[row_1xBx1, pace.place_TxBxn], pace.new_TxB)
    chex.assert_shape(y_TxBxnx, (*pace.place_TxBxn.shape, *expected.shape[2:]))

    # put the outputs where their tokens stand
    decoded = np.full(expected.shape, np.nan)
    t, b, i = np.nonzero(pace.is_real_TxBxn)
    decoded[b, pace.place_TxBxn[t, b, i]] = np.asarray(y_TxBxnx, np.float64)[t, b, i]

    if decisions is not None:
        made = np.asarray(decisions(cache))
        differing = int((made != np.asarray(chosen)).sum())
        if differing or made.shape != np.shape(chosen):
            raise AssertionError(f"{differing} of {made.size} decisions differ from the full pass")
    atol = rtol * np.abs(expected).max()
    _assert_close(expected, decoded, "cached decoding differs from the full pass", atol)


class _Pace(NamedTuple):
    """How B rows read their tokens in T calls of n each."""

    new_TxB: np.ndarray  # int32: how many are real
    place_TxBxn: np.ndarray  # where each one stands in its row; random where it is not real
    is_real_TxBxn: np.ndarray


def _random_pace(B: int, L: int, n: int, rng: np.random.RandomState) -> _Pace:
    """Returns calls of 0 to n tokens a row until every row has read L."""
    new = []
    starts = []
    read_B = np.zeros(B, int)
    while (read_B < L).any():
        new_B = np.minimum(rng.randint(0, n + 1, B), L - read_B)
        new.append(new_B)
        starts.append(read_B)
        read_B = read_B + new_B
    new_TxB = np.stack(new).astype(np.int32)
    is_real_TxBxn = np.arange(n) < new_TxB[..., None]
    place_TxBxn = np.stack(starts)[..., None] + np.arange(n)
    random_TxBxn = rng.randint(0, L, place_TxBxn.shape)
    return _Pace(new_TxB, np.where(is_real_TxBxn, place_TxBxn, random_TxBxn), is_real_TxBxn)


def _assert_close(before: np.ndarray, after: np.ndarray, what: str, atol: float) -> None:
    """Raises AssertionError where something moved by more than atol; it names the worst place."""
    moved = np.abs(before - after)
    if (moved <= atol).all():
        return
    worst = np.unravel_index(np.where(np.isfinite(moved), moved, np.inf).argmax(), moved.shape)
    raise AssertionError(f"{what}: moved by {moved[worst]:.3g} at {tuple(map(int, worst))}")


def _different(x: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Returns the same shape and dtype with other values everywhere."""
    if not np.issubdtype(x.dtype, np.integer):
        return (10 * (x.std() + 1) * rng.standard_normal(x.shape) + x).astype(x.dtype)
    low = int(x.min())
    values = int(x.max()) - low + 1
    if values == 1:
        raise ValueError("all inputs are equal: give varied inputs, or `perturb`")
    shift = rng.randint(1, values, size=x.shape)
    return (low + (x - low + shift) % values).astype(x.dtype)
