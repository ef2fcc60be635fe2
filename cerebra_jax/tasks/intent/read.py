"""Labelled texts in three splits, from wherever they come.

They are a CSV file, a folder of them, CLINC150's form, a data set of tensorflow-datasets, or made
up.

What a file does not split is split here, by `examples.cut`: numpy's RandomState(42), so that others
find the same rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.config import RunCfg, TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import splits
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.intent import synthetic
from cerebra_jax.tasks.table import Format, Table, known, read, text_of
from cerebra_jax.tasks.task import SPLITS, Log

OUT = "oos"  # the label of what belongs to no intent
LARGEST_JSON = 1 << 26  # characters; Python's objects take up to 30 times as many bytes
TEXTS = ("text", "utterance", "sentence", "query")

Row = tuple[str, str]  # text, label


class Labelled(NamedTuple):
    """Rows of each split, in order.

    The rows of train in the order in which k-shot takes the first of each label.
    """

    name: str
    rows: dict[str, list[Row]]
    notice: str = ""


def find(run: RunCfg, log: Log = print) -> Labelled:
    """Returns the texts that a configuration asks for; raises UserError where there are none.

    task.oos and task.shots do not yet leave any out.
    """
    cfg = run.task
    if cfg.tfds:
        return _catalogue(cfg, log)
    if not cfg.path:
        rows = synthetic.utterances()
        notice = f"made-up utterances: {len(rows):,} from templates (no --config.task.path)"
        return Labelled("made-up utterances", _cut(rows, cfg), notice)
    path = Path(cfg.path).expanduser()
    if path.is_dir():
        return _folder(path, cfg)
    if path.name.removesuffix(".gz").endswith(".json"):
        return _clinc(path)
    table = read(cfg.path, Format(cfg.delimiter, cfg.encoding))
    log(f"{table.file}: {table.rows:,} texts, {table.how}")
    rows = _rows(table, cfg)
    places, line = splits.of(run, table, range(table.rows), [label for _, label in rows])
    log(line)
    return Labelled(table.name, {s: [rows[i] for i in ids] for s, ids in places.items()})


def _cut(rows: list[Row], cfg: TaskCfg) -> dict[str, list[Row]]:
    """Returns three splits of rows that have none."""
    splits = cut(len(rows), cfg.valid_share, cfg.test_share)
    return {split: [rows[i] for i in ids] for split, ids in splits.items()}


def _folder(path: Path, cfg: TaskCfg) -> Labelled:
    """Returns the texts of a folder: of its train and test files, and of one for validation.

    Where there is none, validation is the last task.valid_share of train's permutation. A folder
    with train and validation only (SNIPS) takes the latter for the test.
    """
    found = splits.files_of(path, "give a folder with train.csv and test.csv, or one file")
    form = Format(cfg.delimiter, cfg.encoding)
    rows = {split: _rows(read(str(file), form), cfg) for split, file in found.items()}
    return Labelled(path.resolve().name, _completed(rows, cfg))


def _catalogue(cfg: TaskCfg, log: Log) -> Labelled:
    """Returns a data set of tensorflow-datasets with its own splits.

    One that has train alone is cut as a file is.
    """
    from cerebra_jax.tasks.intent import catalogue

    wanted = [name for names in splits.NAMES.values() for name in names]
    found = catalogue.load(cfg, wanted, TEXTS, log)
    rows: dict[str, list[Row]] = {}
    for split, names in splits.NAMES.items():
        for name in names:
            if name in found:
                rows[split] = found[name]
    if "train" not in rows:
        what = f"{cfg.tfds} has no labelled split train, but {', '.join(found) or 'none'}"
        raise UserError(what, "choose another task.tfds")
    notice = ""
    if "test" not in rows and "valid" in rows:
        rows["test"] = rows.pop("valid")
        notice = (
            f"{cfg.tfds} does not publish the labels of a test: its validation split is the test"
        )
    return Labelled(cfg.tfds, _completed(rows, cfg), notice)


def _completed(rows: dict[str, list[Row]], cfg: TaskCfg) -> dict[str, list[Row]]:
    """Returns three splits: those that are missing are cut from train."""
    train = rows["train"]
    if "valid" in rows:
        return rows | {"train": _in_random_order(train)}
    test = 0.0 if "test" in rows else cfg.test_share
    splits = cut(len(train), cfg.valid_share, test)
    completed = {split: [train[i] for i in ids] for split, ids in splits.items()}
    if "test" in rows:
        completed["test"] = rows["test"]
    return completed


def _in_random_order(rows: list[Row]) -> list[Row]:
    return [rows[i] for i in np.random.RandomState(42).permutation(len(rows))]


def _clinc(path: Path) -> Labelled:
    """Returns texts in CLINC150's form.

    That is {"train": [[text, label], …], "val": …, "test": …} and the same keys with oos_ before.
    """
    hint = "give its data_full.json or data_small.json, or a CSV file"
    rows = {}
    try:
        text = text_of(path)
        if len(text) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON >> 20} Mi characters")
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("it holds no splits by name")
        for split, key in zip(SPLITS, ("train", "val", "test"), strict=True):
            if key not in data:
                raise ValueError(f"there is no {key}")
            out = f"oos_{key}"
            rows[split] = _pairs(key, data[key]) + _pairs(out, data.get(out, []))
    except RecursionError:
        raise UserError(f"{path} is not in CLINC150's form (lists in lists)", hint) from None
    except ValueError as e:
        raise UserError(f"{path} is not in CLINC150's form ({e})", hint) from None
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return Labelled(f"clinc150 {name}", rows | {"train": _in_random_order(rows["train"])})


def _pairs(key: str, rows: Any) -> list[Row]:
    """Returns the rows of a split; ValueError where they are no list of pairs of strings."""
    if not isinstance(rows, list):
        raise ValueError(f"{key} is no list")
    for i, row in enumerate(rows, start=1):
        is_pair = isinstance(row, list) and len(row) == 2
        if not is_pair or not all(isinstance(x, str) for x in row):
            raise ValueError(f"{key}, row {i} is not [text, label]")
        if not all(map(_is_unicode, row)):
            raise ValueError(f"{key}, row {i} holds half of a surrogate pair")
    return [(text, label) for text, label in rows]


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def text_column(table: Table, name: str) -> str:
    """Returns the column with the texts.

    It is the one of that name (task.columns), else one that is called as texts are.
    """
    if name:
        return known(table, name, "task.columns")
    for column in table.columns:
        if column in TEXTS:
            return column
    hint = "name the one with the texts: --config.task.columns=NAME"
    raise UserError(f"{table.name} has no column text", hint)


def label_column(table: Table, name: str, text: str) -> str:
    """Returns the column with the labels.

    It is the one of that name (task.target), else the only one beside the texts.
    """
    if name:
        return known(table, name, "task.target")
    others = [column for column in table.columns if column != text]
    if len(others) != 1:
        what = f"{table.name} has {len(others)} columns beside {text}"
        raise UserError(what, "name the one with the labels: --config.task.target=NAME")
    return others[0]


def one_column(names: str | tuple[str, ...]) -> str:
    """Returns the one name that task.columns holds for labelled texts; a comma belongs to it."""
    return names if isinstance(names, str) else ",".join(names)


def _rows(table: Table, cfg: TaskCfg) -> list[Row]:
    """Returns the texts and labels of a table; raises UserError where a row has no label."""
    text = text_column(table, one_column(cfg.columns))
    label = label_column(table, cfg.target, text)
    labels = [x.strip() for x in table.columns[label]]
    if "" in labels:
        what = f"{table.place(labels.index(''))}: the row has no {label}"
        raise UserError(what, "mend it, or leave the row out")
    return list(zip(table.columns[text], labels, strict=True))


def shots(rows: list[Row], k: int) -> list[Row]:
    """Returns the first k rows of each label, in order; all where a label has fewer."""
    seen: dict[str, int] = {}
    first = []
    for row in rows:
        seen[row[1]] = seen.get(row[1], 0) + 1
        if seen[row[1]] <= k:
            first.append(row)
    return first
