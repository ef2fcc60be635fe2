"""Regression or classification of the rows of a table, a token per column.

FT-Transformer, Gorishniy et al. 2021, arXiv:2106.11959.

`columns` says how a row becomes tokens. The model's own positions follow the order of the columns'
names, so a table with its columns in another order is the same task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cerebra_jax.checks import Problem, words
from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores
from cerebra_jax.tasks.examples import Arrays, Examples, cut, digest
from cerebra_jax.tasks.registry import register
from cerebra_jax.tasks.table import Table, known, read
from cerebra_jax.tasks.tabular import columns, synthetic
from cerebra_jax.tasks.task import LOSS, SPLITS, Log, Metric, Pairs, Shape
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

FEW_VALUES = 10  # a column of numbers with so many different ones may hold classes


class About(NamedTuple):
    """What is known of the table of a task."""

    dataset: str
    notice: str
    target: dict[str, Any]  # name, kind; classes, or mean, sd and floor of numbers
    scale: str  # of the columns of numbers


@register("tabular")
class TabularTask(Examples):
    """A table in three splits.

    Its loss is in squared standard deviations of the training target, or in nats.
    """

    choice = LOSS

    def __init__(self, splits: dict[str, Arrays], row: columns.Row, about: About):
        super().__init__(splits)
        self._row = row
        self._about = about
        self.dataset = about.dataset
        self.notice = about.notice
        self._classes: list[str] | None = about.target.get("classes")
        tokens = splits["train"]["inputs_BxL"].shape[1]
        outputs = len(self._classes) if self._classes else 1
        self.shape = Shape(tokens, row.ids, outputs=outputs)
        self.metrics: tuple[Metric, ...] = (scores.RMSE, scores.MAE, scores.R2)
        if about.target.get("floor"):
            self.metrics += (Metric("rmse_floor", "RMSE floor", 1, lower=True),)
        if self._classes:
            self.metrics = (scores.ACCURACY, scores.MACRO_F1)
            self.choice = scores.ACCURACY

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields what tables forbid: a file without a column to predict."""
        if cfg.task.path and not cfg.task.target:
            hint = "name the column to predict: --config.task.target=NAME"
            yield "task.target is empty", hint

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print) -> TabularTask:
        """Returns the table of a configuration in its splits.

        UserError says what is wrong with file or settings.
        """
        task = cfg.task
        for problem in cls.check(cfg):
            raise UserError(*problem)

        # the table, and which of its columns and rows are used
        notice, noise_N = "", None
        if task.path:
            table, target = read(task.path), task.target
        else:
            table, noise_N = synthetic.table()
            target = task.target or synthetic.TARGET
            notice = f"made-up table: {table.rows:,} rows from a seed, "
            notice += f"noise of sd {synthetic.NOISE:g} (no --config.task.path)"
        kinds = _kinds(task, table, target)
        features = [name for name in kinds if name != target]
        tokens = 1 + len(features)
        rows = _rows(task, table, target, kinds[target], log)
        splits = {
            split: [rows[i] for i in ids]
            for split, ids in cut(len(rows), task.valid_share, task.test_share).items()
        }

        # the labels
        texts = {s: _pick(table.columns[target], splits[s]) for s in SPLITS}
        about_target, labels = _labels(target, kinds[target], texts, log)
        if kinds[target] == "number" and noise_N is not None:
            about_target["floor"] = _floor_of_noise(noise_N, splits)
        elif kinds[target] == "number":
            about_target["floor"] = _floor_of_equal_rows(table, features, target, rows)

        # the columns as the training rows define them, and all rows as tokens
        row = columns.Row(
            [_fitted(task, table, name, kinds[name], splits["train"]) for name in features]
        )
        arrays = {}
        for split in SPLITS:
            fields = {name: _pick(table.columns[name], splits[split]) for name in features}
            arrays[split] = row.tokens(fields) | {"labels_BxL": labels[split][:, None]}
        if task.seq_len not in (0, tokens):
            what = f"task.seq_len is {task.seq_len}, a row has {tokens} tokens"
            raise UserError(what, "use --config.task.seq_len=0")

        name = f"table:{table.name}{' (distinct rows)' if task.dedup else ''}"
        return cls(arrays, row, About(name, notice, about_target, task.scale))

    def inputs(self, table: Table) -> Arrays:
        """Returns the rows of another table with the same columns; the target may be missing.

        UserError names what is.
        """
        names = [known(table, name, "the run") for name in self._row.names]
        return self._row.tokens({name: table.columns[name] for name in names})

    def answers(self, out_NxC: np.ndarray) -> dict[str, list]:
        """Returns `scores.named`; or numbers in the target's unit."""
        if self._classes:
            return scores.named(out_NxC, self._classes)
        target = self._about.target
        return {"prediction": (out_NxC[:, 0] * target["sd"] + target["mean"]).tolist()}

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns `scores.classify` or `scores.regress`, by the target."""
        loss = scores.classify if self._classes else scores.regress
        return loss(out, batch, each)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns accuracy and macro-F1.

        Or RMSE and MAE in the target's unit and R2 about the split's own mean.
        """
        if self._classes:
            return scores.classes(sums)
        sd = self._about.target["sd"]
        if split == "train":
            return {"rmse": scores.errors(sums, sd, None)["rmse"]}
        variance = float(self._splits[split]["labels_BxL"].astype(np.float64).var())
        found = scores.errors(sums, sd, variance)
        if split in self._about.target["floor"]:
            found["rmse_floor"] = self._about.target["floor"][split]
        return found

    def info(self) -> dict[str, Any]:
        """Returns what the table is, for result.json."""
        return {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(self._splits),
            "splits": {split: {"rows": n} for split, n in self.size.items()},
            "target": self._about.target,
            "vocab_size": self.shape.vocab_size,
            "columns": {column.name: column.describe() for column in self._row.columns},
            "scale": self._about.scale,
        }


def _pick(column: list[str], rows: list[int]) -> list[str]:
    return [column[i] for i in rows]


def _kinds(task: TaskCfg, table: Table, target: str) -> dict[str, str]:
    """Returns the kind of each column that is used: features in order, then the target."""
    # which columns
    known(table, target, "task.target")
    chosen = [known(table, name, "task.columns") for name in words(task.columns)]
    ignored = [known(table, name, "task.ignore") for name in words(task.ignore)]
    if target in chosen + ignored:
        what = f"task.columns or task.ignore names the target {target!r}"
        raise UserError(what, "leave it out there")
    candidates = chosen or list(table.columns)
    features = sorted(name for name in candidates if name not in (*ignored, target))
    if not features:
        what = f"{table.name} has no column left to predict {target} from"
        raise UserError(what, "ignore fewer columns")

    # what they hold; "*" is for all features, not for the target
    given = _given_kinds(task, table)
    kinds = {}
    for name in features:
        kinds[name] = given.get(name) or given.get("*") or columns.kind_of(table.columns[name])
    kinds[target] = given.get(target) or columns.kind_of(table.columns[target])
    return kinds


def _given_kinds(task: TaskCfg, table: Table) -> dict[str, str]:
    """Returns what task.types says: {column, or "*": kind}."""
    given: dict[str, str] = {}
    for entry in words(task.types):
        name, _, kind = entry.rpartition(":")
        if kind not in columns.KINDS:
            hint = "write NAME:number or NAME:category, with commas"
            raise UserError(f"cannot read {entry!r} in task.types", hint)
        given[name if name == "*" else known(table, name, "task.types")] = kind
    return given


def _rows(task: TaskCfg, table: Table, target: str, kind: str, log: Log) -> list[int]:
    """Returns the rows that have a target and, with task.dedup, equal no earlier one."""
    rows = []
    for i, text in enumerate(table.columns[target]):
        # "none" may be a class; as a number it is missing
        absent = columns.missing(text) if kind == "number" else not text.strip()
        if not absent:
            rows.append(i)
    if len(rows) < table.rows:
        log(f"{table.rows - len(rows):,} of {table.rows:,} rows have no {target}: left out")
    if task.dedup:
        before = len(rows)
        rows = _distinct(table, rows)
        equal = f"{before - len(rows):,} of {before:,} rows"
        log(f"{equal} equal an earlier one in every column: left out")
    return rows


def _distinct(table: Table, rows: list[int]) -> list[int]:
    """Returns those of the rows that equal no earlier one in every column."""
    first: dict[tuple[str, ...], int] = {}
    for i in rows:
        first.setdefault(tuple(column[i] for column in table.columns.values()), i)
    return list(first.values())


def _fitted(
    task: TaskCfg, table: Table, name: str, kind: str, train: list[int]
) -> columns.Numbers | columns.Categories:
    """Returns a column as its training rows define it."""
    texts = _pick(table.columns[name], train)
    return columns.fit(name, kind, texts, task.min_count, task.scale)


def _labels(
    name: str, kind: str, texts: dict[str, list[str]], log: Log
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (what the labels mean, {split: labels}).

    They are classes by their sorted names, or numbers scaled by the training rows.
    """
    if kind == "category":
        return _class_labels(name, texts)
    numbers = {split: columns.numbers_of(name, column) for split, column in texts.items()}
    mean, sd = float(numbers["train"].mean()), float(numbers["train"].std())
    if sd == 0.0:
        what = f"the target {name} is {mean:g} in every training row"
        raise UserError(what, "choose another task.target")
    different = len(np.unique(numbers["train"]))
    if different <= FEW_VALUES:
        hint = f"classes: --config.task.types={name}:category"
        log(f"{name} has {different} values and is taken for a number; {hint}")
    labels = {split: ((y - mean) / sd).astype(np.float32) for split, y in numbers.items()}
    return {"name": name, "kind": kind, "mean": mean, "sd": sd}, labels


def _class_labels(
    name: str, texts: dict[str, list[str]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = {split: [text.strip() for text in column] for split, column in texts.items()}
    classes = sorted(set().union(*found.values()))
    if len(classes) < 2:
        what = f"the target {name} has one class only, {classes[0]!r}"
        raise UserError(what, "choose another task.target")
    number = {text: i for i, text in enumerate(classes)}
    labels = {
        split: np.asarray([number[text] for text in column], np.int32)
        for split, column in found.items()
    }
    return {"name": name, "kind": "category", "classes": classes}, labels


def _floor_of_noise(noise_N: np.ndarray, splits: dict[str, list[int]]) -> dict[str, float]:
    """Returns the RMSE that no model of a made-up table goes below, by split: the noise in it."""
    return {s: float(np.sqrt(np.square(noise_N[rows]).mean())) for s, rows in splits.items()}


def _floor_of_equal_rows(
    table: Table, features: list[str], target: str, rows: list[int]
) -> dict[str, float]:
    """Returns the RMSE that no model of these columns goes below, by split.

    Nothing where all rows differ.

    It is the spread of rows of equal features about their own mean, over the whole table: no
    function of the features is nearer to that table, so a model far below it has seen the answers.
    """
    cells: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in rows:
        cells[tuple(table.columns[name][i] for name in features)].append(i)
    y_N = columns.numbers_of(target, table.columns[target])
    squares = 0.0
    for equal in cells.values():
        squares += float(np.square(y_N[equal] - y_N[equal].mean()).sum())
    if not squares:
        return {}
    return dict.fromkeys(SPLITS, (squares / len(rows)) ** 0.5)
