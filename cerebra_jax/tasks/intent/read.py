"""Labelled texts in three splits: a CSV file, a folder of them, CLINC150's form, tensorflow-datasets, or made up.

What a file does not split is split here, by `examples.cut`: numpy's RandomState(42), so that others find the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.examples import SPLITS, cut
from cerebra_jax.tasks.intent import synthetic as made
from cerebra_jax.tasks.table import Table, known, read, text_of

OUT = "oos"  # the label of what belongs to no intent
TEXTS = ("text", "utterance", "sentence", "query")
_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_ENDS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

Row = tuple[str, str]  # text, label


class Labelled(NamedTuple):
    """Rows of each split, in order; the rows of train in the order in which k-shot takes the first of each label."""

    name: str
    rows: dict[str, list[Row]]
    notice: str = ""


def find(cfg: TaskCfg, say: Callable[[str], None] = print) -> Labelled:
    """The texts that a configuration asks for, out-of-scope rows and k-shot not yet applied; UserError."""
    if cfg.tfds:
        return _catalogue(cfg, say)
    if not cfg.path:
        rows = made.utterances()
        parts = cut(len(rows), cfg.valid_share, cfg.test_share)
        notice = f"made-up utterances: {len(rows):,} from templates (no --config.task.path)"
        return Labelled(
            "made-up utterances", {s: [rows[i] for i in ids] for s, ids in parts.items()}, notice
        )
    path = Path(cfg.path).expanduser()
    if path.is_dir():
        return _folder(path, cfg)
    if path.name.removesuffix(".gz").endswith(".json"):
        return _clinc(path)
    table = read(cfg.path)
    rows = _rows(table, cfg)
    parts = cut(len(rows), cfg.valid_share, cfg.test_share)
    return Labelled(table.name, {s: [rows[i] for i in ids] for s, ids in parts.items()})


def _folder(path: Path, cfg: TaskCfg) -> Labelled:
    """train and test files, and one for validation, else it is the last task.valid_share of train's permutation.

    A folder with train and validation only (SNIPS) takes the latter for the test.
    """
    files = {s: [p for name in names for end in _ENDS if (p := path / f"{name}{end}").is_file()]
             for s, names in _NAMES.items()}  # fmt: skip
    if twice := [f for f in files.values() if len(f) > 1]:
        raise UserError(f"{twice[0][0]} and {twice[0][1]} are one split twice", "leave one of them")
    found = {s: f[0] for s, f in files.items() if f}
    if "test" not in found and "valid" in found:
        found["test"] = found.pop("valid")
    if not {"train", "test"} <= found.keys():
        missing = "train" if "train" not in found else "test"
        raise UserError(
            f"{path} has no {missing}.csv", "give a folder with train.csv and test.csv, or one file"
        )
    rows = {s: _rows(read(str(file)), cfg) for s, file in found.items()}
    return Labelled(path.resolve().name, _completed(rows, cfg))


def _catalogue(cfg: TaskCfg, say: Callable[[str], None]) -> Labelled:
    """A data set of tensorflow-datasets with its own splits; one that has train alone is cut as one file is."""
    from cerebra_jax.tasks.intent import catalogue

    found = catalogue.load(cfg, [name for names in _NAMES.values() for name in names], TEXTS, say)
    rows = {s: found[name] for s, names in _NAMES.items() for name in names if name in found}
    if "train" not in rows:
        what = f"{cfg.tfds} has no labelled split train, but {', '.join(found) or 'none'}"
        raise UserError(what, "choose another task.tfds")
    notice = ""
    if "test" not in rows and "valid" in rows:
        rows["test"] = rows.pop("valid")
        notice = f"{cfg.tfds} gives no labels of a test away: its validation split is the test"
    return Labelled(cfg.tfds, _completed(rows, cfg), notice)


def _completed(rows: dict[str, list[Row]], cfg: TaskCfg) -> dict[str, list[Row]]:
    """Three splits: those that are missing are cut from train."""
    if "valid" in rows:
        order = np.random.RandomState(42).permutation(len(rows["train"]))
        return rows | {"train": [rows["train"][i] for i in order]}
    parts = cut(len(rows["train"]), cfg.valid_share, 0.0 if "test" in rows else cfg.test_share)
    return {s: [rows["train"][i] for i in ids] for s, ids in parts.items()} | {
        s: rows[s] for s in rows if s != "train"
    }


def _clinc(path: Path) -> Labelled:
    """CLINC150's form: {"train": [[text, label], …], "val": …, "test": …} and the same with oos_ before."""
    try:
        data = json.loads(text_of(path))
        rows = {s: _pairs(data[key]) + _pairs(data.get(f"oos_{key}", []))
                for s, key in zip(SPLITS, ("train", "val", "test"), strict=True)}  # fmt: skip
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as e:
        what = f"{path} is not in CLINC150's form ({type(e).__name__}: {e})"
        raise UserError(what, "give its data_full.json or data_small.json, or a CSV file") from None
    order = np.random.RandomState(42).permutation(len(rows["train"]))
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return Labelled(f"clinc150 {name}", rows | {"train": [rows["train"][i] for i in order]})


def _pairs(rows: Any) -> list[Row]:
    pairs = [(text, label) for text, label in rows]
    if not all(isinstance(x, str) for pair in pairs for x in pair):
        raise TypeError("texts and labels must be strings")
    return pairs


def text_column(table: Table, name: str) -> str:
    """The column with the texts: the one of that name (task.columns), else one that is called as texts are."""
    text = (
        known(table, name, "task.columns")
        if name
        else next((n for n in table.columns if n in TEXTS), "")
    )
    if not text:
        raise UserError(
            f"{table.name} has no column text",
            "name the one with the texts: --config.task.columns=NAME",
        )
    return text


def _rows(table: Table, cfg: TaskCfg) -> list[Row]:
    """The texts and labels of a table: its column `text` (or task.columns), and task.target or the only other one."""
    names, text = list(table.columns), text_column(table, ",".join(cfg.columns))
    others = [name for name in names if name != text]
    if cfg.target:
        label = known(table, cfg.target, "task.target")
    elif len(others) == 1:
        label = others[0]
    else:
        what = f"{table.name} has {len(others)} columns beside {text}"
        raise UserError(what, "name the one with the labels: --config.task.target=NAME")
    labels = [x.strip() for x in table.columns[label]]
    if "" in labels:
        raise UserError(
            f"{table.name}, row {labels.index('') + 1}, has no {label}",
            "mend it, or leave the row out",
        )
    return list(zip(table.columns[text], labels, strict=True))


def shots(rows: list[Row], k: int) -> list[Row]:
    """The first k rows of each label, in order; all where a label has fewer."""
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row[1]] = seen.get(row[1], 0) + 1
        if seen[row[1]] <= k:
            kept.append(row)
    return kept
