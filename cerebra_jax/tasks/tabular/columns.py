"""Columns as tokens: which one holds numbers, what its categories are, how it is scaled.

All of that is fitted on training rows only. A row is a token per column, in the order of the
columns' names, behind a summary token. A column is known by its ids: each has a range of its own in
the vocabulary, so that no two columns share a row of the embedding table.

    numbers     2 ids: a number (its embedding is multiplied by its scaled value), a missing one
    categories  2 + n ids: rare or never seen in training, missing, and its n categories
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.errors import UserError

MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
KINDS = ("number", "category")
QUANTILES = 1000
MISSING_ID = 1  # of a column of categories; 0: rare or never seen


def missing(text: str) -> bool:
    """Returns True for an empty field, and for what people and programs write in one."""
    return text.strip().lower() in MISSING


def number(text: str) -> float | None:
    """Returns the finite number of a field, None where it holds something else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def kind_of(column: list[str]) -> str:
    """Returns "number" where every field that is not missing holds one, else "category".

    A column of missing fields only is one of categories.
    """
    numbers = [number(text) for text in column if not missing(text)]
    return "category" if None in numbers or not numbers else "number"


def numbers_of(name: str, column: list[str]) -> np.ndarray:
    """Returns float64 values, NaN where missing.

    UserError names the first field that is no number.
    """
    values = [math.nan if missing(text) else number(text) for text in column]
    if None in values:
        i = values.index(None)
        what = f"column {name}, row {i + 1}, holds {column[i]!r}, not a number"
        raise UserError(what, f"mend it, or use --config.task.types={name}:category")
    return np.asarray(values, np.float64)


class Numbers(NamedTuple):
    """A column of numbers and the scale that its training rows give it."""

    name: str
    mean: float
    sd: float
    # scale=quantile: training values, and the normal quantiles where they stand; else ()
    points: tuple[tuple[float, ...], ...]

    ids = 2

    def tokens(self, column: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids from 0 on, values): standard deviations from the mean, or normal quantiles.

        1 where missing.
        """
        x_N = numbers_of(self.name, column)
        absent_N = np.isnan(x_N)
        if self.points:
            scaled_N = np.interp(x_N, *self.points)
        else:
            scaled_N = (x_N - self.mean) / self.sd
        return absent_N.astype(np.int32), np.where(absent_N, 1.0, scaled_N).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns what the column is, for result.json."""
        return {"kind": "number", "mean": self.mean, "sd": self.sd}


class Categories(NamedTuple):
    """A column of categories: those that its training rows hold often enough."""

    name: str
    known: dict[str, int]  # category -> id

    @property
    def ids(self) -> int:
        """Returns the number of ids of the column."""
        return 2 + len(self.known)

    def tokens(self, column: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids from 0 on, values): all values are 1."""
        ids = [MISSING_ID if missing(text) else self.known.get(text.strip(), 0) for text in column]
        return np.asarray(ids, np.int32), np.ones(len(column), np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns what the column is, for result.json."""
        return {"kind": "category", "categories": len(self.known)}


class Row:
    """How a row becomes tokens: its columns in order, each with a range of ids.

    Id 0 is the summary token.
    """

    def __init__(self, columns: list[Numbers | Categories]):
        self.columns = columns
        self.names = [column.name for column in columns]
        first_ids = 1 + np.cumsum([0, *(column.ids for column in columns)])
        *self._first, self.ids = first_ids.tolist()

    def tokens(self, fields: dict[str, list[str]]) -> dict[str, np.ndarray]:
        """Returns batch keys of some rows, given by column: (N, 1 + columns) ids and values."""
        n = len(fields[self.names[0]])
        ids = [np.zeros(n, np.int32)]  # the summary token
        values = [np.ones(n, np.float32)]
        for column, first in zip(self.columns, self._first, strict=True):
            ids_N, values_N = column.tokens(fields[column.name])
            ids.append(first + ids_N)
            values.append(values_N)
        return {
            "inputs_BxL": np.stack(ids, axis=1).astype(np.int32),
            "values_BxL": np.stack(values, axis=1),
        }


def fit(name: str, kind: str, train: list[str], min_count: int, scale: str) -> Numbers | Categories:
    """Returns the column as its training rows define it.

    Raises UserError where none of them holds a number.
    """
    if kind == "category":
        counts = Counter(text.strip() for text in train if not missing(text))
        often = sorted(text for text, n in counts.items() if n >= min_count)
        return Categories(name, {text: 2 + i for i, text in enumerate(often)})
    x_N = numbers_of(name, train)
    x_n = x_N[~np.isnan(x_N)]
    if not len(x_n):
        hint = f"use --config.task.ignore={name}"
        raise UserError(f"column {name} has no number in any training row", hint)
    points = _normal_quantiles(x_n) if scale == "quantile" else ()
    return Numbers(name, float(x_n.mean()), float(x_n.std()) or 1.0, points)


def _normal_quantiles(x_n: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Returns (values, normal quantiles); equal values stand at the mean of their quantiles."""
    points = min(QUANTILES, len(x_n))
    quantiles = (np.arange(points) + 0.5) / points
    normal = np.array([NormalDist().inv_cdf(q) for q in quantiles])
    values, value_of_point, count = np.unique(
        np.quantile(x_n, quantiles), return_inverse=True, return_counts=True
    )
    mean = np.bincount(value_of_point, normal) / count
    return tuple(values.tolist()), tuple(mean.tolist())
