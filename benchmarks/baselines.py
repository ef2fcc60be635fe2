"""Puts our models beside scikit-learn on tables and texts, on the same rows, three seeds each.

python benchmarks/baselines.py [--sets=salaries,diabetes,cancer,banking77,clinc150,snips]
                               [--data=DIR] [--seeds=3] [--work=runs/baselines] [--out=FILE.json]

Tables stand beside HistGradientBoosting with its own defaults, texts beside a linear SVM on TF-IDF
of words and characters. DIR holds salaries/salaries.csv, banking77/ and snips/ with their train and
test, clinc150/data_small.json.gz; diabetes and cancer come with scikit-learn. Both read the rows
with this package's reader and train on its training rows; checkpoints are chosen on its validation
rows. Needs the extra `bench`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np

import cerebra_jax
from cerebra_jax.cli import settings
from cerebra_jax.config import RunCfg
from cerebra_jax.tasks import fields, splits
from cerebra_jax.tasks.intent import read as texts
from cerebra_jax.tasks.registry import build
from cerebra_jax.tasks.table import Format, Table, read
from cerebra_jax.training import results

LARGEST = 254  # categories of a column that HistGradientBoosting can tell apart


class Set(NamedTuple):
    """A data set: our configuration for it, and where its file is, below --data."""

    spec: str
    path: str  # "": it comes with scikit-learn
    target: str = ""


SETS = {
    "salaries": Set("configs/tabular.py:salaries", "salaries/salaries.csv"),
    "diabetes": Set("configs/tabular.py:small", "", "target"),
    "cancer": Set("configs/tabular.py:small", "", "target"),
    "banking77": Set("configs/intent.py:banking77", "banking77"),
    "clinc150": Set("configs/intent.py:clinc150", "clinc150/data_small.json.gz"),
    "snips": Set("configs/intent.py:snips", "snips"),
}


def bundled(name: str, folder: Path) -> Path:
    """Writes a data set of scikit-learn as CSV, and returns its path."""
    import sklearn.datasets as data

    found = {"diabetes": data.load_diabetes, "cancer": data.load_breast_cancer}[name]()
    classes = getattr(found, "target_names", None)
    target = found.target if classes is None else [classes[i] for i in found.target]
    names = [str(n).replace(" ", "_") for n in found.feature_names]
    lines = [",".join([*names, "target"])]
    for row, y in zip(found.data.tolist(), target, strict=True):
        lines.append(",".join([*map(repr, row), str(y)]))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# scikit-learn


def boosted(cfg: RunCfg, seed: int) -> dict[str, float]:
    """Returns the test figures of HistGradientBoosting on the rows of a table's task."""
    from sklearn import ensemble, metrics
    from sklearn.preprocessing import OrdinalEncoder

    task: Any = build(cfg, lambda line: None)
    table = read(cfg.task.path, Format(cfg.task.delimiter, cfg.task.encoding))
    target = cfg.task.target
    rows = range(table.rows)
    places, _ = splits.of(cfg, table, rows, table.columns[target])
    numeric, x_NxF = _features(table, task.columns, cfg.task.types)
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=-1,
        max_categories=LARGEST,
        encoded_missing_value=-1,
    )
    categories = [i for i, is_number in enumerate(numeric) if not is_number]
    train, test = places["train"], places["test"]
    coded_NxF = np.empty(x_NxF.shape)
    for i, is_number in enumerate(numeric):
        if is_number:
            coded_NxF[:, i] = [float(x or "nan") for x in x_NxF[:, i]]
    if categories:
        encoder.fit(x_NxF[train][:, categories])
        coded_NxF[:, categories] = encoder.transform(x_NxF[:, categories])
    coded_NxF[coded_NxF == -1] = np.nan

    label_N = np.asarray(table.columns[target])
    if task.classes:
        model = ensemble.HistGradientBoostingClassifier(
            categorical_features=categories, random_state=seed
        )
        said_N = model.fit(coded_NxF[train], label_N[train]).predict(coded_NxF[test])
        return {"accuracy": float((said_N == label_N[test]).mean())}
    y_N = label_N.astype(float)
    model = ensemble.HistGradientBoostingRegressor(
        categorical_features=categories, random_state=seed
    )
    said_N = model.fit(coded_NxF[train], y_N[train]).predict(coded_NxF[test])
    return {"rmse": float(metrics.mean_squared_error(y_N[test], said_N) ** 0.5)}


def _features(table: Table, names: list[str], types: Any) -> tuple[list[bool], np.ndarray]:
    """Returns which columns hold numbers, and all of them as text, (N, F)."""
    all_categories = "*:category" in types
    numeric = [
        not all_categories and fields.form_of(table.columns[n], fields.Marks()).kind == "number"
        for n in names
    ]
    return numeric, np.stack([np.asarray(table.columns[n], object) for n in names], 1)


def linear(cfg: RunCfg, seed: int) -> dict[str, float]:
    """Returns the test accuracy of a linear SVM on TF-IDF of words and of characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    found = texts.find(cfg, lambda line: None).rows
    rows = {s: [row for row in found[s] if row[1] != texts.OUT] for s in ("train", "test")}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    signs = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, signs), LinearSVC(random_state=seed))
    model.fit(*zip(*rows["train"], strict=True))
    asked, label = zip(*rows["test"], strict=True)
    return {"accuracy": float(np.mean(model.predict(asked) == np.asarray(label)))}


# ours


def ours(cfg: RunCfg, work: Path) -> dict[str, float]:
    """Trains a run, or takes the finished one, and returns its test figures and what it took."""
    cerebra_jax.train(cfg, work, lambda line: None)
    found = json.loads((work / "result.json").read_text(encoding="utf-8"))
    name = "rmse" if "rmse" in found["test"] else "accuracy"
    cost = found["costs"]["relative"]["executed"]
    return {name: found["test"][name], "executed": cost, "seconds": found["wall_s"]}


def compared(name: str, args: Any) -> dict[str, Any]:
    """Returns the figures of each seed of both models on one data set."""
    one = SETS[name]
    path = Path(args.data) / one.path if one.path else bundled(name, args.work)
    keys: dict[str, Any] = {"task.path": str(path.resolve())}
    if one.target:
        keys["task.target"] = one.target
    cfg = settings.load(one.spec, keys)
    theirs: Callable[[RunCfg, int], dict[str, float]]
    theirs = linear if cfg.task.name == "intent" else boosted
    found: dict[str, list[Any]] = {"ours": [], "theirs": []}
    for seed in range(args.seeds):
        seeded = dataclasses.replace(cfg, seed=seed)
        found["theirs"].append(theirs(seeded, seed))
        found["ours"].append(ours(seeded, args.work / f"{name}-s{seed}"))
        print(f"{name}, seed {seed}: {found['ours'][-1]} beside {found['theirs'][-1]}", flush=True)
    return {"model": cfg.net.name, **found}


def table(found: dict[str, Any]) -> str:
    """Returns the comparison as Markdown: mean ± standard deviation over the seeds."""
    lines = [
        "| data | figure | ours | scikit-learn | executed, of dense | seconds a run |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, both in found.items():
        [figure] = both["theirs"][0]
        cells = [_shown([row[figure] for row in both[who]]) for who in ("ours", "theirs")]
        executed = statistics.mean(row["executed"] for row in both["ours"])
        seconds = statistics.mean(row["seconds"] for row in both["ours"])
        model = "HistGradientBoosting" if SETS[name].spec.startswith("configs/tab") else "SVM"
        lines.append(
            f"| {name} | {figure} | {cells[0]} | {cells[1]} ({model}) | {executed:.3f} | "
            f"{seconds:.0f} |"
        )
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    digits = 4 if abs(values[0]) < 10 else 1 if abs(values[0]) < 1e4 else 0
    return f"{statistics.mean(values):,.{digits}f} ± {spread:,.{digits}f}"


def main() -> None:
    """Trains, compares and prints."""
    parser = common.parser(__doc__, seeds=3)
    parser.add_argument("--sets", type=common.words, default=list(SETS))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/baselines"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found = {name: compared(name, args) for name in args.sets}
    print(table(found))
    import jax
    import sklearn

    machine = results.environment(jax.devices()) | {"scikit-learn": sklearn.__version__}
    common.write(args, machine, found=found)


if __name__ == "__main__":
    main()
