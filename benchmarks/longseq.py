"""Times whole models on the synthetic tasks of long sequences, from 512 to 65,536 tokens.

python benchmarks/longseq.py [--task=mqar] [--models=dense,cerebra,window,ssm] [--rounds=3]
                             [--lengths=512,1024,…,65536] [--tokens=65536] [--out=FILE.json]

A batch has --tokens tokens, at least one sequence. The models are those of configs/longseq.py,
which end at half of dense's FLOPs where they route. benchmarks/README.md says how it is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
from typing import Any

import common
import jax

from cerebra_jax import config
from cerebra_jax.cost import timing
from cerebra_jax.tasks.registry import build
from cerebra_jax.training.experiment import prepare
from cerebra_jax.training.programs import Program, Programs

LENGTHS = "512,1024,2048,4096,8192,16384,32768,65536"


def configuration(task: str, model: str, length: int, args: argparse.Namespace) -> config.RunCfg:
    """Returns configs/longseq.py of that task and model at a length."""
    path = common.ROOT / "configs" / "longseq.py"
    spec = importlib.util.spec_from_file_location("longseq", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cfg = config.parse(module.get_config(f"{task}-{model}"))
    net = dataclasses.replace(cfg.net, width=args.width, heads=max(1, args.width // 32))
    net = dataclasses.replace(net, ffn_width=4 * args.width, depth=args.depth)
    rows = max(1, args.tokens // length)
    return dataclasses.replace(
        cfg,
        net=net,
        task=dataclasses.replace(cfg.task, seq_len=length),
        train=dataclasses.replace(cfg.train, batch_size=rows, devices=1),
    )


class Steps:
    """Takes training steps of the program that a run ends in."""

    def __init__(self, cfg: config.RunCfg):
        e = prepare(cfg, build(cfg, lambda line: None))
        programs = Programs(e)
        program = programs.of(Program(e.sizes.final, e.sizes.tokens))
        self._run = program
        self._state = programs.place(e.fresh())
        self._batch = programs.shard(e.task.train_batch(cfg.seed, 0, cfg.train.batch_size))
        self._key = e.key
        self.flops = e.model.executed  # relative to dense
        self(1)

    def __call__(self, count: int) -> None:
        for _ in range(count):
            self._state, _ = self._run.step(self._state, self._batch, self._key)
        jax.block_until_ready(self._state)


def measure(length: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each model at one length; a model that fails has its error."""
    steps: dict[str, Steps] = {}
    errors: dict[str, str] = {}
    for model in args.models:
        try:
            steps[model] = Steps(configuration(args.task, model, length, args))
        except Exception as error:  # such as too little memory: the others are still timed
            errors[model] = f"{type(error).__name__}: {str(error)[:200]}"
    runs = {model: timing.here(one) for model, one in steps.items()}
    cells = common.collect(runs, args.rounds) if runs else {}
    rows = []
    for model in args.models:
        row: dict[str, Any] = {"model": model, "length": length}
        if model in errors:
            rows.append(row | {"error": errors[model]})
            continue
        row["ms"] = 1e3 * statistics.median(cell.wall for cell in cells[model])
        row["executed"] = steps[model].flops
        if "dense" in cells:
            row["ratio"] = timing.compare(cells[model], cells["dense"])._asdict()
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> str:
    """Writes a row of the table."""
    head = f"{row['length']:6} {row['model']:8}"
    if "error" in row:
        return f"{head} {row['error']}"
    text = f"{head} {row['ms']:10.2f} {row['executed']:8.3f}"
    if "ratio" in row:
        ratio = row["ratio"]
        noisy = " noisy" if ratio["noisy"] else ""
        text += f" {ratio['median']:7.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]{noisy}"
    return text


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, rounds=3, tokens=65_536, width=64, depth=2)
    parser.add_argument("--task", default="mqar")
    parser.add_argument("--models", type=common.words, default="dense,cerebra,window,ssm")
    parser.add_argument("--lengths", type=common.integers, default=LENGTHS)
    return parser.parse_args()


def main() -> None:
    args = options()
    machine = timing.machine()
    device = jax.devices()[0].device_kind
    print(
        f"{args.task}, D {args.width}, {args.depth} layers, {args.tokens} tokens a batch; "
        f"{args.rounds} rounds on {device}, {machine['cores']} x {machine['cpu']}, "
        f"load {machine['load'][0]:.1f}"
    )
    print(f"{'L':>6} {'model':8} {'ms a step':>10} {'FLOPs':>8} {'time against dense':>18}")
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        found = measure(length, args)
        rows += found
        print("\n".join(map(show, found)), flush=True)
        common.write(args, machine, device=device, rows=rows)


if __name__ == "__main__":
    main()
