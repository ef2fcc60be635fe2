"""Figures for a person, from what metrics.jsonl and result.json hold; no JAX: a finished run answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SCREEN = {"ppl_word": "perplexity per word", "ppl_token": "per token", "bits_per_byte": "bits per byte"}


def quality(line: dict[str, Any]) -> str:
    """The figures of a validation or test line for a person."""
    found = [f"{name} {line[key]:.4g}" for key, name in _SCREEN.items() if line.get(key) is not None]
    rel = "" if line.get("hard_rel_flops") is None else f" · {line['hard_rel_flops']:.3f} of dense FLOPs"
    return f"loss {line['loss']:.4f} · {' · '.join(found)}{rel}"


def closing(r: dict[str, Any], workdir: Path) -> list[str]:
    """The result of a run for a person; the notice about its data stands beside the figures."""
    costs = r["costs"]["relative"]
    parts = [f"{name} {costs[name]:.3f}" for name in ("expected", "hard", "executed") if costs[name] is not None]
    step_ms = f"{r['step_ms']:.1f} ms a step · " if r["step_ms"] else ""
    return [
        f"test  · step {r['best_step']:,} · {quality(r['test'])}",
        f"cost  · {' · '.join(parts)} of dense · {step_ms}{r['wall_s']:.0f} s in all",
        *([r["notice"]] if r["notice"] else []),
        f"done: {workdir / 'result.json'}",
    ]
