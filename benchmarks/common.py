"""What the benchmarks share: the checkout on sys.path, command lines, rounds, and JSON files.

A benchmark imports this before the package, so that it measures the checkout, installed or not.
Importing it loads no JAX.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cerebra_jax.cost import timing  # noqa: E402  (the checkout's)


def words(text: str) -> list[str]:
    """Reads a list of words: "a,b"."""
    return text.split(",")


def integers(text: str) -> list[int]:
    """Reads a list of integers: "1,8"."""
    return [int(word) for word in text.split(",")]


def fractions(text: str) -> list[float]:
    """Reads a list of numbers: "1,0.5"."""
    return [float(word) for word in text.split(",")]


def parser(description: str | None, **defaults: int) -> argparse.ArgumentParser:
    """Returns a parser with --out, and with an option for each integer default."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in defaults.items():
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    return made


def write(args: argparse.Namespace, machine: Mapping[str, Any], **found: Any) -> None:
    """Writes all that was found, with the options and the machine, where --out says so.

    Paths are left out: where files lie says nothing of what was measured.
    """
    if args.out:
        given = vars(args).items()
        options = {name: str(value) for name, value in given if not isinstance(value, Path)}
        text = json.dumps({"args": options, "machine": machine, **found}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")


def collect(
    runs: Mapping[str, Callable[[int], timing.Cell]],
    rounds: int,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, list[timing.Cell]]:
    """Times every program in interleaved rounds; returns a cell a round for each."""
    cells: dict[str, list[timing.Cell]] = {name: [] for name in runs}
    for found in timing.rounds_of(dict(runs), rounds):
        for name, cell in found.items():
            cells[name].append(cell)
        after_round()
    return cells
