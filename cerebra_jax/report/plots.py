"""Figures of finished runs (extra `plots`: matplotlib), into a file or as SVG into a stream. SVG keeps text as text."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import BinaryIO

from cerebra_jax.errors import UserError
from cerebra_jax.report import pareto
from cerebra_jax.report.groups import label
from cerebra_jax.report.runs import Groups
from cerebra_jax.report.statistics import mean_sd

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # Okabe & Ito: safe for colour blindness
_DASHES = ("-", "--", "-.", ":")
FEW = 8  # groups that a legend can name one by one; of more it names the models
POINTS = 30_000  # of all curves of a figure together


def curves(groups: Groups, into: Path | BinaryIO, window: int = 50) -> None:
    """Training loss (mean of `window` steps, a quarter of a short run) against training FLOPs executed, a line a seed,
    a colour a group, or a model where there are many groups."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    most = max(2, POINTS // sum(map(len, groups.values())))
    shortest = min(run.result["steps"] for runs in groups.values() for run in runs)
    window = max(1, min(window, shortest // 4))
    for (name, i), runs in zip(_legend(groups), groups.values(), strict=True):
        for run in runs:
            lines = [line for line in run.lines("train") if line["loss"] is not None]
            # programs of a budget shrink on the way: every step weighs what it ran
            spent = list(itertools.accumulate(line["executed_rel_flops"] for line in lines))
            scale = run.result["costs"]["train_total"] / spent[-1] / 1e12
            y = _smooth([line["loss"] for line in lines], window)
            x = [scale * s for s in spent[window - 1 :]]
            if run is runs[0]:
                _phases(
                    axes, [line.get("phase") for line in lines][window - 1 :], x, y, _COLOURS[i % 6]
                )
            axes.plot(_thin(x, most), _thin(y, most), _DASHES[i % 4], color=_COLOURS[i % 6], lw=1.2, alpha=0.8,
                      label=name)  # fmt: skip
            name = None  # once in the legend
    axes.set_xlabel("training compute executed, TFLOP")
    axes.set_ylabel(f"training loss (mean of {window} steps)")
    axes.set_title(
        f"{next(iter(groups.values()))[0].result['dataset']}: loss against compute, a line a seed"
    )
    axes.legend(frameon=False, fontsize=8)
    _save(plt, figure, into)


def _phases(axes, phases: list[str | None], x: list[float], y: list[float], colour: str) -> None:
    """A mark on a curve where another phase of its recipe begins, with its name."""
    for k in range(1, len(phases)):
        if phases[k] != phases[k - 1]:
            axes.plot([x[k]], [y[k]], "|", ms=9, color=colour)
            axes.annotate(
                phases[k],
                (x[k], y[k]),
                fontsize=6,
                xytext=(2, 6),
                textcoords="offset points",
                color=colour,
            )


def front(groups: Groups, into: Path | BinaryIO) -> None:
    """The headline on test data against executed FLOPs per token: dots are seeds, diamonds means with their standard
    deviation; the line is the front of the means."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    headline = next(iter(groups.values()))[0].metrics[0]
    sign = 1 if headline["lower"] else -1
    at = pareto.means(groups)
    if not at:
        raise UserError(f"none of these runs has a {headline['name']}", "nothing can be drawn")
    for (legend, i), (name, runs) in zip(_legend(groups), groups.items(), strict=True):
        if name not in at:
            continue
        dots = [p for run in runs if (p := pareto.point(run))]
        sd = mean_sd([q for _, q in dots])[1]
        x, y = at[name][0] / 1e6, sign * at[name][1]
        colour = _COLOURS[i % 6]
        axes.plot(
            [c / 1e6 for c, _ in dots],
            [sign * q for _, q in dots],
            ".",
            ms=4,
            color=colour,
            alpha=0.6,
        )
        error = None if math.isnan(sd) else [sd]
        axes.errorbar(
            [x], [y], yerr=error, fmt="D", ms=5, color=colour, capsize=2, lw=0.8, label=legend
        )
    line = [
        list(at.items())[i] for i in pareto.front(list(at.values()))
    ]  # steps: nothing was found in between
    xs, ys = [cost / 1e6 for _, (cost, _) in line], [sign * loss for _, (_, loss) in line]
    axes.plot(
        xs, ys, drawstyle="steps-post", color="black", lw=0.8, zorder=0, label="front of the means"
    )
    if len(groups) > FEW:
        for name, (cost, loss) in line:
            axes.annotate(
                _plain(name),
                (cost / 1e6, sign * loss),
                fontsize=5,
                xytext=(3, 3),
                textcoords="offset points",
            )
    costs = [cost for cost, _ in at.values()]
    if max(costs) > 5 * min(costs):
        axes.set_xscale("log")
    axes.set_xlabel("executed MFLOP per token, forward")
    axes.set_ylabel(
        f"{headline['name']}, test ({'lower' if headline['lower'] else 'higher'} is better)"
    )
    axes.set_title(
        "quality against cost: dots are seeds, bars ± their standard deviation", fontsize=9
    )
    figure.legend(
        loc="outside lower center", ncols=2 if len(groups) > 3 else 1, frameon=False, fontsize=6
    )
    _save(plt, figure, into)


def budgeted(groups: Groups) -> Groups:
    """The groups that were trained under a budget."""
    return {
        name: runs
        for name, runs in groups.items()
        if all(r.config["objective"].get("budget") for r in runs)
    }


def budgets(groups: Groups, into: Path | BinaryIO, window: int = 20) -> None:
    """How runs under a budget came to it, a line a seed: costs and their target; the multiplier λ; and the duality gap
    λ · (C − target), which is 0 at a saddle point (complementary slackness; Boyd & Vandenberghe 2004, §5.5.2)."""
    held = budgeted(groups)
    if not held:
        raise UserError(
            "none of these runs has a budget", "train with --config.objective.budget=0.6"
        )
    plt = _pyplot()
    most = max(2, POINTS // (4 * sum(map(len, held.values()))))
    figure, (top, middle, low) = plt.subplots(
        3, figsize=(6.4, 7.2), layout="constrained", sharex=True
    )
    for i, (name, runs) in enumerate(held.items()):
        for j, run in enumerate(runs):
            lines = run.lines("train")
            unit = run.config["objective"].get(
                "unit", "flops"
            )  # runs of before the key existed count FLOPs
            style = {"color": _COLOURS[i % 6], "alpha": 0.8}
            step = [line["step"] for line in lines]

            def column(key: str, lines=lines) -> list[float]:
                return [math.nan if line[key] is None else line[key] for line in lines]

            def line(axes, y: list[float], dash: str, step=step, **how) -> None:
                axes.plot(_thin(step[len(step) - len(y) :], most), _thin(y, most), dash, **how)

            line(top, _smooth(column(f"hard_rel_{unit}"), window), "-", lw=1.0, **style,
                 label=_plain(name) if j == 0 else None)  # fmt: skip
            line(middle, column("multiplier"), "-", lw=1.0, **style)
            gap = [a * b for a, b in zip(column("multiplier"), column("budget_gap"), strict=True)]
            line(low, _smooth(gap, window), "-", lw=1.0, **style)
            if j == 0:
                line(top, column("budget_target"), ":", color="black", lw=1.0)
                line(top, column(f"executed_rel_{unit}"), "--", lw=0.8, **style)
    top.set_ylabel("cost, share of dense")
    top.set_title("decisions (line), their target (dotted), executed program (dashed)", fontsize=9)
    top.legend(frameon=False, fontsize=7)
    middle.set_ylabel("multiplier λ")
    low.set_ylabel("duality gap λ · (C − target)")
    low.set_xlabel(f"step (means of {window})")
    _save(plt, figure, into)


def _legend(groups: Groups) -> list[tuple[str | None, int]]:
    """(name in the legend, number of the colour) of each group: its own where they are few, else its model's, once."""
    names = (
        list(groups)
        if len(groups) <= FEW
        else [label(runs[0].identity) for runs in groups.values()]
    )
    names = [_plain(name) for name in names]
    first = list(dict.fromkeys(names))
    return [
        (None if name in names[:i] else name, first.index(name)) for i, name in enumerate(names)
    ]


def _plain(name: str) -> str:
    return name.replace("$", r"\$")  # no mathematics


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


def _thin(values: list[float], most: int) -> list[float]:
    """At most `most` of the values, evenly, the last included."""
    every = -(-len(values) // most)
    return values[::-1][::every][::-1] if every > 1 else values


def _save(plt, figure, into: Path | BinaryIO) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    kind = "svg"
    if isinstance(into, Path):
        into.parent.mkdir(parents=True, exist_ok=True)
        kind = into.suffix.removeprefix(".")
        if kind not in ("svg", "png", "pdf"):
            raise UserError(f"{into} is no figure", "name it .svg, .png or .pdf")
    figure.savefig(into, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
