"""Measures how long a checkpoint holds up training, beside a plain copy of the same arrays.

python benchmarks/save.py [--megabytes=1000] [--leaves=40] [--rounds=7] [--out=FILE.json]

A save returns when the state is copied and known to be finite; hashing and writing go on beside
training. The floor is the copy alone. benchmarks/README.md says what came out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np

from cerebra_jax.cost import timing
from cerebra_jax.training.checkpoint import Checkpoints


def state_of(megabytes: int, leaves: int) -> dict[str, jax.Array]:
    """Returns float32 arrays of so many megabytes in all, as a train state has them."""
    rng = np.random.default_rng(0)
    each = megabytes * 10**6 // (4 * leaves)
    drawn = (rng.standard_normal(each, dtype=np.float32) for _ in range(leaves))
    return {f"leaf_{i:03}": jax.device_put(x) for i, x in enumerate(drawn)}


def seconds(run: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(state: dict[str, jax.Array], rounds: int, folder: Path) -> dict[str, list[float]]:
    """Returns the seconds of each round: a copy, what a save holds up, and until it is on disk."""
    checkpoints = Checkpoints(folder, print)
    found: dict[str, list[float]] = {"copy": [], "save holds up": [], "on disk": []}
    for step in range(rounds + 1):  # the first one is not counted
        took = [seconds(lambda: [np.array(x) for x in state.values()])]
        start = time.perf_counter()
        checkpoints.save(step, state, {}, score=None)
        took.append(time.perf_counter() - start)
        checkpoints.wait()
        took.append(time.perf_counter() - start)
        for name, value in zip(found, took, strict=True):
            found[name] += [value] if step else []
    checkpoints.close()
    return found


def main() -> None:
    """Prints the median and the range of each, in seconds per GB."""
    args = common.parser(__doc__, megabytes=1000, leaves=40, rounds=7).parse_args()
    state = state_of(args.megabytes, args.leaves)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(state, args.rounds, Path(folder))
    for name, taken in found.items():
        per_gb = [1000 * t / args.megabytes for t in taken]
        middle, low, high = statistics.median(per_gb), min(per_gb), max(per_gb)
        print(f"{name:14} {middle:6.2f} s/GB  [{low:.2f}, {high:.2f}]")
    common.write(args, timing.machine(), seconds=found)


if __name__ == "__main__":
    main()
