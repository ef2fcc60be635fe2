"""report: compares finished runs in a table, says what follows from it, and draws figures."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.display import say
from cerebra_jax.errors import UserError
from cerebra_jax.report import compare, page, plots, runs, tables
from cerebra_jax.report import operator_use as uses

_FILES = {
    "csv": "FILE.csv: a row for each group",
    "runs-csv": "FILE.csv: a row for each run",
    "latex": "FILE.tex: the table",
    "html": "FILE.html: one page with table and figures",
    "plot": "FILE.svg: curves of training (extra plots, as all figures), or with --isoflop of loss "
    "against size",
    "pareto": "FILE.svg: quality and FLOPs, or with --isoflop loss and training FLOPs",
    "budgets": "FILE.svg: costs of runs with a budget over training",
    "uses": "FILE.svg: shares of the operators over training",
}
_NOT_WITH_ISOFLOP = ("by_folder", "also", "budgets", "uses")


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of sweeps"
    )
    parser.add_argument(
        "--by-folder",
        action="store_true",
        help="group runs by their folders (NAME-s0, NAME-s1), not by their configurations",
    )
    parser.add_argument(
        "--isoflop",
        action="store_true",
        help="compare families at equal training FLOPs (runs of configs/sweeps/isoflop.py): fits, "
        "best sizes, and how much compute dense needs for the same loss",
    )
    parser.add_argument("--brief", action="store_true", help="show fewer columns and notes")
    parser.add_argument(
        "--baseline", default="", metavar="GROUP", help="compare every group with this one"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        type=_reference,
        metavar="NAME:FIGURE",
        help="add a row with a figure from elsewhere",
    )
    parser.add_argument(
        "--into",
        default="",
        metavar="FILE.md[#NAME]",
        help="write the table between the marks <!-- RESULTS NAME: begin … --> and end of a file",
    )
    for name, meaning in _FILES.items():
        metavar, _, text = meaning.partition(": ")
        parser.add_argument(f"--{name}", type=Path, metavar=metavar, help=text)


def run(request: Request) -> None:
    """Prints the Markdown table of the runs and its notes, and writes the files that were asked
    for.

    A sweep's folder stands for the runs in it.
    """
    folders, unfinished = runs.found(request.runs)
    if request.isoflop:
        _isoflop(request, folders, len(unfinished))
        return
    groups = runs.load(folders, request.by_folder)
    base = compare.baseline(groups, request.baseline) if request.baseline else ""
    rows = tables.grid(groups, dict(request.also), request.brief)
    notes = tables.notes(groups, base, len(unfinished), request.brief)
    text = tables.markdown(rows, notes)
    say(text)
    # files of text
    if request.csv:
        _write(request.csv, tables.csv_groups(groups))
    if request.runs_csv:
        _write(request.runs_csv, tables.csv_runs(groups))
    if request.latex:
        _write(request.latex, tables.latex(rows, notes))
    if request.html:
        _write(request.html, page.html(groups, rows, notes))
    # figures
    for path, draw in (
        (request.plot, plots.curves),
        (request.pareto, plots.front),
        (request.budgets, plots.budgets),
        (request.uses, uses.draw),
    ):
        if path:
            draw(groups, path)
    if request.uses:
        say("\n" + uses.markdown(groups))
    if request.into:
        _insert(request.into, text)


def _isoflop(request: Request, folders: list[Path], unfinished: int) -> None:
    """Prints what runs of an iso-FLOP sweep show, and writes the files that were asked for."""
    # SciPy's fits take half a second to import, which other reports do not need
    from cerebra_jax.report import isoflop, isoflop_multiplier, isoflop_page, isoflop_plots

    for option in _NOT_WITH_ISOFLOP:
        if getattr(request, option):
            word = option.replace("_", "-")
            raise UserError(f"--{word} does not go with --isoflop", f"leave --{word} out")
    study = isoflop.load(folders, unfinished)
    found = isoflop_multiplier.compare(study, request.baseline)
    text = isoflop_page.markdown(found, request.brief)
    say(text)
    for path, write in (
        (request.csv, isoflop_page.csv),
        (request.runs_csv, isoflop_page.csv_runs),
        (request.latex, isoflop_page.latex),
        (request.html, isoflop_page.html),
    ):
        if path:
            _write(path, write(found))
    for path, draw in (
        (request.plot, isoflop_plots.curves),
        (request.pareto, isoflop_plots.envelopes),
    ):
        if path:
            draw(found, path)
    if request.into:
        _insert(request.into, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _reference(word: str) -> tuple[str, float]:
    name, _, value = word.rpartition(":")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {word!r}; write --also=NAME:FIGURE") from None


def _insert(where: str, text: str) -> None:
    """Writes the table between the marks of a file."""
    name, _, label = where.partition("#")
    path = Path(name)
    mark = f"<!-- RESULTS {label}".rstrip()
    begin, end = f"{mark}: begin", f"{mark}: end -->"
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}", f"make it, with the marks {begin} … --> and {end}"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8", "give a file of text") from None
    head, found, rest = old.partition(begin)
    comment, arrow, rest = rest.partition("-->\n")
    _, closed, tail = rest.partition(end)
    if not (found and arrow and closed):
        raise UserError(
            f"{path} lacks the marks", f"write {begin} … --> and {end} where the table belongs"
        )
    # at once or not at all: the file is the user's own
    path = path.resolve()
    part = path.with_name(f".{path.name}.part")
    part.write_text(f"{head}{begin}{comment}{arrow}{text}\n{end}{tail}", encoding="utf-8")
    shutil.copymode(path, part)
    os.replace(part, path)
