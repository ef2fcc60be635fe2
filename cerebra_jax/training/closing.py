"""Figures for a person, from what metrics.jsonl and result.json hold.

No JAX: a finished run answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cerebra_jax import config, documents
from cerebra_jax.checks import joined
from cerebra_jax.cost.units import LABELS
from cerebra_jax.documents import FLAG, NUMBER, TEXT, WHOLE, or_null
from cerebra_jax.errors import UserError
from cerebra_jax.policies import division
from cerebra_jax.report import runs
from cerebra_jax.tasks.task import Metric
from cerebra_jax.training import workdir as folder

# what is shown of a result, beside what a report reads of it
SHOWN = {
    "best_step": WHOLE,
    "notice": or_null(TEXT),
    "net": {"scan": FLAG, "route": {"rate": NUMBER, "capacity": NUMBER}},
    "test": {"loss": NUMBER},
}
SLOTS = {"wanted": [NUMBER], "kept": [NUMBER], "overflow": [NUMBER]}
# share of a layer's tokens that find no slot, while as many slots of another layer are empty
UNEVEN = 0.1


def quality(line: dict[str, Any], metrics: Iterable[Metric]) -> str:
    """Returns the figures of a validation or test line for a person."""
    found = [
        f"{m.name} {line[m.key]:,.{m.digits}f}" for m in metrics if line.get(m.key) is not None
    ]
    return " · ".join([f"loss {line['loss']:.4f}", *found, of_dense(line)])


def of_dense(line: dict[str, Any]) -> str:
    """Returns the cost of the decisions of a line, in the unit it is counted in."""
    unit = next(unit for unit in LABELS if f"hard_rel_{unit}" in line)
    hard = line[f"hard_rel_{unit}"] or 0.0
    return f"{hard:.3f} of dense {LABELS[unit]}"


def closing(r: dict[str, Any], workdir: Path) -> list[str]:
    """Returns the result of a run for a person.

    The notice about its data stands beside the figures. Raises UserError where a result that was
    written elsewhere lacks what is shown.
    """
    file = workdir / "result.json"
    documents.check(r, SHOWN, str(file), folder.HINT)
    hard = {f"hard_rel_{_unit(r)}": or_null(NUMBER)}
    documents.check(r["test"], hard, f"{file}: test", folder.HINT)
    metrics = runs.metrics_of(r)
    lines = [f"test  · step {r['best_step']:,} · {quality(r['test'], metrics)}", _cost(r)]
    lines += _slots(r, file)
    if r["notice"]:
        lines.append(r["notice"])
    return [*lines, f"done: {file}"]


def _cost(r: dict[str, Any]) -> str:
    """Returns a line on what a result costs, and on the time that the run took."""
    costs = r["costs"]
    parts = [
        f"{name} {costs['relative'][name]:.3f}"
        for name in ("expected", "hard", "executed")
        if costs["relative"][name] is not None
    ]
    shown = ["cost ", f"{' · '.join(parts)} of dense {LABELS[_unit(r)]}"]
    if r["step_ms"]:
        shown.append(f"{r['step_ms']:.1f} ms a step")
    return " · ".join([*shown, f"{r['wall_s']:.0f} s in all"])


def _unit(r: dict[str, Any]) -> str:
    """Returns what a result counts costs in; runs of before the key existed count FLOPs."""
    return r["costs"]["counts"] if "counts" in r["costs"] else "flops"


def _slots(r: dict[str, Any], file: Path) -> list[str]:
    """Returns how to divide the slots of cerebra's layers, where they are divided badly.

    That is so where one layer turns tokens away while another has slots that no token wants.
    Raises UserError where the result does not tell the same of each layer.
    """
    gates, net = r["test"].get("gates", {}), r["net"]
    if r["model"] != "cerebra" or net["scan"] or not gates.get("wanted"):
        return []
    documents.check(gates, SLOTS, f"{file}: test.gates", folder.HINT)
    wanted, kept, route = gates["wanted"], gates["kept"], net["route"]

    # slots that stay empty, as a share of the tokens
    scale = [1.0] * len(wanted)
    if route.get("by_layer"):
        scale = _rates(route["by_layer"], file)
    if not len(wanted) == len(kept) == len(scale) or not gates["overflow"]:
        raise UserError(f"{file}: test.gates are not of the same layers", folder.HINT)
    slots = [min(1.0, route["rate"] * route["capacity"] * n) for n in scale]
    idle = [n - k for n, k in zip(slots, kept, strict=True)]
    if max(gates["overflow"]) < UNEVEN or max(idle) < UNEVEN:
        return []

    better = joined(round(n, division.DIGITS) for n in division.by_demand(wanted))
    asked, given = (" ".join(f"{n:.2f}" for n in row) for row in (wanted, kept))
    said = f"layers want the heavy path for {asked} of their tokens and give it to {given}"
    return [f"slots · {said}; by demand: --config.net.route.by_layer={better}"]


def _rates(by_layer: Any, file: Path) -> list[float]:
    """Returns the numbers of net.route.by_layer, which is a list or text with commas."""
    try:
        return [float(n) for n in config.listed(by_layer)]
    except (TypeError, ValueError):
        what = f"{file}: net.route.by_layer is {documents.described(by_layer)}"
        raise UserError(what, folder.HINT) from None
