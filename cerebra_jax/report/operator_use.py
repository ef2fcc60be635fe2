"""Shows which operator the tokens of each layer took over training, as a figure and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.report import plots, tables
from cerebra_jax.report.runs import HINT, Groups, Run

OPERATORS = ("dct", "rbf", "attention")  # as CHIAR names them; a model may lack one
ALONE = 0.95  # an operator that takes more of a layer's tokens has the layer to itself
ENDS = 0.1  # fraction of the steps that the "first" and the "last" ones are
PANELS = 8  # layers in a row of the figure; of more layers, evenly chosen ones
POINTS = 300  # of a curve


class Curve(NamedTuple):
    """What a panel shows: for each of P points a step, and the fraction of each of O operators."""

    step_P: np.ndarray
    fraction_OxP: np.ndarray


def used(groups: Groups) -> dict[str, list[np.ndarray]]:
    """Returns for each run of a group the fractions of its tokens, (steps, operators, layers).

    Groups whose runs do not all say what they used are left out.
    """
    fractions = {name: [_fractions(run) for run in runs] for name, runs in groups.items()}
    for name, of_runs in fractions.items():
        if len({fraction.shape[2] for fraction in of_runs if fraction is not None}) > 1:
            folders = ", ".join(str(run.path) for run in groups[name])
            raise UserError(f"{folders} say what another number of layers used", HINT)
    return {
        name: of_runs
        for name, of_runs in fractions.items()
        if all(fraction is not None for fraction in of_runs)
    }


def rows(groups: Groups) -> list[list[str]]:
    """Returns a row of text for each group and operator, the headings first.

    A row tells the fraction of the tokens in each layer, in the first → the last steps of training
    and as a mean over the seeds. Its last word tells how many layers of all seeds have one operator
    alone.
    """
    found = _some(groups)
    deepest = max(of_runs[0].shape[2] for of_runs in found.values())
    layers = [f"layer {i + 1}" for i in range(deepest)]
    table = [["model", "operator", *layers, "layers with one operator alone"]]
    for name, of_runs in found.items():
        # (seeds, operators, layers)
        first = np.stack([_first_mean(fraction) for fraction in of_runs])
        last = np.stack([_last_mean(fraction) for fraction in of_runs])
        alone = int((last.max(axis=1) > ALONE).sum())
        count = f"{alone} of {last.shape[0] * last.shape[2]}"
        for k, operator in enumerate(OPERATORS):
            if not first[:, k].any() and not last[:, k].any():
                continue
            both = zip(first[:, k].mean(axis=0), last[:, k].mean(axis=0), strict=True)
            cells = [f"{a:.2f} → {b:.2f}" for a, b in both]
            table.append([name, operator, *cells, *[""] * (deepest - len(cells)), count])
    return table


def markdown(groups: Groups) -> str:
    """Writes the table, and a line on what it shows, as Markdown."""
    note = (
        f"Shares of the tokens that took each operator: mean of the first → the last {ENDS:.0%} of "
        f"the steps, over seeds. Alone: more than {ALONE:.0%} of a layer's tokens at the end."
    )
    return tables.markdown(rows(groups), [note])


def draw(groups: Groups, into: Path | BinaryIO) -> None:
    """Draws the operators' fractions, stacked, against steps; means over the seeds.

    A group has a row of panels, and a layer a panel.
    """
    found = _some(groups)
    panels = min(PANELS, max(of_runs[0].shape[2] for of_runs in found.values()))
    figure = plots.new_figure(1.2 + 1.7 * panels, 0.7 + 1.35 * len(found))
    grid = figure.subplots(len(found), panels, squeeze=False, sharey=True)
    for row, (name, of_runs) in zip(grid, found.items(), strict=True):
        depth = of_runs[0].shape[2]
        layers = np.unique(np.linspace(0, depth - 1, min(panels, depth)).astype(int))
        for axes in row[len(layers) :]:
            axes.set_axis_off()
        for axes, layer in zip(row, layers, strict=False):
            _draw_layer(axes, _curve(of_runs, layer), f"layer {layer + 1}")
        row[0].set_ylabel(plots.plain(name).replace(", ", "\n"), fontsize=6)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=7)
    figure.supxlabel("step; share of the tokens that took each operator, stacked", fontsize=7)
    plots.save(figure, into)


def _curve(of_runs: Sequence[np.ndarray], layer: int) -> Curve:
    """Returns the moving mean of one layer's fractions, a mean over the seeds."""
    steps = min(len(fraction) for fraction in of_runs)
    mean = np.mean([fraction[:steps, :, layer] for fraction in of_runs], axis=0)
    window = max(1, steps // 50)
    count = min(POINTS, steps - window + 1)
    begin_P = np.unique(np.linspace(0, steps - window, count).astype(int))
    smooth = [mean[begin : begin + window].mean(axis=0) for begin in begin_P]
    return Curve(begin_P + window, np.stack(smooth).T)


def _draw_layer(axes: Any, curve: Curve, title: str) -> None:
    axes.stackplot(
        curve.step_P,
        curve.fraction_OxP,
        colors=plots.COLOURS[:3],
        labels=OPERATORS,
        alpha=0.85,
    )
    first = curve.step_P[0]
    axes.set(xlim=(first, max(curve.step_P[-1], first + 1)), ylim=(0, 1))
    axes.set_title(title, fontsize=7)
    axes.tick_params(labelsize=6)


def _some(groups: Groups) -> dict[str, list[np.ndarray]]:
    found = used(groups)
    if not found:
        raise UserError(
            "none of these runs says which operators its tokens took", "train net.name=chiar"
        )
    return found


def _fractions(run: Run) -> np.ndarray | None:
    """Returns (steps, operators, layers) of a run; None where it does not say.

    Raises UserError where its lines do not all have as many layers.
    """
    if not run.logged("use_dct"):
        return None
    steps = []
    for line in run.train_lines():
        gates = line.get("gates", {})
        if "use_dct" in gates:
            unused = [0.0] * len(gates["use_dct"])
            steps.append([gates.get(f"use_{operator}", unused) for operator in OPERATORS])
    if not steps:
        return None
    lengths = {len(row) for of_step in steps for row in of_step}
    if len(lengths) > 1 or lengths == {0}:
        what = f"{run.path / 'metrics.jsonl'}: the gates of its steps are not of the same layers"
        raise UserError(what, HINT)
    return np.array(steps, float)


def _first_mean(fraction: np.ndarray) -> np.ndarray:
    """Returns the mean over the first steps, (operators, layers)."""
    return fraction[: _end_steps(fraction)].mean(axis=0)


def _last_mean(fraction: np.ndarray) -> np.ndarray:
    """Returns the mean over the last steps, (operators, layers)."""
    return fraction[-_end_steps(fraction) :].mean(axis=0)


def _end_steps(fraction: np.ndarray) -> int:
    return max(1, round(ENDS * len(fraction)))
