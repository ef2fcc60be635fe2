"""sweep: runs every point of a list, or the trials of a search.

Each is an ordinary run in a folder of its own.

What is done is passed over, so the same command goes on with what was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax.cli import arguments, settings, sweep_hours
from cerebra_jax.cli import sweep_points as listed
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.sweep_hours import Priced
from cerebra_jax.cli.sweep_points import Point
from cerebra_jax.cli.sweep_pool import SCREEN, Ended, Pool
from cerebra_jax.cli.sweep_price import prices
from cerebra_jax.cli.sweep_search import Search, Study, declared
from cerebra_jax.errors import DIVERGED, PointsFailed, Preempted, UserError
from cerebra_jax.training import processes
from cerebra_jax.training import workdir as folder

Say = Callable[[str], None]


class Sweep(NamedTuple):
    """Holds a sweep that was asked for, checked: a list of points, or a search."""

    root: Path
    jobs: int
    points: list[Point]
    search: Search | None


class _Listed:
    """Gives the points of a list in their order."""

    def __init__(self, points: list[Point]):
        self._left = list(points)

    def take(self) -> Point | None:
        return self._left.pop(0) if self._left else None

    def settle(self, end: Ended) -> None:
        """Does nothing: the folder of a run says how it ended."""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_config(parser)
    parser.epilog = f"{parser.epilog} Here it goes to every point."
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=arguments.folder,
        help="the folder of the sweep, with a folder for each run (default runs/SWEEP[-PART])",
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_jobs,
        default=1,
        help="runs at once (default 1); each has its share of the cores or GPUs",
    )
    parser.add_argument(
        "--dry", action="store_true", help="show what would be run, and run nothing"
    )


def check(request: Request) -> None:
    """Adds the sweep to a request; every point of a list is checked, and nothing is started."""
    spec = request.config
    if not spec:
        raise UserError("--config is missing", "try sweep --config=configs/sweeps/ablation.py")
    root = request.workdir or Path("runs") / settings.name_of(spec)
    entry, value = listed.call(spec, ("get_sweep", "get_search"))
    if entry == "get_search":
        search = declared(spec, value, request.overrides, root)
        request.sweep = Sweep(root, request.jobs, search.ends, search)
        return
    if isinstance(value, Mapping):
        what = f"get_sweep() of {spec} returns one dict"
        raise UserError(what, "return a list of dicts, or yield them")
    points = listed.load(spec, value, request.overrides, root)
    for point in points:
        if point.flops is None:
            folder.check(point.workdir, point.cfg)
    request.sweep = Sweep(root, request.jobs, points, None)


def run(request: Request) -> None:
    """Runs the sweep; raises RunError with the exit status of any end but a good one."""
    processes.require_one()
    sweep, say = request.sweep, Screen().say
    if sweep.search:
        _run_search(sweep, sweep.search, request.dry, say)
        return
    found = _prices(sweep.points)
    sweep = sweep._replace(points=_lasting(sweep.points, found))
    states = [_state(point) for point in sweep.points]
    announce(sweep, states, found, say)
    if request.dry:
        return
    todo = [p for p, state in zip(sweep.points, states, strict=True) if state != "done"]
    ended, stopping = _run(sweep.jobs, _Listed(todo), len(todo), say)
    close(ended, stopping, sweep.root, "the same command tries them again", say)


def _run_search(sweep: Sweep, search: Search, dry: bool, say: Say) -> None:
    announce_search(sweep, search, say)
    if dry:
        return
    study = Study(search)
    ended, stopping = _run(sweep.jobs, study, search.trials, say)
    for line in study.lines():
        say(line)
    # which trials diverge is what a search is to find out
    ended = [end for end in ended if end.status != DIVERGED]
    close(ended, stopping, sweep.root, "its other trials go on with the same command", say)


def _lasting(points: list[Point], found: list[dict[str, Any]]) -> list[Point]:
    """Returns the points with the steps that follow from their FLOPs.

    UserError where a folder holds another run.
    """
    lasting = []
    for point, price in zip(points, found, strict=True):
        if point.flops is not None:
            point = point.lasting(price["duration"])
            folder.check(point.workdir, point.cfg)
        lasting.append(point)
    return lasting


def announce(sweep: Sweep, states: list[str], found: list[dict[str, Any]], say: Say) -> None:
    """Says every point with its state, steps, training FLOPs and executed share of dense.

    And how long those that are left take.
    """
    # each point
    width = max(len(point.name) for point in sweep.points)
    for point, state, price in zip(sweep.points, states, found, strict=True):
        executed = f"{price['executed']:.3f} of dense as executed"
        say(f"{state:<9} {point.name:<{width}}  {_size(price)} · {executed}")
    # all of them
    left = [price for price, state in zip(found, states, strict=True) if state != "done"]
    known = [price for price in left if price["steps"] is not None]
    unknown = len(left) - len(known)
    totals = []
    if known or not unknown:
        sums = {key: sum(price[key] for price in known) for key in ("steps", "flops")}
        totals.append(f"{_size(sums)} at most")
    if unknown:
        totals.append(f"{unknown} of them for epochs of their data")
    say(
        f"{len(left)} of {len(found)} points to run, {sweep.jobs} at once, in {sweep.root}: "
        f"{', and '.join(totals)}"
    )
    if unknown:
        say(EPOCHS)
    if known:
        runs = [Priced(*run) for run in zip(sweep.points, states, found, strict=True)]
        say(sweep_hours.line(runs, sweep.jobs))


EPOCHS = (
    "How many steps an epoch has is not known before the text is prepared, which the first run "
    'does; with --config.train.duration="1000 steps" it is known now.'
)


def announce_search(sweep: Sweep, search: Search, say: Say) -> None:
    """Says the ranges of a search, and what its trials take between their ends.

    UserError where one cannot run.
    """
    for key, given in search.ranges.items():
        say(f"{key}: {', '.join(map(str, given)) if isinstance(given, list) else _range(given)}")
    found = sorted(_prices(search.ends), key=lambda price: price["step_flops"])
    least, most = _size(found[0]), _size(found[-1])
    say(
        f"{search.trials} trials in all, for {' and '.join(search.objectives)}, "
        f"{sweep.jobs} at once, in {sweep.root}: "
        f"each {least if least == most else f'{least} to {most}'}"
    )
    if found[0]["steps"] is None:
        say(EPOCHS)


def _jobs(text: str) -> int:
    most = 8 * (os.cpu_count() or 1)
    if not text.isdecimal() or not 1 <= int(text) <= most:
        arguments.refuse(text, f"choose 1 to {most}")
    return int(text)


def _range(given: Mapping[str, Any]) -> str:
    scale = ", by its logarithm" if given.get("log") else ""
    return f"{given['low']} to {given['high']}{scale}"


def _prices(points: list[Point]) -> list[dict[str, Any]]:
    """Returns the price of every point; raises UserError where one cannot run.

    That of a point which is given by its FLOPs says its train.duration.
    """
    found = prices([(point.cfg, point.flops) for point in points])
    for point, price in zip(points, found, strict=True):
        if "error" in price:
            what, hint = price["error"]
            raise UserError(f"{point.name}: {what}", hint)
    return found


def _size(price: Mapping[str, Any]) -> str:
    """Returns the steps and FLOPs of a run, or the FLOPs of a step where the data must tell how
    many there are.
    """
    if price["steps"] is None:
        return f"{price['duration']} · {si(price['step_flops'], 'FLOP')} a step"
    return f"{price['steps']:,} steps · {si(price['flops'], 'FLOP')}"


def _state(point: Point) -> str:
    if (point.workdir / "result.json").exists() and not folder.grows(point.workdir, point.cfg):
        return "done"
    return "to resume" if (point.workdir / "metrics.jsonl").exists() else "new"


def _run(jobs: int, source: _Listed | Study, total: int, say: Say) -> tuple[list[Ended], bool]:
    """Runs the points of a source, `jobs` at once.

    Returns (how they ended, whether a signal stopped them).
    """
    ended: list[Ended] = []

    def tell(end: Ended) -> None:
        ended.append(end)
        source.settle(end)
        words = {"busy": "at work in another process", "failed": f"failed: {end.line}"}
        how = words[end.state] if end.state in words else end.state
        seconds = f" ({end.seconds:.0f} s)" if end.seconds else ""
        say(f"[{len(ended)}/{total}] {end.point.name}{seconds}: {how}")

    with Pool(jobs, say) as pool:
        while True:
            point = source.take() if pool.free else None
            if isinstance(point, Ended):
                tell(point)
            elif point:
                end = pool.start(point)
                if end:
                    tell(end)
            elif pool.running:
                tell(pool.wait())
            else:
                return ended, pool.stopping


def close(ended: list[Ended], stopping: bool, root: Path, hint: str, say: Say) -> None:
    """Ends a sweep for a person and for a script: failures are listed, and are an exit status."""
    by_state = {
        state: [end for end in ended if end.state == state]
        for state in ("done", "busy", "stopped", "failed")
    }
    failed = by_state["failed"]
    for end in failed:
        say(f"failed: {end.point.name}: {end.line} (all it said: {end.point.workdir / SCREEN})")
    if stopping or (by_state["stopped"] and not failed):
        count = ", ".join(f"{len(ends)} {state}" for state, ends in by_state.items() if ends)
        raise Preempted(f"stopped: {count or 'nothing ended'}", "the same command goes on")
    if failed:
        names = [end.point.name for end in failed[:3]] + ["..."] * (len(failed) > 3)
        what = f"{len(failed)} of {len(ended)} points failed: {', '.join(names)}"
        raise PointsFailed(what, hint)
    if by_state["busy"]:
        busy = f"{len(by_state['busy'])} points are at work in other processes"
        say(f"{busy}: the same command shows when they are done")
    say(f"done: python -m cerebra_jax.main report {root}")
