"""Columns as tokens: which one holds numbers, what its categories are, how it is scaled.

All of that is fitted on training rows only. A row is a token per column, in the order of the
columns' names, behind a summary token. A column is known by its ids: each has a range of its own in
the vocabulary, so that no two columns share a row of the embedding table.

    numbers     2 ids: a number (its embedding is multiplied by its scaled value), a missing one
    categories  2 + n ids: rare or never seen in training, missing, and its n categories
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax import documents
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import fields
from cerebra_jax.tasks.fields import Form, Marks

FOUND_OUT = Marks()
KINDS = ("number", "category", "date")
QUANTILES = 1000
MISSING_ID = 1  # of a column of categories; 0: rare or never seen
LEARNT = {  # the shape of a column's `learnt`
    "kind": documents.one_of(*KINDS),
    "categories?": [documents.TEXT],
    "mean?": documents.NUMBER,
    "sd?": documents.POSITIVE,
    "points?": [[documents.NUMBER]],
    "form?": {"kind": documents.one_of(*KINDS), "others": [documents.TEXT]},
}
Place = Callable[[int], str]  # where a row stands in the file, for a message


def _nowhere(row: int) -> str:
    return f"row {row + 1}"


def numbers_of(
    name: str, column: Sequence[str], form: Form, marks: Marks, place: Place = _nowhere
) -> np.ndarray:
    """Returns float64 values, days since 1970 of dates, NaN where missing.

    UserError names the first field that is no number, or that float32 cannot hold.
    """
    read: dict[str, float] = {other: np.nan for other in form.others}
    values = np.empty(len(column))
    for i, text in enumerate(column):
        if text not in read:
            read[text] = _value(name, text, form, marks, place(i))
        values[i] = read[text]
    return values


def _value(name: str, text: str, form: Form, marks: Marks, where: str) -> float:
    if fields.absent(text, marks):
        return np.nan
    value = fields.value(text, form)
    what = f"{where}: column {name} holds {text!r}"
    if value is None:
        kind = "date" if form.kind == "date" else "finite number"
        hint = f"mend it, or call it missing: --config.task.missing='{text}'; "
        raise UserError(
            f"{what}, which is no {kind}", f"{hint}or --config.task.types={name}:category"
        )
    if abs(value) > fields.LARGEST:
        hint = f"mend it, or call it missing: --config.task.missing={text}"
        raise UserError(f"{what}, which is beyond the largest float32, 3.4e38", hint)
    return value


class Numbers(NamedTuple):
    """A column of numbers, or dates as days, and the scale that its training rows give it."""

    name: str
    mean: float
    sd: float
    # scale=quantile: training values, and the normal quantiles where they stand; else ()
    points: tuple[tuple[float, ...], ...]
    form: Form = Form("number")

    ids = 2

    def tokens(
        self, column: Sequence[str], form: Form, marks: Marks, place: Place
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids from 0 on, values): standard deviations from the mean, or normal quantiles.

        1 where missing. `form` says how this column is written, which need not be as in training.
        """
        x_N = numbers_of(self.name, column, form, marks, place)
        absent_N = np.isnan(x_N)
        if self.points:
            scaled_N = np.interp(x_N, *self.points)
        else:
            scaled_N = (x_N - self.mean) / self.sd
        return absent_N.astype(np.int32), np.where(absent_N, 1.0, scaled_N).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns what the column is, for result.json."""
        return {"kind": self.form.kind, "mean": self.mean, "sd": self.sd}

    def learnt(self) -> dict[str, Any]:
        """Returns all of it, for JSON."""
        return self.describe() | {"points": self.points, "form": self.form._asdict()}


class Categories(NamedTuple):
    """A column of categories: those that its training rows hold often enough."""

    name: str
    known: dict[str, int]  # category -> id

    form = Form("category")

    @property
    def ids(self) -> int:
        """Returns the number of ids of the column."""
        return 2 + len(self.known)

    def id_of(self, text: str, marks: Marks) -> int:
        """Returns the id of a field from 0 on; 3.0 is the category 3 where that is known."""
        if fields.absent(text, marks):
            return MISSING_ID
        text = fields.composed(text)
        found = self.known.get(text, 0)
        return found or self.known.get(text.removesuffix(".0"), 0)

    def tokens(
        self, column: Sequence[str], form: Form, marks: Marks, place: Place
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids from 0 on, values): all values are 1."""
        id_of = {text: self.id_of(text, marks) for text in set(column)}
        ids = [id_of[text] for text in column]
        return np.asarray(ids, np.int32), np.ones(len(column), np.float32)

    def describe(self) -> dict[str, Any]:
        """Returns what the column is, for result.json."""
        return {"kind": "category", "categories": len(self.known)}

    def learnt(self) -> dict[str, Any]:
        """Returns all of it, for JSON: the categories in the order of their ids."""
        return {"kind": "category", "categories": list(self.known)}


def restored(name: str, learnt: dict[str, Any]) -> Numbers | Categories:
    """Returns the column that `learnt` described."""
    if learnt["kind"] == "category":
        return Categories(name, {text: 2 + i for i, text in enumerate(learnt["categories"])})
    points = tuple(tuple(axis) for axis in learnt["points"])
    form = learnt["form"]
    form = Form(**(form | {"others": tuple(form["others"])}))
    return Numbers(name, learnt["mean"], learnt["sd"], points, form)


class Row:
    """How a row becomes tokens: its columns in order, each with a range of ids.

    Id 0 is the summary token.
    """

    def __init__(self, columns: list[Numbers | Categories], marks: Marks = FOUND_OUT):
        self.columns = columns
        self.marks = marks
        self.names = [column.name for column in columns]
        first_ids = 1 + np.cumsum([0, *(column.ids for column in columns)])
        *self._first, self.ids = first_ids.tolist()

    def tokens(
        self, columns: dict[str, Sequence[str]], anew: bool = False, place: Place = _nowhere
    ) -> dict[str, np.ndarray]:
        """Returns batch keys of rows: inputs_BxL (int32) and values_BxL (float32).

        anew: the rows come from another file than those that were learnt from, which may write its
        numbers and dates in other ways.
        """
        n = len(columns[self.names[0]])
        forms = self._forms(columns) if anew else {c.name: c.form for c in self.columns}
        ids = [np.zeros(n, np.int32)]
        values = [np.ones(n, np.float32)]
        for column, first in zip(self.columns, self._first, strict=True):
            texts, form = columns[column.name], forms[column.name]
            ids_N, values_N = column.tokens(texts, form, self.marks, place)
            ids.append(first + ids_N)
            values.append(values_N)
        return {
            "inputs_BxL": np.stack(ids, axis=1).astype(np.int32),
            "values_BxL": np.stack(values, axis=1),
        }

    def unseen(self, columns: dict[str, Sequence[str]]) -> dict[str, int]:
        """Returns how many fields of each column of categories training did not show, or rarely."""
        found = {}
        for column in self.columns:
            if isinstance(column, Categories):
                counts = Counter(columns[column.name])
                n = sum(k for text, k in counts.items() if not column.id_of(text, self.marks))
                if n:
                    found[column.name] = n
        return found

    def _forms(self, columns: dict[str, Sequence[str]]) -> dict[str, Form]:
        """Returns how each column of another file is written.

        Its own fields tell, else the file's other columns, else the column that was learnt from.
        Dates are written as before, unless another form reads more of them.
        """
        numeric = [c for c in self.columns if c.form.kind == "number"]
        decimal = fields.decimal_of((columns[c.name] for c in numeric), self.marks)
        found = {}
        for column in self.columns:
            old, texts = column.form, columns[column.name]
            if old.kind == "category" or self.marks.before:
                found[column.name] = old
                continue
            new = fields.form_of(texts, self.marks, decimal or old.decimal, old.kind)
            if old.kind == "date":
                before, now = (
                    fields.dates_read(texts, form.date, self.marks) for form in (old, new)
                )
                new = new if now > before else old
            found[column.name] = new._replace(others=old.others)
        return found


def fit(
    name: str, form: Form, train: list[str], marks: Marks, min_count: int, scale: str
) -> Numbers | Categories:
    """Returns the column as its training rows define it.

    Raises UserError where none of them holds a number.
    """
    if form.kind == "category":
        counts = Counter(fields.composed(text) for text in train if not fields.absent(text, marks))
        often = sorted(text for text, n in counts.items() if n >= min_count)
        return Categories(name, {text: 2 + i for i, text in enumerate(often)})
    x_N = numbers_of(name, train, form, marks)
    x_n = x_N[~np.isnan(x_N)]
    if not len(x_n):
        hint = f"use --config.task.ignore={name}"
        raise UserError(f"column {name} has no number in any training row", hint)
    points = normal_quantiles(x_n) if scale == "quantile" else ()
    # equal floats may have a deviation that is their rounding
    sd = float(x_n.std()) if x_n.min() < x_n.max() else 1.0
    return Numbers(name, float(x_n.mean()), sd, points, form)


def normal_quantiles(x_n: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Returns (values, normal quantiles); equal values stand at the mean of their quantiles."""
    points = min(QUANTILES, len(x_n))
    quantiles = (np.arange(points) + 0.5) / points
    normal = np.array([NormalDist().inv_cdf(q) for q in quantiles])
    values, value_of_point, count = np.unique(
        np.quantile(x_n, quantiles), return_inverse=True, return_counts=True
    )
    mean = np.bincount(value_of_point, normal) / count
    return tuple(values.tolist()), tuple(mean.tolist())
