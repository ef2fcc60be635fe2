"""report RUN…: a table of finished runs, what may be said of it, and figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from cerebra_jax.errors import UserError
from cerebra_jax.report import compare, page, plots, runs, tables
from cerebra_jax.report import operator_use as uses

USAGE = (
    "report RUN… [--by-folder] [--brief] [--baseline=GROUP] [--also=NAME:FIGURE] [--into=FILE.md[#NAME]] [--csv=FILE] "
    "[--runs-csv=FILE] [--latex=FILE] [--html=FILE] [--plot=FILE.svg] [--pareto=FILE.svg] [--budgets=FILE.svg] "
    "[--uses=FILE.svg]"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"report: {message}", USAGE)


def parse(argv: list[str]) -> argparse.Namespace:
    """The words after `report`, checked; UserError on a mistake."""
    parser = _Parser(prog="report", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--also", action="append", default=[], metavar="NAME:FIGURE")
    parser.add_argument("--by-folder", action="store_true")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--baseline", default="", metavar="GROUP")
    parser.add_argument("--into", default="", metavar="FILE.md[#NAME]")
    for name in ("csv", "runs-csv", "latex", "html", "plot", "pareto", "budgets", "uses"):
        parser.add_argument(f"--{name}", type=Path)
    return parser.parse_args(argv)


def run(argv: list[str]) -> None:
    """Prints the Markdown table of the run folders (a sweep's folder stands for those in it) and its notes; --into
    writes them between the RESULTS marks of a file (FILE#NAME: RESULTS NAME), the other options files of their kind."""
    args = parse(argv)
    also = dict(map(_reference, args.also))
    folders, unfinished = runs.found(args.runs)
    groups = runs.load(folders, args.by_folder)
    base = compare.baseline(groups, args.baseline) if args.baseline else ""
    rows = tables.grid(groups, also, args.brief)
    notes = tables.notes(groups, base, len(unfinished), args.brief)
    text = tables.markdown(rows, notes)
    print(text)
    for path, make in (
        (args.csv, lambda: tables.csv_groups(groups)),
        (args.runs_csv, lambda: tables.csv_runs(groups)),
        (args.latex, lambda: tables.latex(rows, notes)),
        (args.html, lambda: page.html(groups, rows, notes)),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(), encoding="utf-8")
    figures = ((args.plot, plots.curves), (args.pareto, plots.front), (args.budgets, plots.budgets))
    for path, draw in (*figures, (args.uses, uses.draw)):
        if path:
            draw(groups, path)
    if args.uses:
        print("\n" + uses.markdown(groups))
    if args.into:
        _insert(args.into, text)


def _reference(word: str) -> tuple[str, float]:
    name, _, value = word.rpartition(":")
    try:
        return name, float(value)
    except ValueError:
        raise UserError(f"cannot read --also={word}", "write --also=NAME:FIGURE") from None


def _insert(where: str, text: str) -> None:
    name, _, label = where.partition("#")
    path, mark = Path(name), f"<!-- RESULTS {label}".rstrip()
    begin, end = f"{mark}: begin", f"{mark}: end -->"
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}", f"make it, with the marks {begin} … --> and {end}"
        ) from None
    head, found, rest = old.partition(begin)
    comment, arrow, rest = rest.partition("-->\n")
    _, closed, tail = rest.partition(end)
    if not (found and arrow and closed):
        raise UserError(
            f"{path} lacks the marks", f"write {begin} … --> and {end} where the table belongs"
        )
    path.write_text(f"{head}{begin}{comment}{arrow}{text}\n{end}{tail}", encoding="utf-8")
