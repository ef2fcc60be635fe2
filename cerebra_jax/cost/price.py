"""Fits the price of a layer as a function of its rows and keys, from the counts of four traces.

A layer makes n rows from m keys (n queries look at m keys; a layer over tokens alone ignores m).
Each of its operations costs

    fixed + row · n + key · m + pair · n · m

FLOPs, bytes and so on, and four traces at small sizes give the four numbers exactly. A fifth trace
checks them. What is not of this form, such as an FFT over the tokens, is refused: count it at its
real length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

from cerebra_jax.cost.count import Counted
from cerebra_jax.cost.units import Op
from cerebra_jax.errors import RunError

Ops = tuple[Op, ...]


class NotBilinear(RunError):
    """Says that the cost of a layer is not fixed + row · n + key · m + pair · n · m."""


class Price(NamedTuple):
    """Says what each operation of a layer costs: fixed + row · n + key · m + pair · n · m.

    The four tuples are equally long, one entry an operation. Numbers are integers; where a layer
    works on groups of rows or keys they may be fractions, whose sums are integers for whole groups.
    """

    fixed: Ops
    row: Ops
    key: Ops
    pair: Ops

    def at(self, rows: float, keys: float, pairs: float | None = None) -> Ops:
        """Returns the operations of that many rows, keys and (row, key) pairs.

        `pairs` is rows · keys where it is not given: a causal layer has fewer. Exact for integers;
        of numbers that are expected values the result is the expected value.
        """
        if pairs is None:
            pairs = rows * keys
        parts = zip(self.fixed, self.row, self.key, self.pair, strict=True)
        return tuple(_sum(zip(ops, (1, rows, keys, pairs), strict=True)) for ops in parts)

    def __add__(self, other: Price) -> Price:
        """Returns the price of both layers, one after the other, for the same rows and keys."""
        return Price(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING = Price((), (), (), ())
"""The price of a layer that does nothing, such as passing the rows on."""


def fit(
    operations_of: Callable[[int, int], list[Counted]], step: tuple[int, int] = (1, 1)
) -> Price:
    """Returns the price of a layer; operations_of(n, m) counts it for n rows and m keys.

    All traces have batches of one example. They are at 2 and 3 times `step`, because dimensions of
    size 1 can change a program. A layer that works on groups (windows of keys, chunks of rows)
    gives their size as its step. Raises NotBilinear where programs of two sizes have other
    operations, or where a fifth trace does not cost what the other four predict: it has so many
    rows and keys that one padded group of up to 64 does not pass for a constant.
    """
    s, t = step
    corners = {
        (i, j): _priced(operations_of(i * s, j * t)) for i, j in ((2, 2), (3, 2), (2, 3), (3, 3))
    }
    length = _same_length(corners, step)
    fitted = []
    for k in range(length):
        at22, at32, at23, at33 = (ops[k] for ops in corners.values())
        pair = _sum(((at33, 1), (at32, -1), (at23, -1), (at22, 1)), s * t)
        row = _sum(((at32, 1), (at22, -1), (pair, -2 * s * t)), s)
        key = _sum(((at23, 1), (at22, -1), (pair, -2 * s * t)), t)
        fixed = _sum(((at22, 1), (row, -2 * s), (key, -2 * t), (pair, -4 * s * t)))
        fitted.append((fixed, row, key, pair))
    price = Price(*zip(*fitted, strict=True)) if fitted else NOTHING
    size = s * max(5, -(-67 // s)), t * max(4, -(-71 // t))
    _check(price, operations_of(*size), size)
    return price


def _priced(counted: Iterable[Counted]) -> Ops:
    """Returns the operations that cost something in some unit."""
    return tuple(one.op for one in counted if one.op != Op())


def _same_length(corners: dict[tuple[int, int], Ops], step: tuple[int, int]) -> int:
    lengths = {(i * step[0], j * step[1]): len(ops) for (i, j), ops in corners.items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{length} at {n} x {m}" for (n, m), length in lengths.items())
        raise NotBilinear(
            f"the layer has other operations at other sizes: {sizes} (rows x keys)",
            "give fit(..., step=...) the sizes of its groups, or count it at its real length",
        )
    return next(iter(lengths.values()))


def _check(price: Price, counted: list[Counted], size: tuple[int, int]) -> None:
    """Raises NotBilinear unless the price of that size is what its program counts."""
    rows, keys = size
    found, want = _priced(counted), price.at(rows, keys)
    if found == want:
        return
    scopes = [one.scope for one in counted if one.op != Op()]
    what = f"{len(found)} operations instead of {len(want)}"
    if len(found) == len(want):
        k = next(k for k in range(len(found)) if found[k] != want[k])
        what = f"{found[k]} in {scopes[k] or 'its program'} instead of {want[k]}"
    raise NotBilinear(
        "the layer's cost is not fixed + row n + key m + pair n m: "
        f"at {rows} x {keys} (rows x keys) it has {what}",
        "give fit(..., step=...) the sizes of its groups, or count it at its real length",
    )


def _sum(terms: Iterable[tuple[Op, float]], divisor: int = 1) -> Op:
    """Returns Σ factor · op / divisor, exact unless a factor is a float."""
    terms = list(terms)
    amounts = (
        sum(factor * amount for amount, factor in zip(column, [f for _, f in terms], strict=True))
        for column in zip(*(op for op, _ in terms), strict=True)
    )
    # an Op of a price may hold fractions, that of expected values floats
    return Op(*(_divided(x, divisor) for x in amounts))  # pyright: ignore[reportArgumentType]


def _divided(amount: float | Fraction, divisor: int) -> float | Fraction:
    """Returns amount / divisor as an integer where it is one."""
    if divisor != 1:
        amount = Fraction(amount) / divisor
    if isinstance(amount, Fraction) and amount.denominator == 1:
        return amount.numerator
    return amount
