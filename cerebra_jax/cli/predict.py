"""predict: answers for the rows of a CSV file with the best checkpoint of a run on a table or on
texts.
"""

from __future__ import annotations

import csv

from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.registry import build
from cerebra_jax.tasks.table import read
from cerebra_jax.training import workdir as folder


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        default="",
        help="a CSV file with the columns of the training table",
    )
    parser.add_argument(
        "--to",
        metavar="FILE",
        type=arguments.file,
        help="the CSV file that is written (default WORKDIR/predictions.csv)",
    )
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Writes the rows with a column `prediction` behind them and, of classes, `probability`."""
    to = request.to or request.workdir / "predictions.csv"
    hint = "give a CSV file with the columns of the training table"
    require(bool(request.data), "--data is missing", hint)
    table = read(request.data)
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
