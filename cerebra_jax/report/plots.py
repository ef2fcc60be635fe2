"""Figures of finished runs (extra `plots`: matplotlib). SVG keeps text as text."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from cerebra_jax.errors import UserError
from cerebra_jax.report.runs import Run

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito: safe for colour blindness
_DASHES = ("-", "--", "-.", ":")


def curves(groups: dict[str, list[Run]], path: Path, window: int = 50) -> None:
    """Training loss (mean of `window` steps) against training FLOPs executed, a line a seed, a colour a model."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for i, (name, runs) in enumerate(groups.items()):
        for j, run in enumerate(runs):
            lines = [line for line in run.lines("train") if line["loss"] is not None]
            # programs of a budget shrink on the way: every step weighs what it ran
            spent = list(itertools.accumulate(line["executed_rel_flops"] for line in lines))
            scale = run.result["costs"]["train_total"] / spent[-1] / 1e12
            y = _smooth([line["loss"] for line in lines], window)
            x = [scale * s for s in spent[window - 1 :]]
            axes.plot(x, y, _DASHES[i % 4], color=_COLOURS[i % 6], lw=1.2, alpha=0.8, label=name if j == 0 else None)
    axes.set_xlabel("training compute executed, TFLOP")
    axes.set_ylabel(f"training loss (mean of {window} steps)")
    axes.set_title(f"{next(iter(groups.values()))[0].result['dataset']}: loss against compute, a line a seed")
    axes.legend(frameon=False)
    _save(plt, figure, path)


def budgets(groups: dict[str, list[Run]], path: Path, window: int = 20) -> None:
    """How runs under a budget came to it, a line a seed: costs and their target; the multiplier λ; and the duality gap
    λ · (C − target), which is 0 at a saddle point (complementary slackness; Boyd & Vandenberghe 2004, §5.5.2)."""
    held = {name: rs for name, rs in groups.items() if all(r.config["objective"].get("budget") for r in rs)}
    if not held:
        raise UserError("none of these runs has a budget", "train with --config.objective.budget=0.6")
    plt = _pyplot()
    figure, (top, middle, low) = plt.subplots(3, figsize=(6.4, 7.2), layout="constrained", sharex=True)
    for i, (name, runs) in enumerate(held.items()):
        for j, run in enumerate(runs):
            lines = run.lines("train")
            unit = run.config["objective"].get("unit", "flops")  # runs of before the key existed count FLOPs
            style = {"color": _COLOURS[i % 6], "lw": 1.0, "alpha": 0.8}
            step = [line["step"] for line in lines]
            late, label = step[window - 1 :], name if j == 0 else None

            def column(key: str, lines=lines) -> list[float]:
                return [math.nan if line[key] is None else line[key] for line in lines]

            top.plot(late, _smooth(column(f"hard_rel_{unit}"), window), "-", label=label, **style)
            middle.plot(step, column("multiplier"), "-", **style)
            gap = [a * b for a, b in zip(column("multiplier"), column("budget_gap"), strict=True)]
            low.plot(late, _smooth(gap, window), "-", **style)
            if j == 0:
                top.plot(step, column("budget_target"), ":", color="black", lw=1.0)
                top.plot(step, column(f"executed_rel_{unit}"), "--", color=_COLOURS[i % 6], lw=0.8)
    top.set_ylabel("cost, share of dense")
    top.set_title("decisions (line), their target (dotted), executed program (dashed)", fontsize=9)
    top.legend(frameon=False, fontsize=7)
    middle.set_ylabel("multiplier λ")
    low.set_ylabel("duality gap λ · (C − target)")
    low.set_xlabel(f"step (means of {window})")
    _save(plt, figure, path)


def _pyplot():
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ModuleNotFoundError:
        raise UserError("figures need matplotlib", 'pip install "cerebra-jax[plots]"') from None
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "cerebra"
    return plt


def _smooth(values: list[float], window: int) -> list[float]:
    return [sum(values[k : k + window]) / window for k in range(len(values) - window + 1)]


def _save(plt, figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
