"""Regression or classification of the rows of a table, a token per column.

FT-Transformer, Gorishniy et al. 2021, arXiv:2106.11959.

`columns` says how a row becomes tokens. The model's own positions follow the order of the columns'
names, so a table with its columns in another order is the same task.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cerebra_jax.checks import Problem, words
from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.documents import FLAG, NUMBER, POSITIVE, TEXT
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import fields, scores, splits
from cerebra_jax.tasks.examples import Arrays, Examples, digest, digest_of_texts
from cerebra_jax.tasks.fields import Form, Marks
from cerebra_jax.tasks.registry import register
from cerebra_jax.tasks.table import Format, Table, joined, known, read
from cerebra_jax.tasks.tabular import columns, synthetic, understood
from cerebra_jax.tasks.tabular.target import Target
from cerebra_jax.tasks.task import LOSS, SPLITS, Log, Metric, Pairs, Shape
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out


class About(NamedTuple):
    """What is known of the table of a task."""

    dataset: str
    notice: str
    target: dict[str, Any]  # name, kind; classes, or mean, sd and floor of numbers
    scale: str  # of the columns of numbers
    digests: dict[str, str]  # column -> sha256 of its fields as they were read


@register("tabular")
class TabularTask(Examples):
    """A table in three splits.

    Its loss is in squared standard deviations of the training target, or in nats.
    """

    choice = LOSS
    LEARNT = {  # the shape of `learnt`
        "columns": {"*": columns.LEARNT},
        "target": {"name": TEXT, "classes?": [TEXT], "mean?": NUMBER, "sd?": POSITIVE},
        "marks": {"missing": [TEXT], "decimal": TEXT, "dates": TEXT, "before": FLAG},
        "digests": {"*": TEXT},
    }

    def __init__(self, splits: dict[str, Arrays], row: columns.Row, about: About):
        super().__init__(splits)
        self._row = row
        self._about = about
        self.dataset = about.dataset
        self.notice = about.notice
        self._classes: list[str] | None = about.target.get("classes")
        self._target = None if self._classes else Target.restored(about.target)
        self._weight_C: np.ndarray | None = None
        tokens = splits["train"]["inputs_BxL"].shape[1]
        outputs = len(self._classes) if self._classes else 1
        self.shape = Shape(tokens, row.ids, outputs=outputs)
        self.metrics: tuple[Metric, ...]
        if self._classes:
            self.metrics = (scores.ACCURACY, scores.MACRO_F1)
            self.choice = scores.ACCURACY
        if self._target:  # four significant digits of what the target varies by
            digits = max(1, 3 - math.floor(math.log10(self._target.unit)))
            self.metrics = (
                scores.RMSE._replace(digits=digits),
                scores.MAE._replace(digits=digits),
                scores.R2,
            )
            if about.target.get("floor"):
                self.metrics += (Metric("rmse_floor", "RMSE floor", digits, lower=True),)

    @property
    def classes(self) -> list[str] | None:
        """Returns the names of the classes in the order of the outputs, None of a regression."""
        return self._classes

    @property
    def columns(self) -> list[str]:
        """Returns the names of the columns that it predicts from, in order."""
        return self._row.names

    @staticmethod
    def check(cfg: RunCfg) -> Iterator[Problem]:
        """Yields what tables forbid: a file without a column to predict."""
        if cfg.task.path and not cfg.task.target:
            hint = "name the column to predict: --config.task.target=NAME"
            yield "task.target is empty", hint
        yield from splits.check(cfg)
        yield from scores.check_weights(cfg.task)

    @classmethod
    def build(cls, cfg: RunCfg, log: Log = print, before: bool = False) -> TabularTask:
        """Returns the table of a configuration in its splits.

        before: the table is read as version 0.1 did. UserError says what is wrong with file or
        settings.
        """
        task = cfg.task
        for problem in cls.check(cfg):
            raise UserError(*problem)

        # the table, which of its columns and rows are used, and how they are written
        given = _found(task)
        table, target = given.table, task.target or synthetic.TARGET
        marks = fields.BEFORE if before else fields.marks_of(task)
        kinds = _given_kinds(task, table)
        forms = _forms(task, table, target, kinds, marks)
        features = [name for name in forms if name != target]
        tells = bool(table.file) and not before  # not of a table that is made up, nor once more
        if tells:
            for line in understood.lines(table, forms, target, kinds, marks):
                log(line)
        rows = _rows(task, table, target, forms[target], marks, log)
        texts = _pick(table.columns[target], rows)
        places, line = splits.of(cfg, table, rows, texts, given.split_of_row)
        if tells:
            log(line)

        # the labels
        about_target, labels = _labels(task, forms[target], table, places, marks)
        if given.noise_N is not None and forms[target].kind == "number":
            about_target["floor"] = _floor_of_noise(given.noise_N, places)
        elif forms[target].kind == "number":
            y_N = columns.numbers_of(target, table.columns[target], forms[target], marks)
            about_target["floor"] = _floor_of_equal_rows(table, features, y_N, rows)

        # the columns as the training rows define them, and all rows as tokens
        row = columns.Row(
            [_fitted(task, table, forms[name], name, places["train"], marks) for name in features],
            marks,
        )
        arrays = {}
        for split in SPLITS:
            parts = {name: _pick(table.columns[name], places[split]) for name in features}
            arrays[split] = row.tokens(parts) | {"labels_BxL": labels[split][:, None]}
        tokens = 1 + len(features)
        if task.seq_len not in (0, tokens):
            what = f"task.seq_len is {task.seq_len}, a row has {tokens} tokens"
            raise UserError(what, "use --config.task.seq_len=0")

        name = f"table:{table.name}{' (distinct rows)' if task.dedup else ''}"
        digests = _digests(table, forms, rows)
        found = cls(arrays, row, About(name, given.notice, about_target, task.scale, digests))
        found.weigh(task, log)
        return found

    def weigh(self, cfg: TaskCfg, log: Log) -> None:
        """Lets classes count as task.class_weights says; UserError where that cannot be."""
        if not cfg.class_weights:
            return
        if self._classes is None:
            what = f"task.class_weights is set, and the target {self._about.target['name']}"
            raise UserError(f"{what} is a number", "leave it empty, or use --config.task.types")
        label_N = self._splits["train"]["labels_BxL"][:, 0]
        self._weight_C = scores.weights(cfg, self._classes, label_N)
        self.choice = scores.MACRO_F1
        log(scores.told(self._weight_C, self._classes))

    def learnt(self) -> dict[str, Any]:
        """Returns all that was learnt from the table, for JSON: columns, target and marks."""
        marks = self._row.marks
        return {
            "columns": {column.name: column.learnt() for column in self._row.columns},
            "target": self._about.target,
            "marks": marks._asdict() | {"missing": sorted(marks.missing)},
            "digests": self._about.digests,
        }

    @classmethod
    def restored(cls, cfg: RunCfg, learnt: dict[str, Any], info: dict[str, Any]) -> TabularTask:
        """Returns the task of a run without its table: what `learnt` and `info` returned of it.

        One row of missing fields stands for every split.
        """
        marks = learnt["marks"]
        marks = Marks(**(marks | {"missing": frozenset(marks["missing"])}))
        found = [columns.restored(name, column) for name, column in learnt["columns"].items()]
        row = columns.Row(found, marks)
        kind = np.int32 if "classes" in learnt["target"] else np.float32
        empty = row.tokens({name: [""] for name in row.names})
        empty["labels_BxL"] = np.zeros((1, 1), kind)
        about = About(
            info["dataset"], info["notice"], learnt["target"], cfg.task.scale, learnt["digests"]
        )
        task = cls(dict.fromkeys(SPLITS, empty), row, about)
        task.without_data(info)
        return task

    def inputs(self, table: Table) -> Arrays:
        """Returns the rows of another table with the same columns; the target may be missing.

        UserError names what is.
        """
        return self._row.tokens(self._features(table), anew=True, place=table.place)

    def _features(self, table: Table) -> dict[str, Sequence[str]]:
        return {name: table.columns[known(table, name, "the run")] for name in self._row.names}

    def unseen(self, table: Table) -> list[str]:
        """Returns lines on what a table holds that training did not show."""
        found = self._row.unseen(self._features(table))
        return [
            f"{name}: {n:,} of {table.rows:,} rows hold what training showed rarely or never"
            for name, n in found.items()
        ]

    def answers(self, out_NxC: np.ndarray) -> dict[str, list]:
        """Returns `scores.named`; or numbers in the target's unit."""
        if self._target:
            return {"prediction": self._target.values(out_NxC[:, 0].astype(np.float64)).tolist()}
        return scores.named(out_NxC, self._classes or [])

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """Returns `scores.classify` or `scores.regress`, by the target."""
        if self._target is None:
            return scores.classify(out, batch, each, self._weight_C)
        if self._target.scale == "standard":
            return scores.regress(out, batch, each)
        import jax.numpy as jnp

        target = self._target
        return scores.regress(out, batch, each, lambda z: target.values(z, jnp) / target.unit)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Returns accuracy and macro-F1.

        Or RMSE and MAE in the target's unit and R2 about the split's own mean.
        """
        if self._target is None:
            return scores.classes(sums)
        unit = self._target.unit
        if split == "train":
            return {"rmse": scores.errors(sums, unit, None)["rmse"]}
        label_N = self._splits[split]["labels_BxL"].astype(np.float64)
        variance = float((self._target.values(label_N) / unit).var())
        found = scores.errors(sums, unit, variance)
        if split in self._about.target["floor"]:
            found["rmse_floor"] = self._about.target["floor"][split]
        return found

    def info(self) -> dict[str, Any]:
        """Returns what the table is, for result.json."""
        return self.kept_info or {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(self._splits),
            "fields_sha256": digest_of_texts([f"{k} {v}" for k, v in self._about.digests.items()]),
            "splits": {split: {"rows": n} for split, n in self.size.items()},
            "target": self._about.target,
            "vocab_size": self.shape.vocab_size,
            "columns": {column.name: column.describe() for column in self._row.columns},
            "scale": self._about.scale,
        }


class _Found(NamedTuple):
    """A table before it is understood."""

    table: Table
    split_of_row: list[str]  # of a folder of splits; [] of one file
    notice: str = ""
    noise_N: np.ndarray | None = None  # of a made-up table: what no model can know


def _found(task: TaskCfg) -> _Found:
    """Returns the table of a file or of a folder, or the one that is made up."""
    if not task.path:
        table, noise_N = synthetic.table()
        notice = f"made-up table: {table.rows:,} rows from a seed, "
        notice += f"noise of sd {synthetic.NOISE:g} (no --config.task.path)"
        return _Found(table, [], notice, noise_N)
    form = Format(task.delimiter, task.encoding)
    folder = Path(task.path).expanduser()
    if not folder.is_dir():
        return _Found(read(task.path, form), [])
    files = splits.files_of(folder, "give a table, or a folder with train.csv and test.csv")
    tables = {split: read(str(file), form) for split, file in files.items()}
    table = joined(list(tables.values()), folder.resolve().name, str(folder))
    return _Found(table, [split for split, part in tables.items() for _ in range(part.rows)])


def _pick(column: list[str], rows: list[int]) -> list[str]:
    return [column[i] for i in rows]


def _forms(
    task: TaskCfg, table: Table, target: str, given: dict[str, str], marks: Marks
) -> dict[str, Form]:
    """Returns how each column that is used is written: features in order, then the target."""
    # which columns
    known(table, target, "task.target")
    chosen = [known(table, name, "task.columns") for name in words(task.columns)]
    ignored = [known(table, name, "task.ignore") for name in words(task.ignore)]
    if target in chosen + ignored:
        what = f"task.columns or task.ignore names the target {target!r}"
        raise UserError(what, "leave it out there")
    candidates = chosen or list(table.columns)
    back = () if chosen else splits.held_back(task)
    features = sorted(name for name in candidates if name not in (*ignored, *back, target))
    if not features:
        what = f"{table.name} has no column left to predict {target} from"
        raise UserError(what, "ignore fewer columns")

    # what they hold; "*" is for all features, not for the target
    decimal = fields.decimal_of((table.columns[name] for name in (*features, target)), marks)
    forms = {}
    for name in features:
        kind = given.get(name) or given.get("*") or ""
        forms[name] = fields.form_of(table.columns[name], marks, decimal, kind)
        if kind:  # the user has said it: no field may be anything else
            forms[name] = forms[name]._replace(others=())
    form = fields.form_of(table.columns[target], marks, decimal, given.get(target, ""))
    if form.kind == "date":
        hint = f"use a column of days, or --config.task.types={target}:category"
        raise UserError(f"the target {target} holds dates", hint)
    return forms | {target: form._replace(others=())}


def _given_kinds(task: TaskCfg, table: Table) -> dict[str, str]:
    """Returns what task.types says: {column, or "*": kind}."""
    given: dict[str, str] = {}
    for entry in words(task.types):
        name, _, kind = entry.rpartition(":")
        if kind not in columns.KINDS:
            hint = "write NAME:number, NAME:category or NAME:date, with commas"
            raise UserError(f"cannot read {entry!r} in task.types", hint)
        given[name if name == "*" else known(table, name, "task.types")] = kind
    return given


def _rows(
    task: TaskCfg, table: Table, target: str, form: Form, marks: Marks, log: Log
) -> list[int]:
    """Returns the rows that have a target and, with task.dedup, equal no earlier one."""
    rows, without = [], []
    for i, text in enumerate(table.columns[target]):
        # "none" may be a class; as a number it is missing
        absent = fields.absent(text, marks) if form.kind == "number" else not text.strip()
        (without if absent else rows).append(i)
    if without:
        places = ", ".join(table.place(i) for i in without[:3])
        places += ", …" if len(without) > 3 else ""
        log(f"{len(without):,} of {table.rows:,} rows have no {target}: left out ({places})")
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
    task: TaskCfg, table: Table, form: Form, name: str, train: list[int], marks: Marks
) -> columns.Numbers | columns.Categories:
    """Returns a column as its training rows define it.

    UserError names the line of a field, in any row, that does not belong into it.
    """
    column = table.columns[name]
    if form.kind != "category":
        columns.numbers_of(name, column, form, marks, table.place)
    texts = _pick(column, train)
    return columns.fit(name, form, texts, marks, task.min_count, task.scale)


def _labels(
    task: TaskCfg, form: Form, table: Table, splits: dict[str, list[int]], marks: Marks
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (what the labels mean, {split: labels}).

    They are classes by their sorted names, or numbers scaled by the training rows.
    """
    name = task.target or synthetic.TARGET
    column = table.columns[name]
    if form.kind == "category":
        if task.target_scale != "standard":
            what = f"task.target_scale is {task.target_scale}, and the target {name} is no number"
            raise UserError(what, "use task.target_scale=standard")
        return _class_labels(name, {split: _pick(column, rows) for split, rows in splits.items()})
    y_N = columns.numbers_of(name, column, form, marks, table.place)
    if task.target_scale == "log":
        for i in sorted(i for rows in splits.values() for i in rows):
            if y_N[i] <= 0.0:
                what = f"{table.place(i)}: the target {name} is {column[i]}, which has no logarithm"
                raise UserError(what, "use task.target_scale=quantile, or leave the row out")
    numbers = {split: y_N[rows] for split, rows in splits.items()}
    target = Target.fit(name, numbers["train"], task.target_scale)
    return target.learnt(), {split: target.labels(y) for split, y in numbers.items()}


def _class_labels(
    name: str, texts: dict[str, list[str]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    found = {split: [fields.composed(text) for text in column] for split, column in texts.items()}
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


def _digests(table: Table, forms: dict[str, Form], rows: list[int]) -> dict[str, str]:
    """Returns a sha256 of each column that is used, of its fields as they were read."""
    return {name: digest_of_texts(_pick(table.columns[name], rows)) for name in forms}


def _floor_of_noise(noise_N: np.ndarray, splits: dict[str, list[int]]) -> dict[str, float]:
    """Returns the RMSE that no model of a made-up table goes below, by split: the noise in it."""
    return {s: float(np.sqrt(np.square(noise_N[rows]).mean())) for s, rows in splits.items()}


def _floor_of_equal_rows(
    table: Table, features: list[str], y_N: np.ndarray, rows: list[int]
) -> dict[str, float]:
    """Returns the RMSE that no model of these columns goes below, by split.

    Nothing where all rows differ.

    It is the spread of rows of equal features about their own mean, over the whole table: no
    function of the features is nearer to that table, so a model far below it has seen the answers.
    """
    cells: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in rows:
        cells[tuple(table.columns[name][i] for name in features)].append(i)
    squares = 0.0
    for equal in cells.values():
        squares += float(np.square(y_N[equal] - y_N[equal].mean()).sum())
    if not squares:
        return {}
    return dict.fromkeys(SPLITS, (squares / len(rows)) ** 0.5)
