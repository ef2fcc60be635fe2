"""What the drivers of faults did and found: gathered while they run, and written as a document.

CEREBRA_RELIABILITY=docs/reliability.md python -m pytest -n 0 -m faults tests/faults

Drivers may run one by one, or beside each other: each writes its own row, and leaves those of the
same commit as they are.
"""

from __future__ import annotations

import datetime
import fcntl
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
RULE = "| --- | ---: | --- | --- | ---: |"
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


def record(name: str, counts: Counts) -> None:
    """Writes what a driver did into the document where one is asked for, and fails where something
    went wrong.
    """
    seconds = time.perf_counter() - counts.began
    row = Row(name, counts.times, counts.ended, counts.wrong, seconds)
    if os.environ.get(VARIABLE):
        write(Path(os.environ[VARIABLE]), row, commit())
    assert not counts.cases, "\n".join(counts.cases)


def write(to: Path, row: Row, of: str) -> None:
    """Writes a document with this row, and with the other rows that it has of the same commit."""
    with open(to, "a+", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0)
        before = f.read().splitlines()
        same = f"- commit: {of}" in before
        kept = (
            [line for line in before[before.index(RULE) + 1 :] if line[:1] == "|"] if same else []
        )
        others = [line for line in kept if not line.startswith(f"| {row.name} |")]
        f.truncate(0)
        f.write(document(sorted([*others, line_of(row)]), of))


def line_of(row: Row) -> str:
    """Returns the line of the table that a row is."""
    ended, wrong = _listed(row.ended), _listed(row.wrong)
    return f"| {row.name} | {row.times:,} | {ended} | {wrong} | {row.seconds:,.0f} |"


def document(table: list[str], of: str) -> str:
    """Returns the document of these lines, with the commit, the date, the machine and versions."""
    return "\n".join(
        [
            "# Reliability",
            "",
            "A run of the fault drivers wrote this page. Nobody edits it by hand. Each driver "
            "draws its faults from a fixed seed. `times` counts faults, of which one run takes "
            "several: 24 kills may be of 6 runs, which all finished.",
            "",
            f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            f"- commit: {of}",
            f"- machine: {_processor()}, {os.cpu_count()} cores, {_memory_gb():.0f} GB, "
            f"{platform.system()} {platform.release()}; other programs may have run on it, so the "
            "seconds say only how long this took here",
            f"- versions: Python {platform.python_version()}, {_versions()}",
            "",
            "| what was done | times | what came of it | what went wrong | seconds |",
            RULE,
            *table,
            "",
            "To do it again, in an environment with the extra `dev`:",
            "",
            "```bash",
            COMMAND,
            "```",
            "",
        ]
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items()) or "-"


def commit() -> str:
    """Returns the last commit of what the drivers run, and whether files differ from it."""
    what = ("--", "cerebra_jax", "tests", "configs")

    def git(*words: str) -> str:
        command = ["git", *words, *what]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain")
    return (git("log", "-1", "--format=%H") or "unknown") + (" and changes" if changed else "")


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
