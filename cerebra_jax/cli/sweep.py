"""The `sweep` command: every point of a list is an ordinary run in a folder of its own; done ones are passed over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax.cli import flags, settings
from cerebra_jax.cli import sweep_points as listed
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.sweep_points import Point
from cerebra_jax.cli.sweep_pool import SCREEN, Ended, Pool
from cerebra_jax.cli.sweep_price import prices
from cerebra_jax.cli.sweep_search import Search, Study, declared
from cerebra_jax.errors import DIVERGED, PointsFailed, Preempted, UserError
from cerebra_jax.training import workdir as folder


class Request(NamedTuple):
    """A sweep that was asked for, checked: a list of points, or a search."""

    spec: str
    root: Path
    jobs: int
    dry: bool
    points: list[Point]
    search: Search | None


class _Listed:
    """The points of a list in their order."""

    def __init__(self, points: list[Point]):
        self._left = list(points)

    def take(self) -> Point | None:
        return self._left.pop(0) if self._left else None

    def settle(self, end: Ended) -> None:
        """Nothing is to be done: its folder says how a run ended."""


def parse(argv: list[str]) -> Request:
    """Request of the words from `sweep` on; every point of the list is checked, nothing is started."""
    _, options, overrides = flags.words(argv)
    spec = options.get("config", "")
    if not spec:
        raise UserError("--config is missing", "try sweep --config=configs/sweeps/ablation.py")
    jobs = options.get("jobs", "1")
    cores = os.cpu_count() or 1
    if not jobs.isdecimal() or not 1 <= int(jobs) <= 8 * cores:
        raise UserError(f"--jobs is {jobs!r}", f"choose 1 to {8 * cores}")
    if options.get("workdir") == "":
        raise UserError("--workdir is empty", "give a folder")
    root = Path(options.get("workdir", Path("runs") / settings.name_of(spec)))
    entry, value = listed.call(spec, ("get_sweep", "get_search"))
    if entry == "get_search":
        search = declared(spec, value, overrides, root)
        return Request(spec, root, int(jobs), "dry" in options, search.ends, search)
    if isinstance(value, Mapping):
        raise UserError(
            f"get_sweep() of {spec} returns one dict", "return a list of dicts, or yield them"
        )
    points = listed.load(spec, value, overrides, root)
    for point in points:
        folder.check(point.workdir, point.cfg)
    return Request(spec, root, int(jobs), "dry" in options, points, None)


def run(argv: list[str]) -> None:
    """Raises RunError with the exit status of any end but a good one."""
    request, say = parse(argv), Screen().say
    if request.search:
        announce_search(request, request.search, say)
        if not request.dry:
            study = Study(request.search)
            ended, stopping = _run(request.jobs, study, request.search.trials, say)
            for line in study.lines():
                say(line)
            ended = [
                end for end in ended if end.status != DIVERGED
            ]  # to find that out is what a search is for
            close(
                ended, stopping, request.root, "its other trials go on with the same command", say
            )
        return
    states = [_state(point) for point in request.points]
    announce(request, states, say)
    if not request.dry:
        todo = [
            point for point, state in zip(request.points, states, strict=True) if state != "done"
        ]
        ended, stopping = _run(request.jobs, _Listed(todo), len(todo), say)
        close(ended, stopping, request.root, "the same command tries them again", say)


def announce(request: Request, states: list[str], say: Any) -> None:
    """Every point with its state, steps, training FLOPs and executed share of dense; UserError where one cannot run."""
    found = _prices(request.points)
    width = max(len(point.name) for point in request.points)
    for point, state, price in zip(request.points, states, found, strict=True):
        say(
            f"{state:<9} {point.name:<{width}}  {_size(price)} · {price['executed']:.3f} of dense as executed"
        )
    left = [price for price, state in zip(found, states, strict=True) if state != "done"]
    known = [price for price in left if price["steps"] is not None]
    unknown = (
        ""
        if len(known) == len(left)
        else f", and {len(left) - len(known)} counted in epochs of their data"
    )
    total = {"steps": sum(p["steps"] for p in known), "flops": sum(p["flops"] for p in known)}
    say(f"{len(left)} of {len(found)} points to run, {request.jobs} at once, in {request.root}: "
        f"{_size(total)} at most{unknown}")  # fmt: skip


def announce_search(request: Request, search: Search, say: Any) -> None:
    """The ranges of a search, and what its trials take between their ends; UserError where one cannot run."""
    for key, given in search.ranges.items():
        say(f"{key}: {', '.join(map(str, given)) if isinstance(given, list) else _range(given)}")
    found = sorted(_prices(search.ends), key=lambda price: price["flops"] or 0)
    at = "" if found[0] == found[-1] else f" to {_size(found[-1])}"
    say(f"{search.trials} trials in all, for {' and '.join(search.objectives)}, {request.jobs} at once, in "
        f"{request.root}: each {_size(found[0])}{at}")  # fmt: skip


def _range(given: Mapping[str, Any]) -> str:
    return f"{given['low']} to {given['high']}{', by its logarithm' if given.get('log') else ''}"


def _prices(points: list[Point]) -> list[dict[str, Any]]:
    found = prices([point.cfg for point in points])
    for point, price in zip(points, found, strict=True):
        if "error" in price:
            raise UserError(f"{point.name}: {price['error'][0]}", price["error"][1])
    return found


def _size(price: Mapping[str, Any]) -> str:
    if price["steps"] is None:
        return "steps by the data"
    return f"{price['steps']:,} steps · {si(price['flops'], 'FLOP')}"


def _state(point: Point) -> str:
    if (point.workdir / "result.json").exists():
        return "done"
    return "to resume" if (point.workdir / "metrics.jsonl").exists() else "new"


def _run(jobs: int, source: _Listed | Study, total: int, say: Any) -> tuple[list[Ended], bool]:
    """(how the points of a source ended, whether a signal stopped them), `jobs` at once."""
    ended: list[Ended] = []

    def tell(end: Ended) -> None:
        ended.append(end)
        source.settle(end)
        how = {"busy": "at work in another process", "failed": f"failed: {end.line}"}.get(
            end.state, end.state
        )
        seconds = f" ({end.seconds:.0f} s)" if end.seconds else ""
        say(f"[{len(ended)}/{total}] {end.point.name}{seconds}: {how}")

    with Pool(jobs, say) as pool:
        while True:
            point = source.take() if pool.free else None
            if isinstance(point, Ended):
                tell(point)
            elif point:
                if end := pool.start(point):
                    tell(end)
            elif pool.running:
                tell(pool.wait())
            else:
                return ended, pool.stopping


def close(ended: list[Ended], stopping: bool, root: Path, mend: str, say: Any) -> None:
    """The end of a sweep for a person and for a script: failures are listed, and are an exit status."""
    of = {
        state: [e for e in ended if e.state == state]
        for state in ("done", "busy", "stopped", "failed")
    }
    for end in of["failed"]:
        say(f"failed: {end.point.name}: {end.line} (all it said: {end.point.workdir / SCREEN})")
    count = ", ".join(f"{len(ends)} {state}" for state, ends in of.items() if ends)
    if stopping or (of["stopped"] and not of["failed"]):
        raise Preempted(f"stopped: {count or 'nothing ended'}", "the same command goes on")
    if of["failed"]:
        names = ", ".join(end.point.name for end in of["failed"][:3]) + ", ..." * (
            len(of["failed"]) > 3
        )
        what = f"{len(of['failed'])} of {len(ended)} points failed: {names}"
        raise PointsFailed(what, mend)
    if of["busy"]:
        say(
            f"{len(of['busy'])} points are at work in other processes: the same command shows when they are done"
        )
    say(f"done: python -m cerebra_jax.main report {root}")
