"""Tables of finished runs: quality, the four costs and times, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cerebra_jax.report import compare, pareto
from cerebra_jax.report.runs import Groups, Run
from cerebra_jax.report.statistics import half_width, mean_sd


class Column(NamedTuple):
    """A figure of a run: its key in CSV, its heading, and how many digits are shown."""

    key: str
    name: str
    get: Callable[[dict[str, Any]], float | None]  # of result.json
    digits: int


class Cell(NamedTuple):
    """A figure over the seeds of a group; NaN for what one seed cannot tell."""

    mean: float
    sd: float
    half: float  # half width of the 95 % interval of the mean
    n: int


def _counts(result: dict[str, Any]) -> str:
    return result["costs"].get("counts", "flops")  # older runs count FLOPs


_COSTS = (
    Column("expected", "expected", lambda r: r["costs"]["relative"]["expected"], 3),
    Column("hard", "hard", lambda r: r["costs"]["relative"]["hard"], 3),
    Column("executed", "executed", lambda r: r["costs"]["relative"]["executed"], 3),
    Column(
        "executed_mflop",
        "executed MFLOP/token",
        lambda r: r["costs"].get("executed_flops", r["costs"]["executed"]) / 1e6,
        3,
    ),
    Column(
        "dense_mflop",
        "dense MFLOP/token",
        lambda r: r["costs"]["dense"] / 1e6 if _counts(r) == "flops" else None,
        3,
    ),
    Column("step_ms", "step ms", lambda r: r["step_ms"], 0),
    Column("minutes", "minutes", lambda r: r["wall_s"] / 60, 1),
    Column("mparams", "M parameters", lambda r: r["params"] / 1e6, 2),
)


_SHRUNK = Column(
    "shrunk",
    "shrunk",
    lambda r: r["test"].get("kept_rel_flops", r["costs"]["relative"]["executed"]),
    3,
)  # executed once `shrink` has cut out what the run pruned


def _attending(result: dict[str, Any]) -> float | None:
    """Attention calls per token and layer on test data; of CHIAR those of its routed layers, and of the last one."""
    if result["model"] == "transformer":
        return 1.0
    if result["model"] != "chiar" or "net" not in result:
        return None
    depth, mode = result["net"]["depth"], result["net"]["route"]["mode"]
    calls = {"always_full": [1.0] * (depth - 2), "always_compressed": []}.get(mode)
    calls = result["test"].get("gates", {}).get("kept") if calls is None else calls
    return None if calls is None else (sum(calls) + 1) / depth


_CALLS = Column("attending", "attention calls", _attending, 3)


def columns(groups: Groups) -> list[Column]:
    """Figures of the task, the headline on both splits and the others on test data; then costs and times."""

    def quality(split: str, name: str, m: dict[str, Any]) -> Column:
        return Column(
            f"{split}_{m['key']}", f"{m['name']}, {name}", lambda r: r[split][m["key"]], m["digits"]
        )

    head, *rest = [m for m in next(iter(groups.values()))[0].metrics if m["table"]]
    first = [quality("val", "valid", head), quality("test", "test", head)]
    pruned = any("kept_rel_flops" in run.result["test"] for runs in groups.values() for run in runs)
    costs = [*_COSTS[:3], *[_SHRUNK] * pruned, *_COSTS[3:]]
    if any(_attending(run.result) not in (None, 1.0) for runs in groups.values() for run in runs):
        costs = [_CALLS, *costs]
    return [*first, *(quality("test", "test", m) for m in rest), *costs]


def cell(runs: Sequence[Run], column: Column) -> Cell | None:
    """A column of a group; None where a run does not know the figure."""
    values = [column.get(run.result) for run in runs]
    if any(value is None for value in values):
        return None
    return Cell(*mean_sd(values), half_width(values), len(values))


BRIEF = ("attending", "executed", "shrunk", "executed_mflop", "minutes")


def grid(groups: Groups, also: dict[str, float], brief: bool = False) -> list[list[str]]:
    """The table as text, the headings first. `also`: name -> headline on test data, from elsewhere; brief: the headline
    on test data and BRIEF only."""
    shown = columns(groups)
    first = 1  # the headline on test data
    if brief:
        shown, first = [shown[1], *(column for column in shown if column.key in BRIEF)], 0
    several = any(len(runs) > 1 for runs in groups.values())
    head = ["model"]
    for i, column in enumerate(shown):
        head += [column.name] + ["95 % interval"] * (several and i == first)
    rows = [[*head, "seeds"]]
    for name, runs in groups.items():
        row = [name]
        for i, column in enumerate(shown):
            found = cell(runs, column)
            row += [mean_text(found, column.digits)] + [interval_text(found, column.digits)] * (
                several and i == first
            )
        rows.append([*row, ", ".join(str(r.seed) for r in runs)])
    for name, figure in also.items():
        row = [name, *[""] * first, f"{figure:g}"]
        rows.append([*row, *[""] * (len(rows[0]) - len(row))])
    return rows


def mean_text(found: Cell | None, digits: int) -> str:
    """438.4 ± 6.4: mean and standard deviation, where that can be seen."""
    if found is None:
        return ""
    mean = f"{found.mean:,.{digits}f}"
    return (
        mean
        if math.isnan(found.sd) or found.sd < 0.5 * 10**-digits
        else f"{mean} ± {found.sd:,.{digits}f}"
    )


def interval_text(found: Cell | None, digits: int) -> str:
    """[422.5, 454.3]: the 95 % interval of the mean; empty for one seed."""
    if found is None or math.isnan(found.half):
        return ""
    return f"[{found.mean - found.half:,.{digits}f}, {found.mean + found.half:,.{digits}f}]"


def notes(groups: Groups, base: str, left_out: int, brief: bool = False) -> list[str]:
    """What belongs under the table, a sentence each: comparisons, budgets, front, and what was measured on what."""
    front = [] if brief else pareto.lines(groups)
    missing = [f"{left_out} unfinished runs are left out."] if left_out else []
    return [*compare.lines(groups, base), *held(groups), *front, *missing, provenance(groups)]


def markdown(rows: Sequence[Sequence[str]], under: Sequence[str]) -> str:
    """A table and its notes."""
    head, *body = [[word.replace("|", "\\|").replace("\n", " ") for word in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    return "\n".join([*lines, *(line for note in under for line in ("", note))])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$",
          "λ": r"$\lambda$", **{c: "\\" + c for c in "&%$#_{}"}}  # fmt: skip


def latex(rows: Sequence[Sequence[str]], under: Sequence[str]) -> str:
    """A booktabs table; the notes follow as comments."""
    head, *body = [" & ".join(escape_latex(word) for word in row) + r" \\" for row in rows]
    lines = [
        r"\begin{tabular}{l" + "r" * (len(rows[0]) - 1) + "}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
    ]
    comments = ["% " + " ".join(note.split()) for note in under]
    return "\n".join(
        [r"% needs \usepackage{booktabs}", *lines, r"\bottomrule", r"\end{tabular}", *comments, ""]
    )


def escape_latex(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def csv_groups(groups: Groups) -> str:
    """A line a group: mean, sd and 95 % interval (low, high) of every column, empty where not known."""
    rows = []
    for name, runs in groups.items():
        row = {"group": name, "n": len(runs), "seeds": " ".join(str(run.seed) for run in runs)}
        for column in columns(groups):
            found = cell(runs, column) or Cell(math.nan, math.nan, math.nan, 0)
            values = (found.mean, found.sd, found.mean - found.half, found.mean + found.half)
            row |= dict(
                zip(
                    (f"{column.key}_{what}" for what in ("mean", "sd", "low", "high")),
                    values,
                    strict=True,
                )
            )
        rows.append(row)
    return _csv(rows)


def csv_runs(groups: Groups) -> str:
    """A line a run."""
    return _csv(run_rows(groups))


def run_rows(groups: Groups) -> list[dict[str, Any]]:
    """A dict a run: group, folder, seed, every column, and the configuration keys in which the groups differ."""
    identities = [runs[0].identity for runs in groups.values()]
    keys = [
        key for key in identities[0] if any(of.get(key) != identities[0][key] for of in identities)
    ]
    rows = []
    for name, runs in groups.items():
        for run in runs:
            figures = {column.key: column.get(run.result) for column in columns(groups)}
            train = run.result["costs"]["train_total"]
            row = {
                "group": name,
                "run": str(run.path),
                "seed": run.seed,
                **figures,
                "train_flops": train,
            }
            rows.append(row | {key: run.identity.get(key) for key in keys})
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Floats as repr writes them, so that they are read back exactly; NaN and None are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row.values()])
    return out.getvalue()


def held(groups: Groups) -> list[str]:
    """How far runs under a budget ended from it: the program that ran, and the decisions, the worst seed of each."""
    lines = []
    for name, runs in groups.items():
        budget = runs[0].config["objective"].get("budget")
        if budget:
            off = [max((r.result["costs"]["relative"][kind] / budget - 1 for r in runs), key=abs)
                   for kind in ("executed", "hard")]  # fmt: skip
            seeds = f"worst of {len(runs)} seeds" if len(runs) > 1 else "one seed"
            lines.append(
                f"{name}, budget {budget:g}: executed {off[0]:+.1%} of it, hard cost {off[1]:+.1%} ({seeds})."
            )
    return lines


def provenance(groups: Groups) -> str:
    """One paragraph: data, size, training length, hardware, versions and code of the runs."""
    runs = [r for g in groups.values() for r in g]

    def all_of(get) -> str:
        return ", ".join(sorted({str(get(r)) for r in runs}))

    def machine(run: Run) -> str:
        device = run.result["device"]
        return f"{device['device']}, {device['cores']} cores, jax {device['jax']}"

    size = all_of(
        lambda r: f"{r.config['net']['depth']} layers of width {r.config['net']['width']}"
    )
    L = all_of(lambda r: r.result.get("seq_len", r.config["task"]["seq_len"]))
    hours = sum(r.result["wall_s"] for r in runs) / 3600
    day = datetime.date.fromtimestamp(max((r.path / "result.json").stat().st_mtime for r in runs))
    notices = "".join(
        f" {notice}." for notice in sorted({r.result.get("notice") or "" for r in runs} - {""})
    )
    steps = all_of(lambda r: r.result["steps"])
    counts = all_of(lambda r: _counts(r.result))
    return (
        f"Data {all_of(lambda r: r.result['dataset'])}; {size}, L = {L}; {steps} steps, "
        f"{all_of(lambda r: format(r.result['tokens'], ','))} tokens a run; {all_of(machine)}; {hours:.1f} hours in "
        f"all, {day}; commit {all_of(lambda r: str(r.result['commit'])[:12])}.{notices} ± is the standard deviation "
        f"over seeds. Costs count {counts} and are relative to the dense Transformer of the same shape: expected and "
        "hard count causal attention as half the square, executed what the program runs."
    )
