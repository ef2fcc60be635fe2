"""Quality against cost: which groups no other dominates, and the area that they dominate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cerebra_jax.report.groups import label
from cerebra_jax.report.runs import Groups, Run, first
from cerebra_jax.report.statistics import mean_sd


class Point(NamedTuple):
    """A place in the plane; less of either is better."""

    cost: float
    loss: float


class Box(NamedTuple):
    """The part of the plane whose dominated fraction is reported."""

    best: Point
    worst: Point


class Volume(NamedTuple):
    """The dominated fraction of a box over seeds; sd is NaN where the seeds cannot tell."""

    mean: float
    sd: float
    seeds: int


# A box ends this fraction of its range beyond the worst point, so that what is worst in one of the
# two counts a little as well.
MARGIN = 0.1


def front(points: Sequence[Point]) -> list[int]:
    """Returns the indices, by rising cost, of the points that no other dominates.

    A point dominates another if it is as good in both and better in one.
    """
    indices: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not indices:
            indices.append(i)
            continue
        last = points[indices[-1]]
        if points[i][1] < last[1] or points[i] == last:
            indices.append(i)
    return indices


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Returns the area that the points dominate up to the reference.

    Source: Zitzler & Thiele 1999, IEEE Trans. Evol. Comput. 3:257.
    """
    reference = Point(*reference)
    inside = [p for p in points if p[0] < reference.cost and p[1] < reference.loss]
    area = 0.0
    height = reference.loss
    for i in front(inside):
        cost, loss = inside[i]
        area += (reference.cost - cost) * (height - loss)
        height = loss
    return area


def dominated_fraction(points: Sequence[Point], within: Box) -> float:
    """Returns the hypervolume as a fraction of the box; 0 for a box without area."""
    area = (within.worst.cost - within.best.cost) * (within.worst.loss - within.best.loss)
    return hypervolume(points, within.worst) / area if area > 0 else 0.0


def point(run: Run) -> Point | None:
    """Returns (executed FLOPs per token, headline on test data as a loss); None if not known."""
    metric = run.headline
    value = run.figure("test", metric)
    if value is None:
        return None
    return Point(run.costs.executed_flops, value if metric.lower else -value)


def points_of(runs: Sequence[Run]) -> list[Point]:
    """Returns the points of the runs that have one."""
    return [p for p in map(point, runs) if p is not None]


def means(groups: Groups) -> dict[str, Point]:
    """Returns the mean point of each group that has one."""
    found = {}
    for name, runs in groups.items():
        points = points_of(runs)
        if points:
            costs, losses = zip(*points, strict=True)
            found[name] = Point(mean_sd(costs)[0], mean_sd(losses)[0])
    return found


def frame(groups: Groups) -> Box:
    """Returns the box of all runs."""
    return box([p for runs in groups.values() for p in points_of(runs)])


def box(points: Sequence[Point]) -> Box:
    """Returns the box from the best of some points to MARGIN of their range beyond the worst."""
    costs, losses = zip(*points, strict=True)
    worst = [max(axis) + MARGIN * (max(axis) - min(axis)) for axis in (costs, losses)]
    return Box(Point(min(costs), min(losses)), Point(*worst))


def volumes(groups: Groups) -> dict[str, Volume]:
    """Returns for each model, and for "all", the fraction of the box that its groups dominate.

    There is one value for each seed that every group of the model has. Where fewer than two seeds
    are common, the value is that of the mean points, and its standard deviation is NaN.
    """
    mean_points = means(groups)
    within = frame(groups)

    # the groups of each model
    models: dict[str, list[str]] = {}
    for name in mean_points:
        models.setdefault(label(groups[name][0].identity), []).append(name)
    if len(models) > 1:
        models = {"all": list(mean_points)} | models

    found = {}
    for model, names in models.items():
        by_seed = [_points_by_seed(groups[name]) for name in names]
        seeds = sorted(set.intersection(*(set(points) for points in by_seed)))
        if len(seeds) < 2:
            fraction = dominated_fraction([mean_points[name] for name in names], within)
            found[model] = Volume(fraction, math.nan, len(seeds))
            continue
        values = [
            dominated_fraction([points[seed] for points in by_seed], within) for seed in seeds
        ]
        found[model] = Volume(*mean_sd(values), len(seeds))
    return found


def lines(groups: Groups) -> list[str]:
    """Returns the front as a sentence, and with 3 groups or more the hypervolumes as another.

    Returns nothing for a single group, which leaves no choice.
    """
    mean_points = means(groups)
    if len(mean_points) < 2:
        return []
    names = list(mean_points)
    metric = first(groups).headline
    on = "; ".join(names[i] for i in front(list(mean_points.values())))
    front_line = f"Pareto front by means (executed FLOPs per token, test {metric.name}): {on}."
    if len(mean_points) < 3:
        return [front_line]

    best, worst = frame(groups)
    sign = 1 if metric.lower else -1
    digits = metric.digits
    shown = "; ".join(_volume_text(model, volume) for model, volume in volumes(groups).items())
    return [
        front_line,
        f"Hypervolume, a share of the box from {best.cost / 1e6:.4g} to {worst.cost / 1e6:.4g} "
        f"MFLOP/token and {sign * best.loss:,.{digits}f} to {sign * worst.loss:,.{digits}f}: "
        f"{shown}.",
    ]


def _volume_text(model: str, volume: Volume) -> str:
    if math.isnan(volume.sd):
        return f"{model} {volume.mean:.3f}"
    return f"{model} {volume.mean:.3f} ± {volume.sd:.3f} ({volume.seeds} seeds)"


def _points_by_seed(runs: Sequence[Run]) -> dict[int, Point]:
    points = {run.seed: point(run) for run in runs}
    return {seed: p for seed, p in points.items() if p is not None}
