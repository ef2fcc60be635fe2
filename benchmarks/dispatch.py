"""Asks whether routed FLOPs save time.

Cerebra's routed attention, forward and backward, is timed against the best dense variant.

python benchmarks/dispatch.py [--lengths=2048,4096,8192] [--kept=L/8,L/16,32]
                              [--masks=causal,encoder] [--kv=all,routed] [--parts=attention,block]
                              [--rounds=7] [--batch=1] [--width=256] [--heads=4] [--r=0.25]
                              [--s=0.5] [--light-heads=0] [--quick] [--out=FILE.json]

benchmarks/README.md says how it is measured, and what the columns mean.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import common
import dispatch_layers as layers
import jax
import machine_rates

from cerebra_jax.cost import timing

SLOWER = 1.5  # a dense variant that is this much slower than the fastest in one round is dropped
MET = 1.1  # measured <= MET x analytic


class Baseline(NamedTuple):
    """The fastest dense program of a group, and what it took."""

    name: str
    program: layers.Program
    cells: list[timing.Cell]


def checked_programs(group: layers.Group, every_variant: bool) -> dict[str, layers.Program]:
    """Compiles a group; raises SystemExit where a program has not the FLOPs of the price list."""
    programs = {}
    for name, program in layers.programs(group, every_variant):
        if program.counted.flops != program.executed:
            raise SystemExit(
                f"{name}: {program.executed} FLOPs by the price list, "
                f"{program.counted.flops} in the program"
            )
        programs[name] = program
    return programs


def measure(group: layers.Group, rounds: int, every_variant: bool) -> dict[str, Any]:
    """Measures one mask, part and length, every program in the same interleaved rounds."""
    programs = checked_programs(group, every_variant)
    runs = {name: timing.here(program.run) for name, program in programs.items()}
    dense = [name for name, program in programs.items() if program.kept is None]

    # one round drops the dense variants that are far behind
    first = next(timing.rounds_of(runs, 1))
    bound = SLOWER * min(first[name].wall for name in dense)
    for name in dense:
        if first[name].wall > bound:
            del runs[name]

    # the other rounds, with the machine's rates in between
    load = timing.machine()["load"]
    start = time.perf_counter()
    rates = machine_rates.BestRates()
    cells = common.collect(runs, rounds, rates.measure)
    best = min(
        (name for name in dense if name in cells),
        key=lambda name: statistics.median(cell.wall for cell in cells[name]),
    )
    baseline = Baseline(best, programs[best], cells[best])
    rows = []
    for name, program in programs.items():
        row = columns(program, cells.get(name, [first[name]]), baseline, rates.best)
        if name in cells:
            row |= ratios(row, cells[name], baseline)
        rows.append({"name": name, **row})
    return {
        **group._asdict(),
        "best": best,
        "rows": rows,
        "rates": rates.best._asdict(),
        "seconds": time.perf_counter() - start,
        "load": [load, timing.machine()["load"]],
    }


def columns(
    program: layers.Program,
    cells: list[timing.Cell],
    baseline: Baseline,
    rates: machine_rates.Rates,
) -> dict[str, Any]:
    """Returns the columns of one program; ratios of FLOPs and memory are to the baseline."""
    dense = baseline.program
    return {
        "kept": program.kept,
        "kv": program.kv,
        "share": program.share,
        "overflow": program.overflow,
        "executed_flops": program.executed,
        "counted_flops": program.counted.flops,
        "train_flops": program.train.flops,
        "train_bytes": program.train.bytes,
        "analytic": program.executed / dense.executed,
        "analytic_to_model": program.executed / dense.model,
        "analytic_train": program.train.flops / dense.train.flops,
        "ms": 1e3 * statistics.median(cell.wall for cell in cells),
        "fastest_ms": 1e3 * min(cell.wall for cell in cells),
        "ratio": None,
        "realised": None,
        "temp_bytes": program.temp,
        "temp_ratio": program.temp / dense.temp,
        "flop_floor_ms": 1e3 * program.train.flops / rates.matmul,
        "byte_floor_ms": 1e3 * program.train.bytes / rates.copy,
    }


def ratios(row: dict[str, Any], cells: list[timing.Cell], baseline: Baseline) -> dict[str, Any]:
    """Returns the ratios of time to the baseline, and of them to the analytic one."""
    ratio = timing.compare(cells, baseline.cells)
    return {"ratio": ratio._asdict(), "realised": ratio.median / row["analytic"]}


def is_judged(row: dict[str, Any]) -> bool:
    """Tells whether a program should save time: it is routed, and it is not the masked one."""
    return row["kept"] is not None and row["name"] != "masked"


def show(found: dict[str, Any]) -> Iterator[str]:
    """Writes a group's table."""
    best = next(row for row in found["rows"] if row["name"] == found["best"])
    others = ", ".join(
        f"{row['name']} {row['ms'] / best['ms']:.2f}x"
        for row in found["rows"]
        if row["kept"] is None and row is not best
    )
    before, after = found["load"]
    yield (
        f"{found['mask']}, L {found['L']}, {found['part']}; best dense: {best['name']} "
        f"{best['ms']:.0f} ms, {best['temp_bytes'] / 2**20:.0f} MiB ({others}); "
        f"load {before[0]:.1f} to {after[0]:.1f}"
    )
    yield (
        f"  {'k':>5} {'keys':7} {'analytic':>8} {'to model':>8} {'measured [q1, q3]':>22} "
        f"{'minima':>7} {'cpu':>6} {'realised':>8} {'temp':>6} {'FLOP, byte floor':>17}"
    )
    for row in found["rows"]:
        if row["kept"] is not None:
            yield _row_text(row)


def _row_text(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    keys = row["kv"] if is_judged(row) else row["name"]
    verdict = ""
    if is_judged(row):
        verdict = "  met" if row["realised"] <= MET else "  MISSED"
    noisy = " noisy" if ratio["noisy"] else ""
    return (
        f"  {row['kept']:5} {keys:7} {row['analytic']:8.3f} {row['analytic_to_model']:8.3f} "
        f"{ratio['median']:7.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}] {ratio['minima']:7.3f} "
        f"{ratio['cpu']:6.3f} {row['realised']:8.2f} {row['temp_ratio']:6.2f} "
        f"{row['flop_floor_ms'] / row['ms']:7.0%} {row['byte_floor_ms'] / row['ms']:7.0%}"
        f"{verdict}{noisy}"
    )


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, rounds=7, batch=1, width=256, heads=4)
    add = parser.add_argument
    add("--lengths", type=common.integers, default="2048,4096,8192")
    add(
        "--kept", type=common.words, default="L/8,L/16,32", help="kept tokens: numbers, or L/number"
    )
    add("--masks", type=common.words, default="causal,encoder")
    add("--kv", type=common.words, default="all,routed", help="which tokens are keys")
    add("--parts", type=common.words, default="attention,block", help="a layer, or with its FFN")
    add("--r", type=float, default=0.25, help="compressed tokens per token")
    add("--s", type=float, default=0.5, help="width of the light path per width")
    add("--light-heads", type=int, default=0, help="of the light path; 0: heads of equal width")
    add("--quick", action="store_true", help="one dense variant only, which may not be the best")
    return parser.parse_args()


def main() -> None:
    args = options()
    machine = timing.machine()
    print(
        f"D {args.width}, H {args.heads}, r {args.r:g}, s {args.s:g}, float32, "
        f"batches of {args.batch}; {args.rounds} rounds on {machine['cores']} x {machine['cpu']}"
    )
    found = []
    for mask, part, length in itertools.product(args.masks, args.parts, args.lengths):
        group = layers.group(mask, part, length, args)
        found.append(measure(group, args.rounds, not args.quick))
        print("\n".join(show(found[-1])), flush=True)
    judged = [row for group in found for row in group["rows"] if is_judged(row)]
    met = sum(row["realised"] <= MET for row in judged)
    print(f"{met} of {len(judged)} cells measured <= {MET} x analytic")
    common.write(args, machine, versions={"jax": jax.__version__}, groups=found)


if __name__ == "__main__":
    main()
