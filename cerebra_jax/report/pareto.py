"""Quality against cost: which groups no other one dominates, and how much of the plane they dominate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cerebra_jax.report.groups import label
from cerebra_jax.report.runs import Groups, Run
from cerebra_jax.report.statistics import mean_sd

Point = tuple[float, float]  # (cost, loss): less of either is better


MARGIN = 0.1  # the reference lies beyond the worst point: what is worst in one of the two counts a little as well


class Box(NamedTuple):
    """What a hypervolume is a share of: from the best cost and loss of some groups to a little beyond the worst."""

    best: Point
    worst: Point


def front(points: Sequence[Point]) -> list[int]:
    """Indices, by rising cost, of the points of which no other is as good in both and better in one."""
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not out or points[i][1] < points[out[-1]][1] or points[i] == points[out[-1]]:
            out.append(i)
    return out


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area that the points dominate up to the reference (Zitzler & Thiele 1999, IEEE Trans. Evol. Comput. 3:257)."""
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    area, height = 0.0, reference[1]
    for i in front(inside):
        cost, loss = inside[i]
        area += (reference[0] - cost) * (height - loss)
        height = loss
    return area


def share(points: Sequence[Point], box: Box) -> float:
    """The hypervolume as a share of the box; 0 for a box without area."""
    (c0, q0), (c1, q1) = box
    area = (c1 - c0) * (q1 - q0)
    return hypervolume(points, box.worst) / area if area > 0 else 0.0


def point(run: Run) -> Point | None:
    """(executed FLOPs per token, headline on test data as a loss) of a run; None where it has no such figure."""
    headline = run.metrics[0]
    value = run.result["test"][headline["key"]]
    return None if value is None else (run.executed_flops, value if headline["lower"] else -value)


def means(groups: Groups) -> dict[str, Point]:
    """The mean point of each group that has one."""
    found = {name: [p for run in runs if (p := point(run))] for name, runs in groups.items()}
    return {
        name: tuple(mean_sd([p[axis] for p in ps])[0] for axis in (0, 1))
        for name, ps in found.items()
        if ps
    }


def frame(groups: Groups) -> Box:
    """The box of all runs."""
    return box([p for runs in groups.values() for run in runs if (p := point(run))])


def box(points: Sequence[Point]) -> Box:
    """From the best of some points to MARGIN of their range beyond the worst."""
    axes = list(zip(*points, strict=True))
    return Box(
        tuple(map(min, axes)), tuple(max(axis) + MARGIN * (max(axis) - min(axis)) for axis in axes)
    )


def volumes(groups: Groups) -> dict[str, tuple[float, float, int]]:
    """{model: (share of the box that its groups dominate, its standard deviation over seeds, seeds)} and "all": one
    value a seed that every group of the model has; where they have none in common, that of the means, and NaN."""
    at, within = means(groups), frame(groups)
    models: dict[str, list[str]] = {}
    for name in at:
        models.setdefault(label(groups[name][0].identity), []).append(name)
    if len(models) > 1:
        models = {"all": list(at)} | models
    out = {}
    for model, names in models.items():
        by_seed = [{run.seed: p for run in groups[name] if (p := point(run))} for name in names]
        seeds = sorted(set.intersection(*(set(found) for found in by_seed)))
        if len(seeds) < 2:
            out[model] = (share([at[name] for name in names], within), math.nan, len(seeds))
            continue
        values = [share([found[seed] for found in by_seed], within) for seed in seeds]
        out[model] = (*mean_sd(values), len(seeds))
    return out


def lines(groups: Groups) -> list[str]:
    """The front and the hypervolumes for a person; nothing where there is no choice, volumes of 3 groups or more."""
    at = means(groups)
    if len(at) < 2:
        return []
    names, headline = list(at), next(iter(groups.values()))[0].metrics[0]
    on = "; ".join(names[i] for i in front(list(at.values())))
    (c0, q0), (c1, q1) = frame(groups)
    sign, digits = 1 if headline["lower"] else -1, headline["digits"]

    def shown(model: str, mean: float, sd: float, n: int) -> str:
        return f"{model} {mean:.3f}" + ("" if math.isnan(sd) else f" ± {sd:.3f} ({n} seeds)")

    first = f"Pareto front by means (executed FLOPs per token, test {headline['name']}): {on}."
    if len(at) < 3:
        return [first]
    return [
        first,
        f"Hypervolume, a share of the box from {c0 / 1e6:.4g} to {c1 / 1e6:.4g} MFLOP/token and "
        f"{sign * q0:,.{digits}f} to {sign * q1:,.{digits}f}: "
        f"{'; '.join(shown(model, *value) for model, value in volumes(groups).items())}.",
    ]
