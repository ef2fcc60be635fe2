"""Runs every timing: interleaved A B … B A rounds, paired ratios.

`rounds_of` times anything that can be called. Benchmarks keep a `Variant` in a process of its own:
built once in a fresh worker (so that the thread pools of PyTorch and JAX never meet, and peak
memory is its own), warmed up, then told when to run. The parent runs one worker at a time; the
others sleep in a read. Worker and parent speak JSON lines. This module imports no JAX.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CELL_SECONDS = 0.05  # a cell lasts at least this long
NOISY = 0.15  # (q3 - q1) / median from which a ratio is marked


class Variant(NamedTuple):
    """Holds what a worker runs: `run(n)` does n repetitions and returns when they are finished."""

    run: Callable[[int], None]
    rate: Callable[[], float]  # FLOP/s of a large matmul in this framework, in this process
    info: dict[str, Any]  # whatever the table wants to say: loss, temp_bytes, ...


class Unavailable(Exception):
    """A variant cannot run here: the reason, and how to make it run."""


class Cell(NamedTuple):
    """Seconds per repetition."""

    wall: float
    cpu: float


class Ratio(NamedTuple):
    """Paired ratios A / B: one per round; below 1, A is faster."""

    median: float
    q1: float
    q3: float
    minima: float  # ratio of the fastest rounds
    cpu: float  # median ratio of process CPU times, steadier under load
    noisy: bool


def compare(a: Sequence[Cell], b: Sequence[Cell]) -> Ratio:
    """Returns the ratio of the times of A and B, which were measured in the same rounds."""
    walls = [x.wall / y.wall for x, y in zip(a, b, strict=True)]
    q1, median, q3 = quartiles(walls)
    minima = min(x.wall for x in a) / min(y.wall for y in b)
    cpu = statistics.median(x.cpu / y.cpu for x, y in zip(a, b, strict=True))
    return Ratio(median, q1, q3, minima, cpu, (q3 - q1) / median > NOISY)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns (q1, median, q3), linear between order statistics."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3


def palindrome(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yields the order of each round: A B C C B A, then C B A A B C, …

    A steady drift of the load cancels in every round.
    """
    for i in range(rounds):
        order = list(names) if i % 2 == 0 else list(reversed(names))
        yield order + order[::-1]


class Worker:
    """Runs a variant in its own process.

    `info` is what the variant gave, and `rss_bytes`, its memory before it was built.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes
        self._questions = self._process.stdin
        self._answers = self._process.stdout
        self.info = self._answer()

    def cell(self, n: int) -> Cell:
        """Runs n repetitions."""
        got = self._ask({"run": n})
        return Cell(got["wall"] / n, got["cpu"] / n)

    def rate(self) -> float:
        """Returns FLOP/s of a large matmul now."""
        return self._ask({"rate": True})["rate"]

    def peak_bytes(self) -> int:
        """Returns the peak memory of the process since it was ready, less what its imports took."""
        return self._ask({"peak": True})["peak"] - self.info["rss_bytes"]

    def close(self) -> None:
        """Ends the process."""
        self._questions.close()
        self._process.wait(timeout=60)
        self._answers.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self._questions.write(json.dumps(question) + "\n")
        self._questions.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(
                f"the worker ended with status {self._process.wait()}; its words are above"
            )
        answer = json.loads(line)
        if "unavailable" in answer:
            self.close()
            raise Unavailable(answer["unavailable"])
        return answer


def serve(build: Callable[[], Variant], imports: Callable[[], None] = lambda: None) -> None:
    """Builds the variant in a worker, and answers until the parent hangs up.

    What the variant prints goes to stderr.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    # build
    try:
        imports()
        rss = _memory("VmRSS")
        variant = build()
    except Unavailable as e:
        say({"unavailable": str(e)})
        return
    _forget_peak()
    say(variant.info | {"rss_bytes": rss})

    # answer
    for line in sys.stdin:
        question = json.loads(line)
        if "run" in question:
            wall = time.perf_counter()
            cpu = time.process_time()
            variant.run(question["run"])
            say({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
        elif "rate" in question:
            say({"rate": variant.rate()})
        else:
            say({"peak": _memory("VmHWM")})


def measure(
    workers: dict[str, Worker], rounds: int
) -> tuple[dict[str, list[Cell]], dict[str, list[float]]]:
    """Returns ({name: a cell a round}, {name: matmul FLOP/s a round}).

    Each round is a palindrome over the workers.
    """
    rates: dict[str, list[float]] = {name: [] for name in workers}
    cells: dict[str, list[Cell]] = {name: [] for name in workers}
    for found in rounds_of({name: w.cell for name, w in workers.items()}, rounds):
        for name, cell in found.items():
            cells[name].append(cell)
            rates[name].append(workers[name].rate())
    return cells, rates


def rounds_of(runs: dict[str, Callable[[int], Cell]], rounds: int) -> Iterator[dict[str, Cell]]:
    """Yields a cell of every name, round by round; runs[name](n) times n repetitions.

    Each round is a palindrome.
    """
    # how many repetitions fill a cell; warms up too
    repeats = {name: max(1, round(CELL_SECONDS / run(2).wall + 0.5)) for name, run in runs.items()}
    for order in palindrome(list(runs), rounds):
        seen: dict[str, list[Cell]] = {name: [] for name in runs}
        for name in order:
            seen[name].append(runs[name](repeats[name]))
        yield {
            name: Cell(statistics.mean(c.wall for c in pair), statistics.mean(c.cpu for c in pair))
            for name, pair in seen.items()
        }


def here(run: Callable[[int], Any]) -> Callable[[int], Cell]:
    """Returns run(n), which ends when its n repetitions are finished, as a timed cell."""

    def cell(n: int) -> Cell:
        wall = time.perf_counter()
        cpu = time.process_time()
        run(n)
        return Cell((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n)

    return cell


@contextlib.contextmanager
def closing(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Ends all workers on leaving, whatever happened."""
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def cores() -> int:
    """Returns how many cores this process may use; every variant gets as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on: CPU, cores, load average, Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": cores(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }


def best_rate(work: Callable[[], None], flops: int, seconds: float = 0.1) -> float:
    """Returns FLOP/s of `work`, of its best repetition within about `seconds`.

    Other load can only slow one down.
    """
    work()
    best = float("inf")
    stop = time.perf_counter() + seconds
    while (start := time.perf_counter()) < stop:
        work()
        best = min(best, time.perf_counter() - start)
    return flops / best


def _memory(field: str) -> int:
    """Returns VmRSS or VmHWM (peak) of this process in bytes, from Linux's /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise Unavailable("peak memory is read from /proc: run this benchmark on Linux")
    row = next(x for x in status.read_text().splitlines() if x.startswith(field))
    return int(row.split()[1]) * 1024


def _forget_peak() -> None:
    """Makes the peak from here on that of the steps; compiling is not counted."""
    Path("/proc/self/clear_refs").write_text("5")
