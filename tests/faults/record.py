"""What the drivers of faults did and found: gathered while they run, and written as a document.

CEREBRA_RELIABILITY=docs/reliability.md python -m pytest -n 0 -m faults tests/faults
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "CEREBRA_RELIABILITY"
COMMAND = f"{VARIABLE}=docs/reliability.md python -m pytest -n 0 -m faults tests/faults"
VERSIONS = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")


class Row(NamedTuple):
    """What one driver did, how often, what came of it, what went wrong, and when."""

    name: str
    times: int
    ended: dict[str, int]
    wrong: dict[str, int]
    seconds: float


class Counts:
    """Counts what a driver does. `wrong` holds what may not happen, 0 where it did not."""

    def __init__(self, *wrong: str):
        """Begins with 0 of each of `wrong`."""
        self.times = 0
        self.ended: dict[str, int] = {}
        self.wrong = dict.fromkeys(wrong, 0)
        self.cases: list[str] = []  # of what went wrong, for the message of the test
        self.began = time.perf_counter()

    def end(self, how: str) -> None:
        """Counts one end that may be."""
        self.ended[how] = self.ended.get(how, 0) + 1

    def check(self, good: bool, wrong: str, case: str) -> None:
        """Counts one of `wrong` unless `good`."""
        if not good:
            self.wrong[wrong] += 1
            self.cases.append(f"{wrong}: {case}")


rows: list[Row] = []


def record(name: str, counts: Counts) -> None:
    """Keeps what a driver did, writes the document where it is asked for, and fails where
    something went wrong.
    """
    seconds = time.perf_counter() - counts.began
    rows.append(Row(name, counts.times, dict(counts.ended), dict(counts.wrong), seconds))
    if os.environ.get(VARIABLE):
        Path(os.environ[VARIABLE]).write_text(document(rows), encoding="utf-8")
    assert not counts.cases, "\n".join(counts.cases)


def document(found: list[Row]) -> str:
    """Returns the document of these rows, with the date, the machine and the versions."""
    table = [
        f"| {row.name} | {row.times:,} | {_listed(row.ended)} | {_listed(row.wrong)} "
        f"| {row.seconds:,.0f} |"
        for row in found
    ]
    return "\n".join(
        [
            "# Reliability",
            "",
            "A run of the fault drivers wrote this page. Nobody edits it by hand. Each driver "
            "draws its faults from a fixed seed.",
            "",
            f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            f"- commit: {_commit()}",
            f"- machine: {_processor()}, {os.cpu_count()} cores, {_memory_gb():.0f} GB, "
            f"{platform.system()} {platform.release()}; other work may have run on it, so the "
            "seconds say how long this took here and no more",
            f"- versions: Python {platform.python_version()}, {_versions()}",
            "",
            "| what was done | times | what came of it | what went wrong | seconds |",
            "| --- | ---: | --- | --- | ---: |",
            *table,
            "",
            "To do it again, in an environment that holds the extras `dev`:",
            "",
            "```bash",
            COMMAND,
            "```",
            "",
        ]
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items()) or "-"


def _commit() -> str:
    """Returns the commit of the working tree, and whether files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "cerebra_jax", "tests", "configs")
    return (git("rev-parse", "HEAD") or "unknown") + (" and changes" if changed else "")


def _processor() -> str:
    """Returns the processor as the system names it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
