"""Markdown tables of finished runs: quality, the four costs and step time, as mean ± standard deviation over seeds."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any

from cerebra_jax.report.runs import Run, mean_sd, paired

_COSTS = (
    ("expected", lambda r: r["costs"]["relative"]["expected"], 3),
    ("hard", lambda r: r["costs"]["relative"]["hard"], 3),
    ("executed", lambda r: r["costs"]["relative"]["executed"], 3),
    ("executed MFLOP/token", lambda r: r["costs"].get("executed_flops", r["costs"]["executed"]) / 1e6, 3),
    ("step ms", lambda r: r["step_ms"], 0),
    ("M parameters", lambda r: r["params"] / 1e6, 2),
)


def _quality(run: Run) -> list[tuple[str, Callable[[dict[str, Any]], float], int]]:
    """Columns of the figures of a task: the headline on both splits, the others on test data."""

    def column(split: str, name: str, m: dict[str, Any]):
        return f"{m['name']}, {name}", lambda r: r[split][m["key"]], m["digits"]

    head, *rest = [m for m in run.metrics if m["table"]]
    return [column("val", "valid", head), column("test", "test", head), *(column("test", "test", m) for m in rest)]


def markdown(groups: dict[str, list[Run]], also: dict[str, float]) -> str:
    """The table, the paired differences, and what the numbers were measured on. `also`: name -> headline on test."""
    columns = [*_quality(next(iter(groups.values()))[0]), *_COSTS]
    head = ["model", *(name for name, _, _ in columns), "seeds"]
    rows = [head, ["---"] * len(head)]
    for name, runs in groups.items():
        cells = [_cell([get(r.result) for r in runs], digits) for _, get, digits in columns]
        rows.append([name, *cells, ", ".join(str(r.seed) for r in runs)])
    for name, figure in also.items():
        rows.append([name, "", f"{figure:g}", *[""] * (len(head) - 3)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *differences(groups), *held(groups), "", provenance(groups)])


def differences(groups: dict[str, list[Run]]) -> list[str]:
    """The headline on test data of every group against the dense Transformer, seed by seed, with a 95 % interval."""
    dense = [name for name in groups if name.startswith("transformer")]
    lines = []
    for base in dense:
        m = groups[base][0].metrics[0]
        for name, runs in groups.items():
            if name in dense:
                continue
            of = lambda rs, m=m: {r.seed: r.result["test"][m["key"]] for r in rs}  # noqa: E731
            found = paired(of(runs), of(groups[base]))
            if found is None:
                continue
            mean, half, n = found
            verdict = "the interval contains 0: no difference shown"
            if abs(mean) > half:
                verdict = "lower than dense" if mean < 0 else "higher than dense"
            lines.append(
                f"{name} − {base}, test {m['name']}, paired over {n} seeds: {mean:+,.{m['digits']}f}, "
                f"95 % interval [{mean - half:+,.{m['digits']}f}, {mean + half:+,.{m['digits']}f}]: {verdict}."
            )
    return lines


def held(groups: dict[str, list[Run]]) -> list[str]:
    """How far runs under a budget ended from it: the program that ran, and the decisions, the worst seed of each."""
    lines = []
    for name, runs in groups.items():
        budget = runs[0].config["objective"].get("budget")
        if budget:
            off = [max((r.result["costs"]["relative"][kind] / budget - 1 for r in runs), key=abs)
                   for kind in ("executed", "hard")]  # fmt: skip
            seeds = f"worst of {len(runs)} seeds" if len(runs) > 1 else "one seed"
            lines.append(f"{name}: executed {off[0]:+.1%} of the budget, hard cost {off[1]:+.1%} ({seeds}).")
    return lines


def provenance(groups: dict[str, list[Run]]) -> str:
    """One paragraph: data, training length, hardware, versions and code of the runs."""
    runs = [r for g in groups.values() for r in g]

    def all_of(get) -> str:
        return ", ".join(sorted({str(get(r.result)) for r in runs}))

    machine = all_of(lambda r: f"{r['device']['device']}, {r['device']['cores']} cores, jax {r['device']['jax']}")
    hours = sum(r.result["wall_s"] for r in runs) / 3600
    day = datetime.date.fromtimestamp(max((r.path / "result.json").stat().st_mtime for r in runs))
    return (
        f"Data {all_of(lambda r: r['dataset'])}; {all_of(lambda r: r['steps'])} steps, "
        f"{all_of(lambda r: format(r['tokens'], ','))} tokens a run; {machine}; {hours:.1f} hours in all, {day}; "
        f"commit {all_of(lambda r: str(r['commit'])[:12])}. Costs are relative to the dense Transformer of the same "
        "shape: expected and hard count causal attention as half the square, executed what the program runs."
    )


def _cell(values: list[float], digits: int) -> str:
    if any(value is None for value in values):  # a figure that is not known of these data, or of this run
        return ""
    mean, sd = mean_sd(values)
    if math.isnan(sd) or sd < 0.5 * 10**-digits:
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {sd:,.{digits}f}"
