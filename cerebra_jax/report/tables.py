"""Tables of finished runs: quality, costs and times, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cerebra_jax.display import inert, printable
from cerebra_jax.errors import UserError
from cerebra_jax.report import compare, pareto
from cerebra_jax.report.runs import Groups, Run, first
from cerebra_jax.report.statistics import half_width, mean_sd
from cerebra_jax.tasks.task import Metric


class Column(NamedTuple):
    """A figure of a run: its key in CSV, its heading, and how many digits are shown."""

    key: str
    name: str
    get: Callable[[Run], float | None]
    digits: int


class Cell(NamedTuple):
    """A figure over the seeds of a group; NaN for what one seed cannot tell."""

    mean: float
    sd: float
    half: float  # half width of the 95 % interval of the mean
    n: int


def _shrunk(run: Run) -> float:
    return run.costs.executed if run.shrunk is None else run.shrunk


def _dense_mflop(run: Run) -> float | None:
    """Returns the dense Transformer's cost in MFLOP; None where costs are in another unit."""
    return run.costs.dense / 1e6 if run.costs.unit == "flops" else None


def _attention_calls(run: Run) -> float | None:
    """Returns attention calls per token and layer on test data; None where they are not known.

    CHIAR attends in its routed layers, at the rate of each, and in its last layer.
    """
    if run.result["model"] == "transformer":
        return 1.0
    if run.result["model"] != "chiar" or "net" not in run.result:
        return None
    depth = run.net["depth"]
    mode = run.net["route"]["mode"]
    if mode == "always_full":
        routed = depth - 2.0
    elif mode == "always_compressed":
        routed = 0.0
    elif run.heavy_fractions is not None:
        routed = sum(run.heavy_fractions)
    else:
        return None
    return (routed + 1) / depth


ATTENTION_CALLS = Column("attending", "attention calls", _attention_calls, 3)
RELATIVE_COSTS = (
    Column("expected", "expected", lambda run: run.costs.expected, 3),
    Column("hard", "hard", lambda run: run.costs.hard, 3),
    Column("executed", "executed", lambda run: run.costs.executed, 3),
)
SHRUNK = Column("shrunk", "shrunk", _shrunk, 3)
COSTS_AND_TIMES = (
    Column("executed_mflop", "executed MFLOP/token", lambda run: run.costs.executed_flops / 1e6, 3),
    Column("dense_mflop", "dense MFLOP/token", _dense_mflop, 3),
    Column("step_ms", "step ms", lambda run: run.result["step_ms"], 0),
    Column("minutes", "minutes", lambda run: run.result["wall_s"] / 60, 1),
    Column("mparams", "M parameters", lambda run: run.result["params"] / 1e6, 2),
)
# columns of a brief table, beside the headline on test data
BRIEF = ("attending", "executed", "shrunk", "executed_mflop", "minutes")


def _quality(split: str, heading: str, metric: Metric) -> Column:
    """Returns the column of a task's metric on one split."""
    return Column(
        f"{split}_{metric.key}",
        f"{metric.name}, {heading}",
        lambda run: run.figure(split, metric),
        metric.digits,
    )


def columns(groups: Groups) -> list[Column]:
    """Returns the columns: the headline on both splits, other metrics on test data, costs, time."""
    headline, *others = [metric for metric in first(groups).metrics if metric.table]
    shown = [_quality("val", "valid", headline), _quality("test", "test", headline)]
    shown += [_quality("test", "test", metric) for metric in others]

    # two columns have something to say in some reports only
    runs = [run for group in groups.values() for run in group]
    if any(_attention_calls(run) not in (None, 1.0) for run in runs):
        shown.append(ATTENTION_CALLS)
    shown += RELATIVE_COSTS
    if any(run.shrunk is not None for run in runs):
        shown.append(SHRUNK)
    return [*shown, *COSTS_AND_TIMES]


def cell(runs: Sequence[Run], column: Column) -> Cell | None:
    """Returns a column of a group; None where a run does not know the figure."""
    values = [column.get(run) for run in runs]
    if any(value is None for value in values):
        return None
    return Cell(*mean_sd(values), half_width(values), len(values))


def grid(groups: Groups, also: dict[str, float], brief: bool = False) -> list[list[str]]:
    """Returns the table as text, the headings first.

    also: name -> the headline on test data, of models from elsewhere.
    brief: shows the headline on test data and the columns of BRIEF only.
    """
    shown = columns(groups)
    headline = 1  # its column on test data, which has an interval beside it
    if brief:
        shown = [shown[headline], *(column for column in shown if column.key in BRIEF)]
        headline = 0
    several_seeds = any(len(runs) > 1 for runs in groups.values())

    # headings
    head = ["model"]
    for i, column in enumerate(shown):
        head.append(column.name)
        if several_seeds and i == headline:
            head.append("95 % interval")
    rows = [[*head, "seeds"]]

    # a row for each group
    for name, runs in groups.items():
        row = [name]
        for i, column in enumerate(shown):
            found = cell(runs, column)
            row.append(mean_text(found, column.digits))
            if several_seeds and i == headline:
                row.append(interval_text(found, column.digits))
        rows.append([*row, ", ".join(str(run.seed) for run in runs)])

    # a row for each model from elsewhere
    for name, figure in also.items():
        row = [name, *[""] * headline, f"{figure:g}"]
        rows.append([*row, *[""] * (len(rows[0]) - len(row))])
    return rows


def mean_text(found: Cell | None, digits: int) -> str:
    """Writes 438.4 ± 6.4: mean and standard deviation, where that can be seen."""
    if found is None:
        return ""
    mean = f"{found.mean:,.{digits}f}"
    if math.isnan(found.sd) or found.sd < 0.5 * 10**-digits:
        return mean
    return f"{mean} ± {found.sd:,.{digits}f}"


def interval_text(found: Cell | None, digits: int) -> str:
    """Writes [422.5, 454.3]: the 95 % interval of the mean; "" for one seed."""
    if found is None or math.isnan(found.half):
        return ""
    return f"[{found.mean - found.half:,.{digits}f}, {found.mean + found.half:,.{digits}f}]"


def notes(groups: Groups, base: str, left_out: int, brief: bool = False) -> list[str]:
    """Returns what belongs under the table, a sentence each.

    These are comparisons (with `base`, if it is given), budgets, the front (not in brief), how many
    runs are left out, and what was measured on what.
    """
    sentences = [*compare.lines(groups, base), *held(groups)]
    if not brief:
        sentences += pareto.lines(groups)
    if left_out:
        sentences.append(f"{left_out} unfinished runs are left out.")
    return [*sentences, provenance(groups)]


def markdown(rows: Sequence[Sequence[str]], under: Sequence[str]) -> str:
    """Writes a table, the headings first, and its notes as Markdown."""
    head, *body = [[markdown_word(word) for word in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    for note in under:
        lines += ["", markdown_note(note)]
    return "\n".join(lines)


_MARKDOWN = {
    "|": r"\|",
    "\\": r"\\",
    "`": r"\`",
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}


def markdown_word(word: str) -> str:
    """Returns a text as Markdown shows it on a line: no HTML, code, link or end of a cell."""
    escaped = "".join(_MARKDOWN.get(character, character) for character in _one_line(word))
    return escaped.replace("](", r"]\(").replace("![", r"!\[")


def markdown_note(note: str) -> str:
    """Returns a text as Markdown shows it as a paragraph: no heading, list or the like."""
    escaped = markdown_word(note)
    return f"\\{escaped}" if escaped.startswith(("#", "-", "+", "*", "=", "~")) else escaped


def _one_line(text: str) -> str:
    """Returns a text with spaces for line ends, and nothing in it that is hidden."""
    return printable(" ".join(text.split()))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "λ": r"$\lambda$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "†": r"\dag{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def latex(rows: Sequence[Sequence[str]], under: Sequence[str]) -> str:
    """Writes a booktabs table; the notes follow as comments."""
    head, *body = [" & ".join(escape_latex(word) for word in row) + r" \\" for row in rows]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{l" + "r" * (len(rows[0]) - 1) + "}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    comments = ["% " + _one_line(note) for note in under]
    return "\n".join([*lines, *comments, ""])


def escape_latex(text: str) -> str:
    """Returns the text as LaTeX shows it."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def csv_groups(groups: Groups) -> str:
    """Writes a line a group: mean, sd and 95 % interval of every column, empty where not known."""
    unknown = Cell(math.nan, math.nan, math.nan, 0)
    rows = []
    for name, runs in groups.items():
        row = {"group": name, "n": len(runs), "seeds": " ".join(str(run.seed) for run in runs)}
        for column in columns(groups):
            found = cell(runs, column) or unknown
            row[f"{column.key}_mean"] = found.mean
            row[f"{column.key}_sd"] = found.sd
            row[f"{column.key}_low"] = found.mean - found.half
            row[f"{column.key}_high"] = found.mean + found.half
        rows.append(row)
    return csv_text(rows)


def csv_runs(groups: Groups) -> str:
    """Writes a line a run."""
    return csv_text(run_rows(groups))


def run_rows(groups: Groups) -> list[dict[str, Any]]:
    """Returns a dict a run: group, folder, seed, every column, and what tells the groups apart."""
    identities = [runs[0].identity for runs in groups.values()]
    of_first = identities[0]
    keys = [key for key in of_first if any(of.get(key) != of_first[key] for of in identities)]
    shown = columns(groups)
    rows = []
    for name, runs in groups.items():
        for run in runs:
            row = {"group": name, "run": str(run.path), "seed": run.seed}
            row |= {column.key: column.get(run) for column in shown}
            row["train_flops"] = run.costs.train_total
            identity = run.identity
            rows.append(row | {key: identity.get(key) for key in keys})
    return rows


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Writes dicts of one set of keys, which is the first line.

    Floats are written as repr does, so that they are read back exactly; NaN and None are empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([inert(name) for name in rows[0]])
    for row in rows:
        writer.writerow(["" if _is_nan(value) else _csv_cell(value) for value in row.values()])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    return value if isinstance(value, int | float) or value is None else inert(str(value))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def held(groups: Groups) -> list[str]:
    """Says how far runs under a budget ended from it, the worst seed of each group.

    "executed" is the program that ran, "hard cost" the decisions.
    """
    lines = []
    for name, runs in groups.items():
        budget = runs[0].budget
        if not budget:
            continue
        executed = _worst([run.costs.executed for run in runs], budget)
        hard = _worst([run.costs.hard for run in runs], budget)
        seeds = f"worst of {len(runs)} seeds" if len(runs) > 1 else "one seed"
        lines.append(
            f"{name}, budget {budget:g}: executed {executed} of it, hard cost {hard} ({seeds})."
        )
    return lines


def _worst(costs: Sequence[float | None], budget: float) -> str:
    """Writes how far the cost that is farthest from a budget is off, in per cent."""
    if None in costs:
        return "unknown"
    off = max((cost / budget - 1 for cost in costs if cost is not None), key=abs)
    return f"{off:+.1%}"


def provenance(groups: Groups) -> str:
    """Says in one paragraph what the runs were made of: data, size, length, hardware, code."""
    runs = [run for group in groups.values() for run in group]

    # what one or several words say of all runs
    def all_of(get: Callable[[Run], Any]) -> str:
        return ", ".join(sorted({str(get(run)) for run in runs}))

    def size(run: Run) -> str:
        return f"{run.config['net']['depth']} layers of width {run.config['net']['width']}"

    def machine(run: Run) -> str:
        device = run.result["device"]
        return f"{device['device']}, {device['cores']} cores, jax {device['jax']}"

    # when, how long, and what a reader must know
    day = max(_day(run) for run in runs)
    hours = sum(run.result["wall_s"] for run in runs) / 3600
    notices = sorted({run.notice for run in runs} - {""})
    folds = all(run.config["task"]["folds"] for run in runs)
    repeats = "folds, whose training rows overlap" if folds else "seeds"
    return (
        f"Data {all_of(lambda run: run.dataset)}; {all_of(size)}, "
        f"L = {all_of(lambda run: run.seq_len)}; "
        f"{all_of(lambda run: run.result['steps'])} steps, "
        f"{all_of(lambda run: format(run.result['tokens'], ','))} tokens a run; "
        f"{all_of(machine)}; {hours:.1f} hours in all, {day}; "
        f"commit {all_of(lambda run: str(run.result['commit'])[:12])}."
        f"{''.join(f' {notice}.' for notice in notices)} "
        f"± is the standard deviation over {repeats}. "
        f"Costs count {all_of(lambda run: run.costs.unit)} and are relative to the dense "
        "Transformer of the same shape: expected and hard count causal attention as half the "
        "square, executed what the program runs."
    )


def _day(run: Run) -> datetime.date:
    """Returns the day on which a run ended; raises UserError where its file has none."""
    file = run.path / "result.json"
    try:
        return datetime.date.fromtimestamp(file.stat().st_mtime)
    except (OverflowError, ValueError):
        raise UserError(f"the time of {file} is in no calendar", f"touch {file}") from None
