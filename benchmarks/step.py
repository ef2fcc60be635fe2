"""Step time and peak memory of one training step: dense, chiar, and a plain PyTorch Transformer of the same size.

python benchmarks/step.py [--size=cpu|17m] [--models=dense,chiar,torch] [--rounds=9] [--batch=N] [--dtype=float32]
                          [--out=FILE.json]

How it is measured, and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from cerebra_jax.cost import timing  # noqa: E402  (the checkout's, installed or not)

OURS = {"dense": "transformer", "chiar": "chiar"}
TORCH = {"torch": False, "torch.compile": True}  # both SDPA


def configuration(size: str, model: str, batch: int, dtype: str):
    """The RunCfg of configs/wikitext.py for that size, without dropout."""
    from cerebra_jax import config

    spec = importlib.util.spec_from_file_location("wikitext", ROOT / "configs" / "wikitext.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cfg = config.parse(module.get_config(f"{'chiar' if model == 'chiar' else 'dense'}-{size}"))
    net = dataclasses.replace(cfg.net, dropout=0.0, dtype=dtype)
    return dataclasses.replace(cfg, net=net, train=dataclasses.replace(cfg.train, batch_size=batch))


def worker(name: str, folder: Path, args: argparse.Namespace) -> None:
    """This process measures the variant `name`."""
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


def check(infos: dict[str, dict[str, Any]]) -> None:
    """The same weights, batches and optimizer must give the same losses: first 1e-4, after an update 1e-3."""
    for name, info in infos.items():
        if not all(map(math.isfinite, info["losses"])):
            raise SystemExit(f"{name}: losses {info['losses']}")
        if name in TORCH and "dense" in infos:
            for mine, theirs, bound in zip(
                infos["dense"]["losses"], info["losses"], (1e-4, 1e-3, 1e-3), strict=True
            ):
                if abs(mine - theirs) > bound:
                    raise SystemExit(
                        f"not the same model: losses {infos['dense']['losses']} and {info['losses']}"
                    )


def rows(infos, cells, rates, peaks, tokens: int) -> dict[str, dict[str, Any]]:
    """Absolute figures (medians over the rounds), and ratios to the fastest PyTorch variant, else to dense."""
    speed = {name: statistics.median(c.wall for c in cs) for name, cs in cells.items()}
    base = min((n for n in speed if n in TORCH), key=speed.get, default="dense")
    table = {}
    for name, cs in cells.items():
        flops = (
            infos[name].get("flops") or infos["dense"]["flops"]
        )  # PyTorch's: as our dense model's
        rate = statistics.median(rates[name])
        table[name] = {
            "step_ms": 1e3 * speed[name],
            "fastest_ms": 1e3 * min(c.wall for c in cs),
            "tokens_per_s": tokens / speed[name],
            "gflops_per_s": flops / speed[name] / 1e9,
            "matmul_gflops_per_s": rate / 1e9,
            "of_matmul": flops / speed[name] / rate,
            "peak_rss_bytes": peaks[name],
            "temp_bytes": infos[name].get("temp_bytes"),
            "program_bytes": infos[name].get("program_bytes"),
            "baseline": base,
            "time_ratio": timing.compare(cs, cells[base])._asdict() if base in cells else None,
        }
    return table


def show(table: dict[str, dict[str, Any]], missing: dict[str, str]) -> None:
    print(f"{'variant':14} {'step ms':>8} {'min':>7} {'tok/s':>8} {'GFLOP/s':>8} {'matmul':>7} {'of it':>6} "
          f"{'temp MiB':>9} {'RSS MiB':>8}  tokens/s against {next(iter(table.values()))['baseline']}")  # fmt: skip
    mib = 2**20
    for name, r in table.items():
        temp = f"{r['temp_bytes'] / mib:9.0f}" if r["temp_bytes"] is not None else f"{'-':>9}"
        t = r["time_ratio"]
        ratio = (f"{1 / t['median']:.2f}x [{1 / t['q3']:.2f}, {1 / t['q1']:.2f}], minima {1 / t['minima']:.2f}x, "
                 f"cpu time {1 / t['cpu']:.2f}x{'  noisy' if t['noisy'] else ''}") if t else "-"  # fmt: skip
        print(
            f"{name:14} {r['step_ms']:8.1f} {r['fastest_ms']:7.1f} {r['tokens_per_s']:8.0f} {r['gflops_per_s']:8.1f} "
            f"{r['matmul_gflops_per_s']:7.0f} {r['of_matmul']:6.0%} {temp} {r['peak_rss_bytes'] / mib:8.0f}  {ratio}"
        )
    for name, why in missing.items():
        print(f"{name:14} not run: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="cpu", choices=("cpu", "17m"))
    parser.add_argument(
        "--models", default="dense,chiar,torch", help="any of dense, chiar, torch (both variants)"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of our matmuls"
    )
    parser.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.folder, args)
        return
    wanted = args.models.split(",")
    if unknown := set(wanted) - {*OURS, "torch"}:
        parser.error(
            f"no model {', '.join(sorted(unknown))}; choose among {', '.join(OURS)}, torch"
        )
    if "torch" in wanted and "dense" not in wanted:
        parser.error("torch starts from the weights of dense: add dense to --models")
    if args.dtype != "float32" and "torch" in wanted:
        parser.error("the PyTorch model is float32: use --models=dense,chiar with another dtype")
    names = [n for m in wanted for n in (TORCH if m == "torch" else (m,))]

    before = timing.machine()
    workers, missing = {}, {}
    with tempfile.TemporaryDirectory() as folder, timing.closing(workers):
        for name in names:  # dense comes before torch, which needs its weights
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                f"--worker={name}",
                f"--folder={folder}",
            ]
            try:
                workers[name] = timing.Worker(command)
            except timing.Unavailable as e:
                missing[name] = str(e)
        infos = {name: w.info for name, w in workers.items()}
        check(infos)
        cells, rates = timing.measure(workers, args.rounds)
        peaks = {name: w.peak_bytes() for name, w in workers.items()}
    cfg = configuration(args.size, "dense", args.batch, args.dtype)
    table = rows(infos, cells, rates, peaks, cfg.train.batch_size * cfg.task.seq_len)
    print(f"{args.size}: depth {cfg.net.depth}, D {cfg.net.width}, H {cfg.net.heads}, F {cfg.net.ffn_width}, "
          f"L {cfg.task.seq_len}, V {cfg.task.vocab_size}, batch {args.batch}, {args.dtype}; {args.rounds} rounds on "
          f"{before['cores']} x {before['cpu']}, load {before['load'][0]:.1f}")  # fmt: skip
    show(table, missing)
    if args.out:
        text = {"args": {k: str(v) for k, v in vars(args).items()}, "machine": before,
                "load_after": timing.machine()["load"], "table": table, "missing": missing, "infos": infos,
                "cells": cells, "rates": rates}  # fmt: skip
        args.out.write_text(json.dumps(text, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
