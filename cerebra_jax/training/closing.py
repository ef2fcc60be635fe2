"""Figures for a person, from what metrics.jsonl and result.json hold.

No JAX: a finished run answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cerebra_jax import config
from cerebra_jax.cost.units import LABELS
from cerebra_jax.tasks.task import Metric

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
    [(unit, hard)] = [
        (k.removeprefix("hard_rel_"), v) for k, v in line.items() if k.startswith("hard_rel_")
    ]
    return f"{hard or 0:.3f} of dense {LABELS[unit]}"


def closing(r: dict[str, Any], workdir: Path) -> list[str]:
    """Returns the result of a run for a person.

    The notice about its data stands beside the figures.
    """
    metrics = [Metric(**m) for m in r["metrics"]]
    lines = [f"test  · step {r['best_step']:,} · {quality(r['test'], metrics)}", _cost(r)]
    lines += _slots(r)
    if r["notice"]:
        lines.append(r["notice"])
    return [*lines, f"done: {workdir / 'result.json'}"]


def _cost(r: dict[str, Any]) -> str:
    """Returns a line on what a result costs, and on the time that the run took."""
    costs = r["costs"]
    parts = [
        f"{name} {costs['relative'][name]:.3f}"
        for name in ("expected", "hard", "executed")
        if costs["relative"][name] is not None
    ]
    # runs of before the key existed count FLOPs
    unit = LABELS[costs["counts"] if "counts" in costs else "flops"]
    shown = ["cost ", f"{' · '.join(parts)} of dense {unit}"]
    if r["step_ms"]:
        shown.append(f"{r['step_ms']:.1f} ms a step")
    return " · ".join([*shown, f"{r['wall_s']:.0f} s in all"])


def _slots(r: dict[str, Any]) -> list[str]:
    """Returns how to divide the slots of cerebra's layers, where they are divided badly.

    That is so where one layer turns tokens away while another has slots that no token wants.
    """
    gates, net = r["test"].get("gates", {}), r["net"]
    if r["model"] != "cerebra" or net["scan"] or not gates.get("wanted"):
        return []
    wanted, kept, route = gates["wanted"], gates["kept"], net["route"]

    # slots that stay empty, as a share of the tokens
    scale = [1.0] * len(wanted)
    if route.get("by_layer"):
        scale = [float(n) for n in config.listed(route["by_layer"])]
    slots = [min(1.0, route["rate"] * route["capacity"] * n) for n in scale]
    idle = [n - k for n, k in zip(slots, kept, strict=True)]
    if max(gates["overflow"]) < UNEVEN or max(idle) < UNEVEN:
        return []

    mean = sum(wanted) / len(wanted)
    better = ",".join(f"{max(0.05, n / mean):.2g}" for n in wanted)
    asked, given = (" ".join(f"{n:.2f}" for n in row) for row in (wanted, kept))
    said = f"layers want the heavy path for {asked} of their tokens and give it to {given}"
    return [f"slots · {said}; by demand: --config.net.route.by_layer={better}"]
