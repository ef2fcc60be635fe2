"""Figures of finished runs (extra `plots`: matplotlib), into a file or as SVG into a stream.

SVG keeps text as text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cerebra_jax.display import printable
from cerebra_jax.errors import UserError
from cerebra_jax.report import pareto
from cerebra_jax.report.groups import label
from cerebra_jax.report.runs import Groups, Run, first
from cerebra_jax.report.statistics import mean_sd

# Okabe & Ito's colours, which are safe for colour blindness
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", "--", "-.", ":")
FEW = 8  # groups that a legend can name one by one; of more groups it names the models
POINTS = 30_000  # of all curves of a figure together


class LegendEntry(NamedTuple):
    """How a group is drawn: its name in the legend, None if that stands there, and its style."""

    name: str | None
    style: int

    @property
    def colour(self) -> str:
        return COLOURS[self.style % len(COLOURS)]

    @property
    def dash(self) -> str:
        return DASHES[self.style % len(DASHES)]


def curves(groups: Groups, into: Path | BinaryIO, window: int = 50) -> None:
    """Draws training loss against executed training FLOPs, a line a seed.

    The loss is a mean of `window` steps, or of a quarter of a short run. Each group has a colour;
    where there are many groups, each model has one.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    runs = [run for group in groups.values() for run in group]
    most = max(2, POINTS // len(runs))
    window = max(1, min(window, min(run.result["steps"] for run in runs) // 4))

    # a line a seed
    for entry, group in zip(_legend(groups), groups.values(), strict=True):
        for run in group:
            lines = [line for line in run.train_lines() if line["loss"] is not None]
            if not lines:
                what = f"{run.path / 'metrics.jsonl'} has no loss that is finite"
                raise UserError(what, "leave that run out")
            x = _tflops(run, lines)[window - 1 :]
            y = _smooth([line["loss"] for line in lines], window)
            if run is group[0]:
                phases = [line.get("phase") for line in lines][window - 1 :]
                _mark_phases(axes, phases, list(zip(x, y, strict=True)), entry.colour)
            name_once = entry.name if run is group[0] else None
            axes.plot(
                _thin(x, most),
                _thin(y, most),
                entry.dash,
                color=entry.colour,
                lw=1.2,
                alpha=0.8,
                label=name_once,
            )

    # axes
    axes.set_xlabel("training compute executed, TFLOP")
    axes.set_ylabel(f"training loss (mean of {window} steps)")
    axes.set_title(f"{plain(first(groups).dataset)}: loss against compute, a line a seed")
    axes.legend(frameon=False, fontsize=8)
    save(figure, into)


def _tflops(run: Run, lines: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the training compute up to each line; programs shrink on the way under a budget."""
    spent = list(itertools.accumulate(line["executed_rel_flops"] for line in lines))
    scale = run.costs.train_total / spent[-1] / 1e12
    return [scale * s for s in spent]


def _mark_phases(axes: Any, phases: Sequence[str | None], points: Sequence, colour: str) -> None:
    """Marks a curve where another phase of its schedule begins, with the phase's name."""
    for k in range(1, len(phases)):
        if phases[k] == phases[k - 1]:
            continue
        x, y = points[k]
        axes.plot([x], [y], "|", ms=9, color=colour)
        axes.annotate(
            plain(phases[k] or ""),
            (x, y),
            fontsize=6,
            xytext=(2, 6),
            textcoords="offset points",
            color=colour,
        )


def front(groups: Groups, into: Path | BinaryIO) -> None:
    """Draws the headline on test data against executed FLOPs per token.

    Dots are seeds, diamonds are means with their standard deviation, and the line is the front of
    the means.
    """
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    metric = first(groups).headline
    sign = 1 if metric.lower else -1
    means = pareto.means(groups)
    if not means:
        raise UserError(f"none of these runs has a {metric.name}", "nothing can be drawn")

    # dots and diamonds
    for entry, (name, runs) in zip(_legend(groups), groups.items(), strict=True):
        if name in means:
            _draw_group(axes, pareto.points_of(runs), sign, entry)

    # the front is a line of steps, for nothing was found in between
    names = list(means)
    on_front = [names[i] for i in pareto.front(list(means.values()))]
    costs = [means[name].cost / 1e6 for name in on_front]
    values = [sign * means[name].loss for name in on_front]
    axes.plot(
        costs,
        values,
        drawstyle="steps-post",
        color="black",
        lw=0.8,
        zorder=0,
        label="front of the means",
    )
    if len(groups) > FEW:
        for name, cost, value in zip(on_front, costs, values, strict=True):
            axes.annotate(
                plain(name), (cost, value), fontsize=5, xytext=(3, 3), textcoords="offset points"
            )

    # axes and legend
    all_costs = [mean.cost for mean in means.values()]
    if max(all_costs) > 5 * min(all_costs):
        axes.set_xscale("log")
    axes.set_xlabel("executed MFLOP per token, forward")
    better = "lower" if metric.lower else "higher"
    axes.set_ylabel(f"{plain(metric.name)}, test ({better} is better)")
    axes.set_title(
        "quality against cost: dots are seeds, bars ± their standard deviation", fontsize=9
    )
    ncols = 2 if len(groups) > 3 else 1
    figure.legend(loc="outside lower center", ncols=ncols, frameon=False, fontsize=6)
    save(figure, into)


def _draw_group(axes: Any, points: Sequence[pareto.Point], sign: int, entry: LegendEntry) -> None:
    """Draws the seeds of a group as dots, and their mean as a diamond."""
    costs = [point.cost for point in points]
    losses = [point.loss for point in points]
    axes.plot(
        [cost / 1e6 for cost in costs],
        [sign * loss for loss in losses],
        ".",
        ms=4,
        color=entry.colour,
        alpha=0.6,
    )
    mean, sd = mean_sd(losses)
    axes.errorbar(
        [mean_sd(costs)[0] / 1e6],
        [sign * mean],
        yerr=None if math.isnan(sd) else [sd],
        fmt="D",
        ms=5,
        color=entry.colour,
        capsize=2,
        lw=0.8,
        label=entry.name,
    )


def budgeted(groups: Groups) -> Groups:
    """Returns the groups that were trained under a budget."""
    return {name: runs for name, runs in groups.items() if all(run.budget for run in runs)}


def budgets(groups: Groups, into: Path | BinaryIO, window: int = 20) -> None:
    """Draws how runs under a budget came to it, a line a seed, in three panels.

    They show costs and their target, the multiplier λ, and the duality gap λ · (C − target), which
    is 0 at a saddle point (complementary slackness; Boyd & Vandenberghe 2004, §5.5.2).
    """
    held = budgeted(groups)
    if not held:
        raise UserError(
            "none of these runs has a budget", "train with --config.objective.budget=0.6"
        )
    most = max(2, POINTS // (4 * sum(map(len, held.values()))))
    figure = new_figure(6.4, 7.2)
    costs, multipliers, gaps = figure.subplots(3, sharex=True)

    # a line a seed, in each panel
    for i, (name, runs) in enumerate(held.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "alpha": 0.8}
        for run in runs:
            lines = run.train_lines()
            steps = [line["step"] for line in lines]
            decided = _smooth(run.column(lines, f"hard_rel_{run.unit}"), window)
            multiplier = run.column(lines, "multiplier")
            gap = [a * b for a, b in zip(multiplier, run.column(lines, "budget_gap"), strict=True)]
            smooth_gap = _smooth(gap, window)
            name_once = plain(name) if run is runs[0] else None
            costs.plot(*_last(steps, decided, most), "-", lw=1.0, **style, label=name_once)
            multipliers.plot(*_last(steps, multiplier, most), "-", lw=1.0, **style)
            gaps.plot(*_last(steps, smooth_gap, most), "-", lw=1.0, **style)
            if run is runs[0]:  # the same for all seeds
                target = run.column(lines, "budget_target")
                executed = run.column(lines, f"executed_rel_{run.unit}")
                costs.plot(*_last(steps, target, most), ":", color="black", lw=1.0)
                costs.plot(*_last(steps, executed, most), "--", lw=0.8, **style)

    # axes
    costs.set_ylabel("cost, share of dense")
    costs.set_title(
        "decisions (line), their target (dotted), executed program (dashed)", fontsize=9
    )
    costs.legend(frameon=False, fontsize=7)
    multipliers.set_ylabel("multiplier λ")
    gaps.set_ylabel("duality gap λ · (C − target)")
    gaps.set_xlabel(f"step (means of {window})")
    save(figure, into)


def _last(steps: list[float], values: list[float], most: int) -> tuple[list[float], list[float]]:
    """Returns at most `most` of the values with their steps, which are the last ones."""
    return _thin(steps[len(steps) - len(values) :], most), _thin(values, most)


def _legend(groups: Groups) -> list[LegendEntry]:
    """Returns how each group is drawn: by its own name where they are few, else by its model's."""
    if len(groups) <= FEW:
        names = [plain(name) for name in groups]
    else:
        names = [plain(label(runs[0].identity)) for runs in groups.values()]
    styles = {name: i for i, name in enumerate(dict.fromkeys(names))}
    entries = []
    seen = set()
    for name in names:
        entries.append(LegendEntry(None if name in seen else name, styles[name]))
        seen.add(name)
    return entries


def plain(name: str) -> str:
    """Returns a name that matplotlib shows as it is.

    A dollar sign begins no formula, and a low line does not hide the name from the legend.
    """
    shown = printable(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of so many inches; raises UserError where matplotlib is missing.

    pyplot does not know it: nothing is left behind where drawing ends with an error.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("figures need matplotlib", 'pip install "cerebra-jax[plots]"') from None
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "cerebra"
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, into: Path | BinaryIO) -> None:
    """Writes a figure; raises UserError for a file of an unknown kind."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    kind = "svg"
    if isinstance(into, Path):
        into.parent.mkdir(parents=True, exist_ok=True)
        kind = into.suffix.removeprefix(".")
        if kind not in ("svg", "png", "pdf"):
            raise UserError(f"{into} is no figure", "name it .svg, .png or .pdf")
    figure.savefig(into, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def _smooth(values: list[float], window: int) -> list[float]:
    """Returns the moving mean; its first value is that of the first `window` ones."""
    return [sum(values[k : k + window]) / window for k in range(len(values) - window + 1)]


def _thin(values: list[float], most: int) -> list[float]:
    """Returns at most `most` of the values, evenly chosen, the last included."""
    stride = -(-len(values) // most)
    return values[::-1][::stride][::-1] if stride > 1 else values
