"""Measures time and peak memory of one training step: dense, chiar, and a PyTorch Transformer.

The PyTorch Transformer is a plain one of the same size as dense.

python benchmarks/step.py [--size=cpu|17m] [--models=dense,chiar,torch] [--rounds=9] [--batch=16]
                          [--dtype=float32] [--out=FILE.json]

benchmarks/README.md says how it is measured, and what the columns mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common

from cerebra_jax.cost import timing

OURS = {"dense": "transformer", "chiar": "chiar"}
TORCH = {"torch": False, "torch.compile": True}  # both SDPA
BOUNDS = (1e-4, 1e-3, 1e-3)  # between our losses and PyTorch's: at first, and after each update
MIB = 2**20


class Measured(NamedTuple):
    """What the worker of a variant found."""

    info: dict[str, Any]
    cells: list[timing.Cell]
    rates: list[float]  # FLOP/s of a matmul
    peak_bytes: int


def configuration(size: str, model: str, batch: int, dtype: str):
    """Returns the configuration of configs/wikitext.py for that size, without dropout."""
    from cerebra_jax import config

    path = common.ROOT / "configs" / "wikitext.py"
    spec = importlib.util.spec_from_file_location("wikitext", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = "chiar" if model == "chiar" else "dense"
    cfg = config.parse(module.get_config(f"{name}-{size}"))
    net = dataclasses.replace(cfg.net, dropout=0.0, dtype=dtype)
    return dataclasses.replace(cfg, net=net, train=dataclasses.replace(cfg.train, batch_size=batch))


def work(name: str, folder: Path, args: argparse.Namespace) -> None:
    """Measures a variant in this process, which is its own."""
    cfg = configuration(args.size, name, args.batch, args.dtype)

    def imports() -> None:
        __import__("step_ours" if name in OURS else "step_torch")

    def build() -> timing.Variant:
        if name in OURS:
            import step_ours

            return step_ours.build(cfg, folder)
        import step_torch

        return step_torch.build(cfg, folder, TORCH[name])

    timing.serve(build, imports)


def check(infos: Mapping[str, dict[str, Any]]) -> None:
    """Raises SystemExit unless the same weights, batches and optimizer give the same losses."""
    for name, info in infos.items():
        if not all(map(math.isfinite, info["losses"])):
            raise SystemExit(f"{name}: losses {info['losses']}")
        if name in OURS or "dense" not in infos:
            continue
        ours = infos["dense"]["losses"]
        for mine, theirs, bound in zip(ours, info["losses"], BOUNDS, strict=True):
            if abs(mine - theirs) > bound:
                raise SystemExit(f"not the same model: losses {ours} and {info['losses']}")


def rows(measured: Mapping[str, Measured], tokens: int) -> dict[str, dict[str, Any]]:
    """Returns a row a variant: figures, which are medians over the rounds, and ratios of time.

    Ratios are to the faster PyTorch variant; without one, to dense.
    """
    # who is compared with whom
    seconds = {
        name: statistics.median(cell.wall for cell in found.cells)
        for name, found in measured.items()
    }
    base = min((name for name in seconds if name in TORCH), key=seconds.get, default="dense")

    # a row a variant
    table = {}
    for name, found in measured.items():
        info = found.info
        flops = info.get("flops") or measured["dense"].info["flops"]  # PyTorch's: as our dense
        rate = statistics.median(found.rates)
        ratio = None
        if base in measured:
            ratio = timing.compare(found.cells, measured[base].cells)._asdict()
        table[name] = {
            "step_ms": 1e3 * seconds[name],
            "fastest_ms": 1e3 * min(cell.wall for cell in found.cells),
            "tokens_per_s": tokens / seconds[name],
            "gflops_per_s": flops / seconds[name] / 1e9,
            "matmul_gflops_per_s": rate / 1e9,
            "of_matmul": flops / seconds[name] / rate,
            "peak_rss_bytes": found.peak_bytes,
            "temp_bytes": info.get("temp_bytes"),
            "program_bytes": info.get("program_bytes"),
            "baseline": base,
            "time_ratio": ratio,
        }
    return table


def show(table: Mapping[str, dict[str, Any]], missing: Mapping[str, str]) -> None:
    """Prints the table, and why variants are missing."""
    base = next(iter(table.values()))["baseline"]
    print(
        f"{'variant':14} {'step ms':>8} {'min':>7} {'tok/s':>8} {'GFLOP/s':>8} {'matmul':>7} "
        f"{'of it':>6} {'temp MiB':>9} {'RSS MiB':>8}  tokens/s against {base}"
    )
    for name, row in table.items():
        temp = "-" if row["temp_bytes"] is None else f"{row['temp_bytes'] / MIB:.0f}"
        print(
            f"{name:14} {row['step_ms']:8.1f} {row['fastest_ms']:7.1f} "
            f"{row['tokens_per_s']:8.0f} {row['gflops_per_s']:8.1f} "
            f"{row['matmul_gflops_per_s']:7.0f} {row['of_matmul']:6.0%} {temp:>9} "
            f"{row['peak_rss_bytes'] / MIB:8.0f}  {_speed_text(row['time_ratio'])}"
        )
    for name, why in missing.items():
        print(f"{name:14} not run: {why}")


def _speed_text(ratio: dict[str, Any] | None) -> str:
    """Writes a ratio of times as one of speeds."""
    if ratio is None:
        return "-"
    noisy = "  noisy" if ratio["noisy"] else ""
    return (
        f"{1 / ratio['median']:.2f}x [{1 / ratio['q3']:.2f}, {1 / ratio['q1']:.2f}], "
        f"minima {1 / ratio['minima']:.2f}x, cpu time {1 / ratio['cpu']:.2f}x{noisy}"
    )


def options() -> tuple[argparse.Namespace, list[str]]:
    """Returns the options, and the names of the variants; ends the program on a mistake."""
    parser = common.parser(__doc__, rounds=9)
    add = parser.add_argument
    add("--size", default="cpu", choices=("cpu", "17m"))
    add("--models", default="dense,chiar,torch", help="of dense, chiar, torch (both variants)")
    add("--batch", type=int, default=16, help="windows a step")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of our matmuls")
    add("--worker", help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    models = args.models.split(",")
    unknown = sorted(set(models) - {*OURS, "torch"})
    if unknown:
        parser.error(f"no model {', '.join(unknown)}; choose among {', '.join(OURS)}, torch")
    if "torch" in models and "dense" not in models:
        parser.error("torch starts from the weights of dense: add dense to --models")
    if args.dtype != "float32" and "torch" in models:
        parser.error("the PyTorch model is float32: use --models=dense,chiar with another dtype")
    names = []
    for model in models:
        names += list(TORCH) if model == "torch" else [model]
    return args, names


def measure(names: Sequence[str], rounds: int) -> tuple[dict[str, Measured], dict[str, str]]:
    """Measures every variant in a process of its own; returns what was found and missed."""
    workers: dict[str, timing.Worker] = {}
    missing = {}
    with tempfile.TemporaryDirectory() as folder, timing.closing(workers):
        for name in names:  # dense comes before torch, which needs its weights
            command = [sys.executable, __file__, *sys.argv[1:]]
            try:
                workers[name] = timing.Worker([*command, f"--worker={name}", f"--folder={folder}"])
            except timing.Unavailable as error:
                missing[name] = str(error)
        check({name: worker.info for name, worker in workers.items()})
        cells, rates = timing.measure(workers, rounds)
        measured = {
            name: Measured(worker.info, cells[name], rates[name], worker.peak_bytes())
            for name, worker in workers.items()
        }
    return measured, missing


def main() -> None:
    args, names = options()
    if args.worker:
        work(args.worker, args.folder, args)
        return
    machine = timing.machine()
    measured, missing = measure(names, args.rounds)
    cfg = configuration(args.size, "dense", args.batch, args.dtype)
    table = rows(measured, cfg.train.batch_size * cfg.task.seq_len)
    print(
        f"{args.size}: depth {cfg.net.depth}, D {cfg.net.width}, H {cfg.net.heads}, "
        f"F {cfg.net.ffn_width}, L {cfg.task.seq_len}, V {cfg.task.vocab_size}, "
        f"batch {args.batch}, {args.dtype}; {args.rounds} rounds on {machine['cores']} x "
        f"{machine['cpu']}, load {machine['load'][0]:.1f}"
    )
    show(table, missing)
    common.write(
        args,
        machine,
        load_after=timing.machine()["load"],
        table=table,
        missing=missing,
        infos={name: found.info for name, found in measured.items()},
        cells={name: found.cells for name, found in measured.items()},
        rates={name: found.rates for name, found in measured.items()},
    )


if __name__ == "__main__":
    main()
