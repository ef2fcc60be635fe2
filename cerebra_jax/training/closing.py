"""Figures for a person, from what metrics.jsonl and result.json hold; no JAX: a finished run answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cerebra_jax import config
from cerebra_jax.cost.units import LABELS
from cerebra_jax.tasks.task import Metric

UNEVEN = 0.1  # share of a layer's tokens that find no slot, while as many slots of another layer are empty


def quality(line: dict[str, Any], metrics: Iterable[Metric]) -> str:
    """The figures of a validation or test line for a person."""
    found = [
        f"{m.name} {line[m.key]:,.{m.digits}f}" for m in metrics if line.get(m.key) is not None
    ]
    return " · ".join([f"loss {line['loss']:.4f}", *found, of_dense(line)])


def of_dense(line: dict[str, Any]) -> str:
    """The cost of the decisions of a line, in the unit it is counted in."""
    [(unit, hard)] = [
        (k.removeprefix("hard_rel_"), v) for k, v in line.items() if k.startswith("hard_rel_")
    ]
    return f"{hard or 0:.3f} of dense {LABELS[unit]}"


def closing(r: dict[str, Any], workdir: Path) -> list[str]:
    """The result of a run for a person; the notice about its data stands beside the figures."""
    costs, metrics = r["costs"]["relative"], [Metric(**m) for m in r["metrics"]]
    parts = [
        f"{name} {costs[name]:.3f}"
        for name in ("expected", "hard", "executed")
        if costs[name] is not None
    ]
    step_ms = f"{r['step_ms']:.1f} ms a step · " if r["step_ms"] else ""
    unit = LABELS[r["costs"].get("counts", "flops")]  # runs of before the key existed count FLOPs
    return [
        f"test  · step {r['best_step']:,} · {quality(r['test'], metrics)}",
        f"cost  · {' · '.join(parts)} of dense {unit} · {step_ms}{r['wall_s']:.0f} s in all",
        *_slots(r),
        *([r["notice"]] if r["notice"] else []),
        f"done: {workdir / 'result.json'}",
    ]


def _slots(r: dict[str, Any]) -> list[str]:
    """Where one layer of cerebra turns tokens away while another has slots that nobody wants: how to divide them."""
    gates, net = r["test"].get("gates", {}), r["net"]
    if r["model"] != "cerebra" or net["scan"] or not gates.get("wanted"):
        return []
    wanted, kept, route = gates["wanted"], gates["kept"], net["route"]
    scale = (
        [float(n) for n in config.listed(route["by_layer"])]
        if route.get("by_layer")
        else [1.0] * len(wanted)
    )
    idle = [
        min(1.0, route["rate"] * route["capacity"] * n) - k
        for n, k in zip(scale, kept, strict=True)
    ]
    if max(gates["overflow"]) < UNEVEN or max(idle) < UNEVEN:
        return []
    mean = sum(wanted) / len(wanted)
    better = ",".join(f"{max(0.05, n / mean):.2g}" for n in wanted)
    shares = (" ".join(f"{n:.2f}" for n in row) for row in (wanted, kept))
    said = "layers want the heavy path for {} of their tokens and give it to {}".format(*shares)
    return [f"slots · {said}; by demand: --config.net.route.by_layer={better}"]
