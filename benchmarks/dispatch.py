"""Do routed FLOPs save time? Cerebra's routed attention, forward and backward, against the best dense variant.

python benchmarks/dispatch.py [--lengths=2048,4096,8192] [--kept=L/8,L/16,32] [--masks=causal,encoder] [--kv=all,routed]
                              [--parts=attention,block] [--rounds=7] [--batch=1] [--width=256] [--heads=4]
                              [--r=0.25] [--s=0.5] [--quick] [--out=FILE.json]

How it is measured, and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import dispatch_layers as layers  # noqa: E402  (the checkout's, installed or not)

from cerebra_jax.cost import timing  # noqa: E402

SLOWER = 1.5  # a dense variant that one round finds this much slower than the fastest is timed no further
MET = 1.1  # measured <= MET x analytic


def measure(group: layers.Group, rounds: int, full: bool) -> dict[str, Any]:
    """One mask, part and length: every program compiled, checked, and timed in the same interleaved rounds."""
    programs = {}
    for name, program in layers.programs(group, full):
        if program.counted.flops != program.executed:
            found = f"{program.executed} FLOPs by the price list, {program.counted.flops} in the program"
            raise SystemExit(f"{name}: {found}")
        programs[name] = program
    runs = {name: timing.here(program.run) for name, program in programs.items()}
    first = next(timing.rounds_of(runs, 1))
    dense = [name for name, program in programs.items() if program.kept is None]
    bound = SLOWER * min(first[name].wall for name in dense)
    kept = {
        name: run for name, run in runs.items() if name not in dense or first[name].wall <= bound
    }
    before, start = timing.machine()["load"], time.perf_counter()
    cells: dict[str, list[timing.Cell]] = {name: [] for name in kept}
    rates: dict[str, list[float]] = {"matmul": [], "copy": []}
    for found in timing.rounds_of(kept, rounds):
        for name, cell in found.items():
            cells[name].append(cell)
        for name, rate in layers.machine_rates().items():
            rates[name].append(rate)
    best = min(
        (name for name in dense if name in cells),
        key=lambda n: statistics.median(c.wall for c in cells[n]),
    )
    peak = {name: max(values) for name, values in rates.items()}
    rows = [
        row(
            name,
            program,
            cells.get(name, [first[name]]),
            programs[best],
            cells[best],
            peak,
            name in cells,
        )
        for name, program in programs.items()
    ]
    return group._asdict() | {
        "best": best, "rows": rows, "rates": peak, "seconds": time.perf_counter() - start,
        "load": [before, timing.machine()["load"]],
    }  # fmt: skip


def row(name, program, cells, dense, dense_cells, rates, timed) -> dict[str, Any]:
    """The columns of one program; ratios are to the best dense one."""
    executed, model = program.executed / dense.executed, program.executed / dense.model
    ratio = timing.compare(cells, dense_cells)._asdict() if timed else None
    return {
        "name": name, "kept": program.kept, "kv": program.kv, "share": program.share, "overflow": program.overflow,
        "executed_flops": program.executed, "counted_flops": program.counted.flops,
        "train_flops": program.train.flops, "train_bytes": program.train.bytes,
        "analytic": executed, "analytic_to_model": model, "analytic_train": program.train.flops / dense.train.flops,
        "ms": 1e3 * statistics.median(c.wall for c in cells), "fastest_ms": 1e3 * min(c.wall for c in cells),
        "ratio": ratio, "realised": ratio and ratio["median"] / executed,
        "temp_bytes": program.temp, "temp_ratio": program.temp / dense.temp,
        "flop_floor_ms": 1e3 * program.train.flops / rates["matmul"],
        "byte_floor_ms": 1e3 * program.train.bytes / rates["copy"],
    }  # fmt: skip


def show(found: dict[str, Any]) -> Iterator[str]:
    """A group as text."""
    best = next(r for r in found["rows"] if r["name"] == found["best"])
    others = ", ".join(f"{r['name']} {r['ms'] / best['ms']:.2f}x" for r in found["rows"]
                       if r["kept"] is None and r is not best)  # fmt: skip
    yield (f"{found['mask']}, L {found['L']}, {found['part']}; best dense: {best['name']} {best['ms']:.0f} ms, "
           f"{best['temp_bytes'] / 2**20:.0f} MiB ({others}); load {found['load'][0][0]:.1f} to "
           f"{found['load'][1][0]:.1f}")  # fmt: skip
    yield (f"  {'k':>5} {'keys':7} {'analytic':>8} {'to model':>8} {'measured [q1, q3]':>22} {'minima':>7} {'cpu':>6} "
           f"{'realised':>8} {'temp':>6} {'FLOP, byte floor':>17}")  # fmt: skip
    for r in found["rows"]:
        if r["kept"] is None:
            continue
        t = r["ratio"]
        verdict = (
            ""
            if r["name"].startswith("masked")
            else "  met"
            if r["realised"] <= MET
            else "  MISSED"
        )
        yield (
            f"  {r['kept']:5} {r['name'] if r['name'].startswith('masked') else r['kv']:7} {r['analytic']:8.3f} "
            f"{r['analytic_to_model']:8.3f} {t['median']:7.3f} [{t['q1']:.3f}, {t['q3']:.3f}] {t['minima']:7.3f} "
            f"{t['cpu']:6.3f} {r['realised']:8.2f} {r['temp_ratio']:6.2f} "
            f"{r['flop_floor_ms'] / r['ms']:7.0%} {r['byte_floor_ms'] / r['ms']:7.0%}"
            f"{verdict}{' noisy' if t['noisy'] else ''}"
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = lambda s: s.split(",")  # noqa: E731
    parser.add_argument("--lengths", type=words, default="2048,4096,8192")
    parser.add_argument(
        "--kept", type=words, default="L/8,L/16,32", help="kept tokens: numbers, or L/number"
    )
    parser.add_argument("--masks", type=words, default="causal,encoder")
    parser.add_argument("--kv", type=words, default="all,routed", help="which tokens are keys")
    parser.add_argument(
        "--parts", type=words, default="attention,block", help="one layer, or one with its FFN"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1, help="sequences of a batch")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--r", type=float, default=0.25, help="compressed tokens per token")
    parser.add_argument("--s", type=float, default=0.5, help="width of the light path per width")
    parser.add_argument(
        "--light-heads",
        type=int,
        default=0,
        help="heads of the light path; 0: as wide as the heavy ones",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one dense variant instead of all: no verdict on the best",
    )
    parser.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = options()
    found, before = [], timing.machine()
    print(f"D {args.width}, H {args.heads}, r {args.r:g}, s {args.s:g}, float32, batches of {args.batch}; "
          f"{args.rounds} rounds on {before['cores']} x {before['cpu']}")  # fmt: skip
    for mask, part, length in itertools.product(args.masks, args.parts, args.lengths):
        group = layers.group(mask, part, int(length), args)
        found.append(measure(group, args.rounds, not args.quick))
        print("\n".join(show(found[-1])), flush=True)
    rows = [
        r
        for g in found
        for r in g["rows"]
        if r["kept"] is not None and not r["name"].startswith("masked")
    ]
    print(
        f"{sum(r['realised'] <= MET for r in rows)} of {len(rows)} cells measured <= {MET} x analytic"
    )
    if args.out:
        text = {"args": {k: str(v) for k, v in vars(args).items()}, "machine": before, "versions": layers.versions(),
                "groups": found}  # fmt: skip
        args.out.write_text(json.dumps(text, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
