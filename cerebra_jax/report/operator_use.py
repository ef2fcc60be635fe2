"""Which operator the tokens of each layer took, over training: a figure, and a table of where it began and ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cerebra_jax.errors import UserError
from cerebra_jax.report import plots
from cerebra_jax.report.runs import Groups, Run

OPERATORS = ("dct", "rbf", "attention")  # as models.operators names them; a model may lack one
ALONE = (
    0.95  # of the tokens of a layer: an operator that takes more of them has the layer to itself
)
PART = 0.1  # of the steps: what "begin" and "end" are means of
PANELS = 8  # layers in a row of the figure; of more, evenly chosen ones
POINTS = 300  # of a curve


def used(groups: Groups) -> dict[str, list[np.ndarray]]:
    """{group: of each of its runs the shares (steps, operators, layers)}, of the groups that say what they used."""
    found = {name: [_shares(run) for run in runs] for name, runs in groups.items()}
    return {name: runs for name, runs in found.items() if all(x is not None for x in runs)}


def rows(groups: Groups) -> list[list[str]]:
    """A row for each group and operator: its share of the tokens in each layer at the begin → the end of training, a
    mean over the seeds; and how many layers of all seeds have one operator alone at the end."""
    found = _some(groups)
    deepest = max(x[0].shape[2] for x in found.values())
    table = [
        [
            "model",
            "operator",
            *(f"layer {i + 1}" for i in range(deepest)),
            "layers with one operator alone",
        ]
    ]
    for name, runs in found.items():
        first, last = (
            np.stack([_part(x, end) for x in runs]) for end in (False, True)
        )  # (seeds, operators, layers)
        alone = int((last.max(1) > ALONE).sum())
        for k, operator in enumerate(OPERATORS):
            if not first[:, k].any() and not last[:, k].any():
                continue
            both = zip(first[:, k].mean(0), last[:, k].mean(0), strict=True)
            cells = [f"{a:.2f} → {b:.2f}" for a, b in both]
            count = f"{alone} of {last.shape[0] * last.shape[2]}"
            table.append([name, operator, *cells, *[""] * (deepest - len(cells)), count])
    return table


def markdown(groups: Groups) -> str:
    """The table with a line on what it shows."""
    head, *body = rows(groups)
    lines = [head, ["---"] * len(head), *body]
    note = (f"Shares of the tokens that took each operator: mean of the first → the last {PART:.0%} of the steps, over "
            f"seeds. Alone: more than {ALONE:.0%} of a layer's tokens at the end.")  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}"


def draw(groups: Groups, into: Path | BinaryIO) -> None:
    """Shares of the operators, stacked, against steps: a row of panels for each group, one for each layer; means over
    the seeds."""
    found = _some(groups)
    plt = plots._pyplot()
    most = min(PANELS, max(x[0].shape[2] for x in found.values()))
    size = (1.2 + 1.7 * most, 0.7 + 1.35 * len(found))
    figure, grid = plt.subplots(
        len(found), most, figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    for panels, (name, runs) in zip(grid, found.items(), strict=True):
        steps = min(len(x) for x in runs)
        share = np.mean([x[:steps] for x in runs], axis=0)
        window = max(1, steps // 50)
        at = np.unique(np.linspace(0, steps - window, min(POINTS, steps - window + 1)).astype(int))
        smooth = np.stack([share[i : i + window].mean(0) for i in at])
        depth = share.shape[2]
        layers = np.unique(np.linspace(0, depth - 1, min(most, depth)).astype(int))
        for axes in panels[len(layers) :]:
            axes.set_axis_off()
        for axes, layer in zip(panels, layers, strict=False):
            axes.stackplot(
                at + window,
                smooth[:, :, layer].T,
                colors=plots._COLOURS[:3],
                labels=OPERATORS,
                alpha=0.85,
            )
            axes.set(xlim=(at[0] + window, max(at[-1] + window, at[0] + window + 1)), ylim=(0, 1))
            axes.set_title(f"layer {layer + 1}", fontsize=7)
            axes.tick_params(labelsize=6)
        panels[0].set_ylabel(plots._plain(name).replace(", ", "\n"), fontsize=6)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=7)
    figure.supxlabel("step; share of the tokens that took each operator, stacked", fontsize=7)
    plots._save(plt, figure, into)


def _some(groups: Groups) -> dict[str, list[np.ndarray]]:
    found = used(groups)
    if not found:
        raise UserError(
            "none of these runs says which operators its tokens took", "train net.name=chiar"
        )
    return found


def _shares(run: Run) -> np.ndarray | None:
    lines = [line["gates"] for line in run.lines("train") if "use_dct" in line.get("gates", {})]
    return np.array([_row(gates) for gates in lines], float) if lines else None


def _row(gates: dict[str, Any]) -> list[Sequence[float]]:
    none = [0.0] * len(gates["use_dct"])
    return [gates.get(f"use_{operator}", none) for operator in OPERATORS]


def _part(share: np.ndarray, end: bool) -> np.ndarray:
    """Mean over the first or the last steps, (operators, layers)."""
    n = max(1, round(PART * len(share)))
    return (share[-n:] if end else share[:n]).mean(0)
