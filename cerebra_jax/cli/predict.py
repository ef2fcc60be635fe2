"""predict: answers for the rows of a CSV file with the best checkpoint of a run on a table or on
texts.
"""

from __future__ import annotations

import csv

from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.display import inert, say
from cerebra_jax.tasks.table import Format, read
from cerebra_jax.training import preprocessing
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
    """Writes the rows with a column `prediction` behind them and, of classes, their probabilities.

    Says how much of them training did not show.
    """
    to = request.to or request.workdir / "predictions.csv"
    hint = "give a CSV file with the columns of the training table"
    require(bool(request.data), "--data is missing", hint)
    form = Format(request.cfg.task.delimiter, request.cfg.task.encoding)
    table = read(request.data, form)
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = preprocessing.restore(request.cfg, request.workdir, say)
        compile_cache(request.cfg.task)
        from cerebra_jax.trained import Trained  # JAX from here on

        trained = Trained(request.workdir, request.cfg, task)
        answers = trained.predict(table)
    for line in trained.task.unseen(table):
        say(line)
    columns, renamed = _beside(table.columns, answers)
    if renamed:
        say(f"the file has a column of that name: the answers are in {', '.join(renamed)}")
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    say(f"written: {to}, {table.rows:,} rows")


def _beside(
    given: dict[str, list[str]], answers: dict[str, list]
) -> tuple[dict[str, list[str]], list[str]]:
    """Returns (the user's columns and then the answers, new names of answers).

    A column of the user's is never replaced.
    """
    columns, renamed = dict(given), []
    for name, column in answers.items():
        free = next(x for x in (name, *(f"{name}_{i}" for i in range(2, 99))) if x not in columns)
        if free != name:
            renamed.append(free)
        # of a float: all its digits; of a class: its name, which came with the run
        columns[free] = [inert(str(x)) for x in column]
    return columns, renamed
