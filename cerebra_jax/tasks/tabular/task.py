"""Regression or classification of the rows of a table, a token per column (FT-Transformer, arXiv:2106.11959).

`columns` says how a row becomes tokens. The model's own positions follow the order of the columns' names, so a table
with its columns in another order is the same task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores
from cerebra_jax.tasks.examples import SPLITS, Arrays, Examples, cut, digest
from cerebra_jax.tasks.table import Table, known, read
from cerebra_jax.tasks.tabular import columns as col
from cerebra_jax.tasks.tabular import synthetic as made
from cerebra_jax.tasks.task import LOSS, Metric, Pairs, Shape
from cerebra_jax.types import Batch

if TYPE_CHECKING:
    from cerebra_jax.types import Out

Say = Callable[[str], None]


class TabularTask(Examples):
    """A table in three splits. Its loss is in squared standard deviations of the training target, or in nats."""

    choice = LOSS

    def __init__(self, dataset: str, notice: str, splits: dict[str, Arrays], row: col.Row, labels: dict[str, Any],
                 about: dict[str, Any]):  # fmt: skip
        super().__init__(splits)
        self._row = row
        self.dataset, self.notice, self._labels, self._about = dataset, notice, labels, about
        self._classes = labels.get("classes")
        tokens = splits["train"]["inputs_BxL"].shape[1]
        self.shape = Shape(tokens, row.ids, outputs=len(self._classes) if self._classes else 1)
        self.metrics: tuple[Metric, ...] = (scores.RMSE, scores.MAE, scores.R2)
        if labels.get("floor"):
            self.metrics += (Metric("rmse_floor", "RMSE floor", 1, lower=True),)
        if self._classes:
            self.metrics, self.choice = (scores.ACCURACY, scores.MACRO_F1), scores.ACCURACY

    def inputs(self, table: Table) -> Arrays:
        """The rows of another table with the same columns; the target may be missing. UserError names what is."""
        return self._row.tokens(
            {name: table.columns[known(table, name, "the run")] for name in self._row.names}
        )

    def answers(self, out_NxC: np.ndarray) -> dict[str, list]:
        """`scores.named`; or numbers in the target's unit."""
        if self._classes:
            return scores.named(out_NxC, self._classes)
        return {"prediction": (out_NxC[:, 0] * self._labels["sd"] + self._labels["mean"]).tolist()}

    def loss(self, out: Out, batch: Batch, chunk: int, each: bool = False) -> tuple[Any, Pairs]:
        """`scores.classify` or `scores.regress`, by the target."""
        return (scores.classify if self._classes else scores.regress)(out, batch, each)

    def report(self, split: str, sums: Pairs) -> dict[str, float]:
        """Accuracy and macro-F1; or RMSE and MAE in the target's unit and R2 about the split's own mean."""
        if self._classes:
            return scores.classes(sums)
        if split == "train":
            return {"rmse": scores.errors(sums, self._labels["sd"], None)["rmse"]}
        variance = float(self._splits[split]["labels_BxL"].astype(np.float64).var())
        found = scores.errors(sums, self._labels["sd"], variance)
        floor = self._labels["floor"].get(split)
        return found if floor is None else found | {"rmse_floor": floor}

    def info(self) -> dict[str, Any]:
        """What the table is, for result.json."""
        sizes = {split: {"rows": n} for split, n in self.size.items()}
        what = {
            "dataset": self.dataset,
            "notice": self.notice,
            "sha256": digest(self._splits),
            "splits": sizes,
        }
        return what | {"target": self._labels, "vocab_size": self.shape.vocab_size} | self._about


def build(cfg: RunCfg, say: Say = print) -> TabularTask:
    """The table of a configuration in its splits; UserError says what is wrong with the file or the settings."""
    task = cfg.task
    noise, notice = None, ""
    if task.path:
        if not task.target:
            raise UserError(
                "task.target is empty", "name the column to predict: --config.task.target=NAME"
            )
        table, target = read(task.path), task.target
    else:
        table, noise = made.table()
        target = task.target or made.TARGET
        notice = f"made-up table: {table.rows:,} rows from a seed, noise of sd {made.NOISE:g} (no --config.task.path)"
    features, kinds = _features(task, table, target)
    # "none" may be a class; as a number it is missing
    absent = col.missing if kinds[target] == "number" else lambda text: not text.strip()
    keep = [i for i, text in enumerate(table.columns[target]) if not absent(text)]
    if len(keep) < table.rows:
        say(f"{table.rows - len(keep):,} of {table.rows:,} rows have no {target}: left out")
    if task.dedup:
        keep, before = _distinct(table, keep), len(keep)
        say(
            f"{before - len(keep):,} of {before:,} rows equal an earlier one in every column: left out"
        )
    parts = {
        s: [keep[i] for i in rows]
        for s, rows in cut(len(keep), task.valid_share, task.test_share).items()
    }

    fields = {
        name: {s: [table.columns[name][i] for i in rows] for s, rows in parts.items()}
        for name in features
    }
    row = col.Row(
        [
            col.fit(name, kinds[name], fields[name]["train"], task.min_count, task.scale)
            for name in features
        ]
    )
    wanted = {s: [table.columns[target][i] for i in rows] for s, rows in parts.items()}
    labels, values = _target(target, kinds[target], wanted, say)
    if kinds[target] == "number":
        labels["floor"] = _floor(table, features, target, keep, parts, noise)
    splits = {}
    for split in SPLITS:
        tokens = row.tokens({name: fields[name][split] for name in features})
        splits[split] = tokens | {"labels_BxL": values[split][:, None]}
    tokens = 1 + len(features)
    if task.seq_len not in (0, tokens):
        raise UserError(
            f"task.seq_len is {task.seq_len}, a row has {tokens} tokens",
            "use --config.task.seq_len=0",
        )
    name = f"table:{table.name}{' (distinct rows)' if task.dedup else ''}"
    about = {"columns": {c.name: c.describe() for c in row.columns}, "scale": task.scale}
    return TabularTask(name, notice, splits, row, labels, about)


def _features(task: TaskCfg, table: Table, target: str) -> tuple[list[str], dict[str, str]]:
    """(names of the feature columns, sorted; kind of each column that is used)."""
    names = list(table.columns)

    known(table, target, "task.target")
    only = [known(table, name, "task.columns") for name in task.columns]
    ignored = [known(table, name, "task.ignore") for name in task.ignore]
    if target in only + ignored:
        raise UserError(
            f"task.columns or task.ignore names the target {target!r}", "leave it out there"
        )
    features = sorted(name for name in (only or names) if name not in (*ignored, target))
    if not features:
        raise UserError(
            f"{table.name} has no column left to predict {target} from", "ignore fewer columns"
        )
    given: dict[str, str] = {}
    for word in task.types:
        name, _, kind = word.rpartition(":")
        if kind not in col.KINDS:
            raise UserError(
                f"cannot read {word!r} in task.types",
                "write NAME:number or NAME:category, with commas",
            )
        given[name if name == "*" else known(table, name, "task.types")] = kind
    rest = {name: given.get("*") or col.kind_of(table.columns[name]) for name in features}
    rest[target] = col.kind_of(table.columns[target])
    return features, rest | {name: kind for name, kind in given.items() if name in rest}


def _target(
    name: str, kind: str, wanted: dict[str, list[str]], say: Say
) -> tuple[dict[str, Any], Arrays]:
    """(what the labels mean, {split: labels}): classes by their sorted names, or numbers scaled by training rows."""
    if kind == "category":
        found = {s: [text.strip() for text in texts] for s, texts in wanted.items()}
        classes = sorted(set().union(*found.values()))
        if len(classes) < 2:
            raise UserError(
                f"the target {name} has one class only, {classes[0]!r}",
                "choose another task.target",
            )
        ids = {text: i for i, text in enumerate(classes)}
        labels = {
            s: np.asarray([ids[text] for text in texts], np.int32) for s, texts in found.items()
        }
        return {"name": name, "kind": kind, "classes": classes}, labels
    y = {s: col.numbers_of(name, texts) for s, texts in wanted.items()}
    mean, sd = float(y["train"].mean()), float(y["train"].std())
    if sd == 0.0:
        raise UserError(
            f"the target {name} is {mean:g} in every training row", "choose another task.target"
        )
    if len(few := np.unique(y["train"])) <= 10:
        say(
            f"{name} has {len(few)} values and is taken for a number; classes: --config.task.types={name}:category"
        )
    labels = {s: ((x - mean) / sd).astype(np.float32) for s, x in y.items()}
    return {"name": name, "kind": kind, "mean": mean, "sd": sd}, labels


def _floor(table: Table, features: list[str], target: str, keep: list[int], parts: dict[str, list[int]],
           noise: np.ndarray | None) -> dict[str, float]:  # fmt: skip
    """RMSE that no model of these columns goes below, by split; nothing where all rows differ.

    Of a made-up table, the noise in the split. Else the spread of rows of equal features about their own mean, over the
    whole table: no function of the features is nearer to that table, so a model far below it has seen the answers.
    """
    if noise is not None:
        return {s: float(np.sqrt(np.square(noise[rows]).mean())) for s, rows in parts.items()}
    cells: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in keep:
        cells[tuple(table.columns[name][i] for name in features)].append(i)
    y = col.numbers_of(target, table.columns[target])
    squares = sum(float(np.square(y[rows] - y[rows].mean()).sum()) for rows in cells.values())
    return dict.fromkeys(SPLITS, (squares / len(keep)) ** 0.5) if squares else {}


def _distinct(table: Table, keep: list[int]) -> list[int]:
    """The rows of `keep` that equal no earlier one in every column."""
    seen: dict[tuple[str, ...], int] = {}
    for i in keep:
        seen.setdefault(tuple(column[i] for column in table.columns.values()), i)
    return list(seen.values())
