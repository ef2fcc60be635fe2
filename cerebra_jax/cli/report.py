"""report RUN…: a table of finished runs, and a figure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from cerebra_jax.errors import UserError
from cerebra_jax.report import plots, runs, tables

BEGIN, END = "<!-- RESULTS: begin", "<!-- RESULTS: end -->"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"report: {message}",
            "report RUN… [--also=NAME:PPL] [--into=FILE.md] [--plot=FILE.svg] [--budgets=FILE.svg]",
        )


def parse(argv: list[str]) -> argparse.Namespace:
    """The words after `report`, checked; UserError on a mistake."""
    parser = _Parser(prog="report", add_help=False)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--also", action="append", default=[], metavar="NAME:PPL")
    parser.add_argument("--into", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--budgets", type=Path)
    return parser.parse_args(argv)


def run(argv: list[str]) -> None:
    """Prints the Markdown table of the run folders; --into writes it between the RESULTS marks of a file, --plot draws
    loss against compute, --budgets how runs came to their budgets."""
    args = parse(argv)
    groups = runs.load(args.runs)
    text = tables.markdown(groups, dict(map(_reference, args.also)))
    print(text)
    if args.plot:
        plots.curves(groups, args.plot)
    if args.budgets:
        plots.budgets(groups, args.budgets)
    if args.into:
        _insert(args.into, text)


def _reference(word: str) -> tuple[str, float]:
    name, _, value = word.rpartition(":")
    try:
        return name, float(value)
    except ValueError:
        raise UserError(f"cannot read --also={word}", "write --also=NAME:PERPLEXITY") from None


def _insert(path: Path, text: str) -> None:
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no {path}", f"make it, with the marks {BEGIN} … --> and {END}") from None
    head, begin, rest = old.partition(BEGIN)
    mark, arrow, rest = rest.partition("-->\n")
    _, end, tail = rest.partition(END)
    if not (begin and arrow and end):
        raise UserError(f"{path} lacks the marks", f"write {BEGIN} … --> and {END} where the table belongs")
    path.write_text(f"{head}{begin}{mark}{arrow}{text}\n{end}{tail}", encoding="utf-8")
