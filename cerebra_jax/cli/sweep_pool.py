"""Starts runs as child processes, some at once, each with its share of the machine. Imports no JAX.

A child is an ordinary training run: it has its own lock, checkpoints and exit status, and outlives
nothing: what stops the pool (SIGTERM, SIGINT, SIGHUP) is passed on to every child, which saves and
ends with status 75.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax.cli.sweep_points import Point
from cerebra_jax.errors import DONE, PREEMPTED, Busy
from cerebra_jax.training import workdir as folder

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SCREEN = "screen.txt"  # in the folder of a run: what it would have shown


class Ended(NamedTuple):
    """Says how a point ended: done, busy, stopped or failed.

    A busy one is at work in another process. A stopped one is saved, and goes on when it is run
    again.
    """

    point: Point
    state: str
    line: str = ""  # the last that it said, where it failed
    seconds: float = 0.0
    status: int = 0  # of the process; negative: the signal that killed it


class _Child(NamedTuple):
    point: Point
    process: subprocess.Popen
    slot: int
    start: float


class Pool:
    """Runs at most `jobs` children; `with Pool(...)` passes signals on to them."""

    def __init__(self, jobs: int, say: Callable[[str], None]):
        self.jobs = jobs
        self.say = say
        self.stopping = False
        self._children: list[_Child] = []

    def __enter__(self) -> Pool:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
        numbers = [n for n in SIGNALS if not (n == signal.SIGHUP and ignored)]
        self._old = {number: signal.signal(number, self._stop) for number in numbers}
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            self._stop()  # nothing is left running after an error either
            for child in self._children:
                child.process.wait()
        finally:
            for number, handler in self._old.items():
                signal.signal(number, handler)

    @property
    def free(self) -> bool:
        """Returns True where one more may start."""
        return not self.stopping and len(self._children) < self.jobs

    @property
    def running(self) -> int:
        return len(self._children)

    def start(self, point: Point) -> Ended | None:
        """Starts a point, or returns how it ended already.

        It is busy where its folder is locked, and done where it has a result.
        """
        workdir = point.workdir
        folder.prepare(workdir, False, self.say)
        try:
            with folder.locked(workdir, self.say):
                folder.claim(workdir, point.cfg)
        except Busy:
            return Ended(point, "busy")
        if (workdir / "result.json").exists():
            return Ended(point, "done")
        slot = min(set(range(self.jobs)) - {child.slot for child in self._children})
        env = os.environ | environment(slot, self.jobs, os.environ)
        with open(workdir / SCREEN, "a", encoding="utf-8") as screen:
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(
                command(point), env=env, stdin=nothing, stdout=screen, stderr=screen
            )
        self._children.append(_Child(point, process, slot, time.monotonic()))
        if self.stopping:  # the signal came while it started
            process.terminate()
        return None

    def wait(self) -> Ended:
        """Returns the next point that ends."""
        while True:
            for child in self._children:
                status = child.process.poll()
                if status is not None:
                    self._children.remove(child)
                    return _ended(child, status)
            time.sleep(0.1)

    def _stop(self, number: int = 0, frame: Any = None) -> None:
        self.stopping = True
        for child in self._children:
            child.process.terminate()


def command(point: Point) -> list[str]:
    """Returns the command line of the run of a point, whose folder holds config.json."""
    workdir, cache = point.workdir, point.cfg.task.cache_dir
    words = [f"--config={workdir / 'config.json'}", f"--workdir={workdir}"]
    if cache:  # config.json is data, and may not say where compiled programs lie
        words.append(f"--config.task.cache_dir={cache}")
    return [sys.executable, "-m", "cerebra_jax.main", *words]


def share(things: Sequence[Any], slot: int, jobs: int) -> list[Any]:
    """Returns what the child in `slot` of `jobs` has of the machine's cores or GPUs: an even share,
    one at least.
    """
    n = len(things)
    return list(things[slot * n // jobs : (slot + 1) * n // jobs]) or [things[slot * n // jobs]]


def environment(slot: int, jobs: int, env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment that keeps a child to its share of the machine.

    That is as many threads of XLA (NPROC) as its share of the cores, and its GPUs, or a share of
    the memory of one where there are fewer GPUs than children. It is no affinity: a child that is
    tied to a core which others use too would starve beside idle cores.
    """
    if jobs == 1:
        return {}
    found = {} if "NPROC" in env else {"NPROC": str(len(share(range(_cores()), slot, jobs)))}
    seen = env.get("CUDA_VISIBLE_DEVICES")
    gpus = [g for g in seen.split(",") if g] if seen is not None else _gpus()
    if not gpus:
        return found
    found["CUDA_VISIBLE_DEVICES"] = ",".join(share(gpus, slot, jobs))
    if jobs > len(gpus) and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in env:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-jobs // len(gpus)):.2f}"
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def _ended(child: _Child, status: int) -> Ended:
    point, seconds = child.point, time.monotonic() - child.start
    if status == DONE:
        return Ended(point, "done", "", seconds)
    if status == PREEMPTED or -status in SIGNALS:
        return Ended(point, "stopped", "", seconds)
    line = _last_line(point.workdir / SCREEN)
    if "is in use by" in line:  # another sweep was faster
        return Ended(point, "busy")
    line = line.removeprefix("error: ") or f"exit status {status}"
    died = f"killed by {signal.Signals(-status).name}" if status < 0 else line
    return Ended(point, "failed", died, seconds, status)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else ""
