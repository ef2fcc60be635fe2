"""Tells how long the runs of a sweep will take, by those that are done or by a model. No JAX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cerebra_jax.cli.cost import how_long
from cerebra_jax.cli.sweep_points import Point
from cerebra_jax.errors import UserError
from cerebra_jax.training import workdir as folder


class Priced(NamedTuple):
    """Holds a point with its state (done, to resume, new) and its price."""

    point: Point
    state: str
    price: Mapping[str, Any]


class Speed(NamedTuple):
    """Holds how fast a run was, evaluation and compilation included."""

    model: str
    step_flops: int
    per_second: float  # training FLOPs


def line(runs: Sequence[Priced], jobs: int) -> str:
    """Returns how long the runs that are left take, `jobs` at once, as far as steps are known.

    Where runs are done, each takes its FLOPs at the speed of the one that is most like it: of the
    same model if there is one, then by the FLOPs of a step. Before that it is modelled, for the
    whole machine. A run that was begun counts as new.
    """
    left = [run for run in runs if run.state != "done" and run.price["flops"]]
    speeds = [_speed(run) for run in runs if run.state == "done"]
    done = [speed for speed in speeds if speed is not None]
    if done:
        each = [run.price["flops"] / _nearest(run, done).per_second for run in left]
        seconds = max([*each, sum(each) / jobs])
        measured = "that of the run" if len(done) == 1 else f"those of the {len(done)} runs"
        return (
            f"about {how_long(seconds)}, {jobs} at once, at measured speeds: {measured} done here"
        )
    seconds = sum(run.price["seconds"] for run in left)
    how = ", ".join(sorted({run.price["modelled"] for run in left}))
    return f"about {how_long(seconds)}, modelled, not measured: {how}"


def _speed(run: Priced) -> Speed | None:
    """Returns the speed of a run that is done; None where its result cannot be read."""
    try:
        result = folder.result(run.point.workdir)
    except UserError:
        return None
    if result is None:
        return None
    rate = result["costs"]["train_total"] / max(result["wall_s"], 1e-3)
    return Speed(run.point.cfg.net.name, run.price["step_flops"], rate)


def _nearest(run: Priced, done: Sequence[Speed]) -> Speed:
    """Returns the speed of the run that is most like one that is left."""

    def distance(speed: Speed) -> tuple[bool, float]:
        ratio = speed.step_flops / run.price["step_flops"]
        return speed.model != run.point.cfg.net.name, abs(math.log(ratio))

    return min(done, key=distance)
