"""Which rows of a table train, validate and test.

At random, unless a configuration says otherwise: by a column that says it, by groups that stay
together, by time (the latest rows are the test), with equal shares of each class, or as one of
several folds. Each is said in a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cerebra_jax.checks import Problem
from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import fields
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.fields import Marks
from cerebra_jax.tasks.table import Table, known
from cerebra_jax.tasks.task import SPLITS

NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
ENDS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
Rows = dict[str, list[int]]


def check(cfg: RunCfg) -> list[Problem]:
    """Returns what a configuration says of splits that does not go together."""
    task = cfg.task
    ways = ("split_column", "group", "time", "stratify", "folds")
    given = [f"task.{name}" for name in ways if getattr(task, name)]
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
        places = cut(len(rows), task.valid_share, task.test_share)
        found = {split: [rows[i] for i in ids] for split, ids in places.items()}
        way = "at random"
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


def _sorted_by(split_of_row: Sequence[str], rows: Sequence[int]) -> Rows:
    found: Rows = {split: [] for split in SPLITS}
    for i in rows:
        found[split_of_row[i]].append(i)
    return found


def _completed(task: TaskCfg, found: Rows) -> Rows:
    """Returns three splits: where none is for validation, a part of train is."""
    if found["valid"]:
        return found
    train = found["train"]
    places = cut(len(train), task.valid_share, 0.0)
    return found | {split: [train[i] for i in places[split]] for split in ("train", "valid")}


def _by_column(task: TaskCfg, table: Table, rows: Sequence[int]) -> Rows:
    column = table.columns[known(table, task.split_column, "task.split_column")]
    split_of = {name: split for split, names in NAMES.items() for name in names}
    found: Rows = {split: [] for split in SPLITS}
    for i in rows:
        split = split_of.get(column[i].strip().lower())
        if split is None:
            what = f"{table.place(i)}: column {task.split_column} holds {column[i]!r}"
            raise UserError(what, "write train, valid or test")
        found[split].append(i)
    return _none_empty(_completed(task, found), task.split_column)


def _by_group(task: TaskCfg, table: Table, rows: Sequence[int]) -> Rows:
    column = table.columns[known(table, task.group, "task.group")]
    groups = sorted({column[i] for i in rows})
    size = {group: 0 for group in groups}
    for i in rows:
        size[column[i]] += 1
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
    found: Rows = {split: [] for split in SPLITS}
    for i in rows:
        found[split_of[column[i]]].append(i)
    return _none_empty(found, task.group)


def _by_time(task: TaskCfg, table: Table, rows: Sequence[int]) -> Rows:
    name = known(table, task.time, "task.time")
    marks = Marks(dates=task.dates)
    form = fields.form_of(table.columns[name], marks)
    if form.kind == "category":
        what = f"column {name} holds neither dates nor numbers"
        raise UserError(what, "name its form: --config.task.dates=%d/%m/%Y, say")
    at = []
    for i in rows:
        text = table.columns[name][i]
        date = form.kind == "date"
        value = fields.days(text, form.date) if date else fields.number(text, form.decimal)
        if value is None:
            what = f"{table.place(i)}: column {name} holds {text!r}, which is no time"
            raise UserError(what, "mend it, or leave the row out")
        at.append(value)
    order = [rows[k] for k in np.argsort(at, kind="stable")]
    n = len(order)
    first = int(round(1.0 - task.valid_share - task.test_share, 9) * n)
    second = first + int(round(task.valid_share, 9) * n) if task.test_share else n
    found = {"train": order[:first], "valid": order[first:second], "test": order[second:]}
    return _none_empty(found, name)


def _by_fold(task: TaskCfg, rows: Sequence[int], fold: int) -> Rows:
    order = np.random.RandomState(42).permutation(len(rows))
    parts = np.array_split(order, task.folds)
    rest = np.concatenate([part for i, part in enumerate(parts) if i != fold])
    n = max(1, int(round(task.valid_share, 9) * len(rest)))
    found = {"train": rest[n:], "valid": rest[:n], "test": parts[fold]}
    return _none_empty({s: [rows[i] for i in ids] for s, ids in found.items()}, "task.folds")


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
