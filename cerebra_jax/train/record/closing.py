"""Figures for a person, from what metrics.jsonl and result.json hold; no JAX: a finished run answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cerebra_jax.cost.units import LABELS
from cerebra_jax.tasks.task import Metric


def quality(line: dict[str, Any], metrics: Iterable[Metric]) -> str:
    """The figures of a validation or test line for a person."""
    found = [f"{m.name} {line[m.key]:,.{m.digits}f}" for m in metrics if line.get(m.key) is not None]
    return " · ".join([f"loss {line['loss']:.4f}", *found, of_dense(line)])


def of_dense(line: dict[str, Any]) -> str:
    """The cost of the decisions of a line, in the unit it is counted in."""
    [(unit, hard)] = [(k.removeprefix("hard_rel_"), v) for k, v in line.items() if k.startswith("hard_rel_")]
    return f"{hard or 0:.3f} of dense {LABELS[unit]}"


def closing(r: dict[str, Any], workdir: Path) -> list[str]:
    """The result of a run for a person; the notice about its data stands beside the figures."""
    costs, metrics = r["costs"]["relative"], [Metric(**m) for m in r["metrics"]]
    parts = [f"{name} {costs[name]:.3f}" for name in ("expected", "hard", "executed") if costs[name] is not None]
    step_ms = f"{r['step_ms']:.1f} ms a step · " if r["step_ms"] else ""
    unit = LABELS[r["costs"].get("counts", "flops")]  # runs of before the key existed count FLOPs
    return [
        f"test  · step {r['best_step']:,} · {quality(r['test'], metrics)}",
        f"cost  · {' · '.join(parts)} of dense {unit} · {step_ms}{r['wall_s']:.0f} s in all",
        *([r["notice"]] if r["notice"] else []),
        f"done: {workdir / 'result.json'}",
    ]
