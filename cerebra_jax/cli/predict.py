"""predict: what the best checkpoint of a run on a table or on texts answers for the rows of a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from cerebra_jax.checks import need
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.registry import build
from cerebra_jax.tasks.table import read
from cerebra_jax.training import workdir as folder


def run(request: Request) -> None:
    """Writes the rows with a column `prediction` behind them, and of classes `probability`."""
    to = Path(request.options.get("to") or request.workdir / "predictions.csv")
    data = request.options.get("data", "")
    need(bool(data), "--data is missing", "give a CSV file with the columns of the training table")
    table = read(data)
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = build(request.cfg)
        compile_cache(request.cfg.task.cache_dir)
        from cerebra_jax.trained import Trained  # JAX from here on

        answers = Trained(request.workdir, request.cfg, task).predict(table)
    columns = table.columns | {name: [_text(x) for x in column] for name, column in answers.items()}
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    print(f"written: {to}, {table.rows:,} rows")


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
