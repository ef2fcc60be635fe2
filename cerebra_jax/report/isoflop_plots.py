"""Figures of an iso-FLOP sweep (extra `plots`): loss against size, lowest loss against compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cerebra_jax.report import plots
from cerebra_jax.report.isoflop import Cell, Family, power
from cerebra_jax.report.isoflop_fit import interval
from cerebra_jax.report.isoflop_multiplier import Comparison, Sizes
from cerebra_jax.report.statistics import mean_sd

_ACROSS = 3  # panels in a row
_POINTS = 60  # of an envelope


def curves(of: Comparison, into: Path | BinaryIO) -> None:
    """Draws loss on validation data against size, a panel a family and a line a budget.

    Dots are means with the standard deviation over seeds, a star is the lowest one, and lines are
    the fit; where there is none, dots are joined by thin lines.
    """
    families = of.study.families
    across = min(_ACROSS, len(families))
    down = math.ceil(len(families) / across)
    figure = plots.new_figure(0.8 + 2.6 * across, 0.8 + 2.3 * down)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    budgets = sorted({budget for family in families for budget in family.budgets})
    panels = list(grid.flat)
    for axes, family in zip(panels, families, strict=False):
        for budget in family.budgets:
            _draw_budget(axes, family, budget, budgets.index(budget))
        axes.set_title(plots.plain(family.name), fontsize=8)
        axes.set_xscale("log")
        axes.tick_params(labelsize=7, which="both")
    for axes in panels[len(families) :]:
        axes.set_axis_off()

    # one legend, of all budgets
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(
        named.values(),
        named.keys(),
        loc="outside upper center",
        ncols=min(4, len(named)),
        frameon=False,
        fontsize=7,
        title="training FLOPs as executed",
        title_fontsize=7,
    )
    figure.supxlabel("parameters outside of embedding and head", fontsize=8)
    figure.supylabel("loss on validation data, nats a token", fontsize=8)
    plots.save(figure, into)


def _draw_budget(axes: Any, family: Family, budget: float, i: int) -> None:
    """Draws the losses of a family at one budget, and its fit along that budget."""
    colour = plots.COLOURS[i % len(plots.COLOURS)]
    cells = family.at(budget)
    N_P = [cell.N for cell in cells]
    _means(axes, N_P, cells, fmt="o", ms=3, color=colour, label=power(budget))
    lowest = family.best(budget)
    axes.plot([lowest.N], [lowest.loss], "*", ms=9, color=colour)
    if family.fit is None:
        axes.plot(N_P, [cell.loss for cell in cells], lw=0.6, color=colour)
        return
    sizes = Sizes.of(family)
    between_K = (sizes.N_K >= cells[0].N) & (sizes.N_K <= cells[-1].N)
    N_K, flops_K = sizes.N_K[between_K], sizes.flops_K[between_K]
    axes.plot(N_K, family.fit.law.loss(N_K, budget / (3 * flops_K))[0], lw=1.0, color=colour)


def _means(axes: Any, x_P: Sequence[float], cells: Sequence[Cell], **style: Any) -> None:
    """Draws the mean loss of cells, with the standard deviation over seeds where there are some."""
    sds = [mean_sd(cell.losses("val"))[1] for cell in cells]
    bars = [0.0 if math.isnan(sd) else sd for sd in sds]
    axes.errorbar(x_P, [cell.loss for cell in cells], yerr=bars, lw=0.8, capsize=2, **style)


def envelopes(of: Comparison, into: Path | BinaryIO) -> None:
    """Draws the lowest loss of each family against training FLOPs.

    Lines are envelopes of the fits between the least and the most that a family was trained with,
    in bands of their 95 % intervals. Diamonds are the lowest measured means, with the standard
    deviation over seeds.
    """
    figure = plots.new_figure(6.4, 4.4)
    axes = figure.subplots()
    for i, family in enumerate(of.study.families):
        colour = plots.COLOURS[i % len(plots.COLOURS)]
        dash = plots.DASHES[i // len(plots.COLOURS) % len(plots.DASHES)]
        lowest = [family.best(budget) for budget in family.budgets]
        C_P = [cell.C for cell in lowest]
        label = plots.plain(family.name)
        _means(axes, C_P, lowest, fmt="D", ms=4, color=colour, label=label)
        if family.fit is None:
            continue
        sizes = Sizes.of(family)
        C_K = np.geomspace(lowest[0].C, lowest[-1].C, _POINTS)
        loss_K = [sizes.envelope(family.fit.law, C)[1][0] for C in C_K]
        ends_Kx2 = [interval(sizes.envelope(family.fit.draws, C)[1]) for C in C_K]
        axes.plot(C_K, loss_K, dash, lw=1.2, color=colour)
        axes.fill_between(C_K, *zip(*ends_Kx2, strict=True), color=colour, alpha=0.12, lw=0)
    axes.set_xscale("log")
    axes.tick_params(labelsize=7, which="both")
    axes.set_xlabel("training FLOPs as executed")
    axes.set_ylabel("loss on validation data, nats a token")
    axes.set_title("lowest loss of each family: lines by fits, diamonds as measured", fontsize=9)
    axes.legend(frameon=False, fontsize=7)
    plots.save(figure, into)
