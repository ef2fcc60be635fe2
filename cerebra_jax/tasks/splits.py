"""Which rows of a table train, validate and test.

At random, unless a configuration says otherwise: by a column that says it, by groups that stay
together, by time (the latest rows are the test), with equal shares of each class, or as one of
several folds. Each is said in a line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import fields
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.table import Table, known
from cerebra_jax.tasks.task import SPLITS

NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
ENDS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
WAYS = ("split_column", "group", "time", "stratify", "folds")  # keys of task
Rows = dict[str, list[int]]


def check(cfg: RunCfg) -> list[Problem]:
    """Returns what a configuration says of splits that does not go together."""
    task = cfg.task
    given = [f"task.{name}" for name in WAYS if getattr(task, name)]
    if len(given) > 1:
        return [(f"{' and '.join(given)} are set", "rows are split in one way: keep one of them")]
    if task.folds == 1:
        return [("task.folds is 1", "use 2 or more, or 0 for one split")]
    return []


def held_back(task: TaskCfg) -> tuple[str, ...]:
    """Returns the columns that split the rows, and are not for the model."""
    return tuple(name for name in (task.split_column, task.group) if name)


def of(
    cfg: RunCfg, table: Table, rows: Sequence[int], labels: Sequence[str], given: Sequence[str] = ()
) -> tuple[Rows, str]:
    """Returns the row numbers of each split, out of `rows`, and a line that says how they came.

    labels: of `rows`, as text. given: the split of each row of the table, where files say it.
    UserError where a split gets no row, or a row says no split.
    """
    task = cfg.task
    if given:
        for name in WAYS:
            if getattr(task, name):
                what = f"{task.path} holds a file for each split, and task.{name} is set"
                raise UserError(what, f"leave out task.{name}, or give one file")
        found, way = _completed(task, _sorted_by(given, rows)), "as their files are"
    elif task.split_column:
        found, way = _by_column(task, table, rows), f"by column {task.split_column}"
    elif task.group:
        found, way = _by_group(task, table, rows), f"by groups of {task.group}"
    elif task.time:
        found, way = _by_time(task, table, rows), f"by time ({task.time}: the latest are the test)"
    elif task.folds:
        fold = cfg.seed % task.folds
        found = _by_fold(task, rows, fold)
        way = f"at random, fold {fold + 1} of {task.folds} (seed {cfg.seed}) is the test"
    elif task.stratify:
        found, way = _by_class(task, rows, labels), "at random, in each class"
    else:
        found, way = _picked(rows, cut(len(rows), task.valid_share, task.test_share)), "at random"
    _none_empty(found, f"to split rows {way}")
    counts = ", ".join(f"{len(found[split]):,} {split}" for split in SPLITS)
    return found, f"rows are split {way}: {counts}"


def files_of(folder: Path, hint: str) -> dict[str, Path]:
    """Returns the files of a folder by split: of train and test, and of valid where there is one.

    A folder with train and validation only (SNIPS) takes the latter for the test.
    """
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        candidates = [folder / f"{name}{end}" for name in names for end in ENDS]
        files = [file for file in candidates if file.is_file()]
        if len(files) > 1:
            what = f"{files[0]} and {files[1]} are one split twice"
            raise UserError(what, "leave one of them")
        if files:
            found[split] = files[0]
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
    for split in ("train", "test"):
        if split not in found:
            raise UserError(f"{folder} has no {split}.csv", hint)
    return found


def _picked(rows: Sequence[int], places: dict[str, np.ndarray]) -> Rows:
    return {split: [rows[i] for i in ids] for split, ids in places.items()}


def _sorted_by(split_of_row: Sequence[str], rows: Sequence[int]) -> Rows:
    found: Rows = {split: [] for split in SPLITS}
    for i in rows:
        found[split_of_row[i]].append(i)
    return found


def _completed(task: TaskCfg, found: Rows) -> Rows:
    """Returns three splits: where none is for validation, a part of train is."""
    if found["valid"]:
        return found
    places = _picked(found["train"], cut(len(found["train"]), task.valid_share, 0.0))
    return places | {"test": found["test"]}


def _by_column(task: TaskCfg, table: Table, rows: Sequence[int]) -> Rows:
    column = table.columns[known(table, task.split_column, "task.split_column")]
    split_of = {name: split for split, names in NAMES.items() for name in names}
    said = [split_of.get(text.strip().lower(), "") for text in column]
    for i in rows:
        if not said[i]:
            what = f"{table.place(i)}: column {task.split_column} holds {column[i]!r}"
            raise UserError(what, "write train, valid or test")
    return _none_empty(_completed(task, _sorted_by(said, rows)), task.split_column)


def _by_group(task: TaskCfg, table: Table, rows: Sequence[int]) -> Rows:
    column = table.columns[known(table, task.group, "task.group")]
    size = Counter(column[i] for i in rows)
    groups = sorted(size)
    wanted = {"test": task.test_share * len(rows), "valid": task.valid_share * len(rows)}
    split_of: dict[str, str] = {}
    taken = {"test": 0, "valid": 0}
    for k in np.random.RandomState(42).permutation(len(groups)):
        group = groups[k]
        # a group goes where it still fits by half; the rest is for training
        split = next((s for s in wanted if taken[s] + size[group] / 2 <= wanted[s]), "train")
        split_of[group] = split
        if split != "train":
            taken[split] += size[group]
    return _none_empty(_sorted_by([split_of.get(x, "") for x in column], rows), task.group)


def _by_time(task: TaskCfg, table: Table, rows: Sequence[int]) -> Rows:
    name = known(table, task.time, "task.time")
    form = fields.form_of(table.columns[name], fields.marks_of(task))
    if form.kind == "category":
        what = f"column {name} holds neither dates nor numbers"
        raise UserError(what, "name its form: --config.task.dates=%d/%m/%Y, say")
    at = []
    for i in rows:
        text = table.columns[name][i]
        value = fields.value(text, form)
        if value is None:
            what = f"{table.place(i)}: column {name} holds {text!r}, which is no time"
            raise UserError(what, "mend it, or leave the row out")
        at.append(value)
    order_N = np.argsort(at, kind="stable")
    return _picked(rows, cut(len(rows), task.valid_share, task.test_share, order_N))


def _by_fold(task: TaskCfg, rows: Sequence[int], fold: int) -> Rows:
    order = np.random.RandomState(42).permutation(len(rows))
    parts = np.array_split(order, task.folds)
    rest = np.concatenate([part for i, part in enumerate(parts) if i != fold])
    n = max(1, int(round(task.valid_share, 9) * len(rest)))
    found = {"train": rest[n:], "valid": rest[:n], "test": parts[fold]}
    return _none_empty(_picked(rows, found), "task.folds")


def _by_class(task: TaskCfg, rows: Sequence[int], labels: Sequence[str]) -> Rows:
    found: Rows = {split: [] for split in SPLITS}
    order = np.random.RandomState(42).permutation(len(rows))
    of_class: dict[str, list[int]] = {}
    for k in order:
        of_class.setdefault(labels[k], []).append(rows[k])
    for label in sorted(of_class):
        own = of_class[label]
        test = round(task.test_share * len(own))
        valid = round(task.valid_share * len(own))
        found["test"] += own[:test]
        found["valid"] += own[test : test + valid]
        found["train"] += own[test + valid :]
    return _none_empty(found, "task.stratify")


def _none_empty(found: Rows, what: str) -> Rows:
    for split in SPLITS:
        if not found[split]:
            hint = "give more rows, or other shares: task.valid_share, task.test_share"
            raise UserError(f"{what} leaves no row for {split}", hint)
    return found
