"""Do fewer heads, hidden features and channels save time, and 8 bits? Against the whole float model: forward and step.

python benchmarks/shrink.py [--models=transformer,cerebra,chiar] [--keep=1,0.75,0.5,0.25] [--bits=32,8] [--rounds=7]
                            [--batch=8] [--length=256] [--width=128] [--depth=4] [--out=FILE.json]

Of 8 bits (extra quant) the forward pass is that of `convert`, with int8 weights; the step is that of training for it.

How it is measured, and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import jax  # noqa: E402
from step_ours import TOTAL, random_batch  # noqa: E402  (the checkout's, installed or not)

from cerebra_jax import config  # noqa: E402
from cerebra_jax.cost import count as jaxpr  # noqa: E402
from cerebra_jax.cost import timing
from cerebra_jax.models import model as models  # noqa: E402
from cerebra_jax.models import prunable as units  # noqa: E402
from cerebra_jax.models import quantization as int8  # noqa: E402
from cerebra_jax.tasks.registry import sketch  # noqa: E402
from cerebra_jax.training import optimizer as optim  # noqa: E402
from cerebra_jax.training import state
from cerebra_jax.training.step import make_train_step  # noqa: E402


def whole(name: str, args: argparse.Namespace) -> config.RunCfg:
    """The configuration of a model before anything is removed."""
    c = config.defaults()
    c.net.name, c.net.depth, c.net.width, c.net.heads = (
        name,
        args.depth,
        args.width,
        max(1, args.width // 32),
    )
    c.net.ffn_width, c.task.seq_len, c.train.batch_size, c.train.warmup = (
        4 * args.width,
        args.length,
        args.batch,
        "0 steps",
    )
    if name == "cerebra":
        c.net.route.part, c.net.route.kv = "block", "routed"
    return config.parse(c)


def shrunk(cfg: config.RunCfg, keep: float) -> config.RunCfg:
    """The same with that share of each group's units, at least one head; others in multiples of 8."""

    def left(g: units.Group) -> int:
        tile = 1 if g.kind == "heads" else 8
        return g.n if g.kind == "dct" else min(g.n, max(tile, round(keep * g.n / tile) * tile))

    values = config.to_dict(cfg)
    net = units.shape_of(cfg.net, {g.name: left(g) for g in units.groups(cfg.net)})
    values["net"]["kept"] = dataclasses.asdict(net.kept)
    return config.parse(values)


class Program:
    """A model's forward pass and its training step, compiled, with what they count."""

    def __init__(self, cfg: config.RunCfg, bits: int):
        eight = bits == 8
        model, task = models.build(cfg, cfg.task.vocab_size, eight=eight), sketch(cfg)
        optimizer = optim.make(cfg.train, TOTAL, TOTAL)
        batch, key = random_batch(cfg, 0), jax.random.key(1)
        now = state.init(model, optimizer, batch, key)
        weights, frozen = now.params, model
        if eight:
            quant = dataclasses.replace(cfg.quant, bits=8, stored=True)
            frozen = models.build(dataclasses.replace(cfg, quant=quant), cfg.task.vocab_size)
            weights = int8.convert(now.params, cfg.net.dtype)
        variables = {"params": weights, "routing": now.routing}

        def forward(variables, batch):
            out, _ = frozen.apply(variables, batch, models.neutral_knobs())
            return task.loss(out, batch, cfg.net.loss_chunk)[0]

        train = jax.jit(make_train_step(model, task, optimizer, cfg, TOTAL, TOTAL))
        counts = jaxpr.count(forward, variables, batch)
        if counts.flops + counts.int8 != cfg.train.batch_size * model.cost.executed_flops:
            raise SystemExit(
                f"{cfg.net.name}: {model.cost.executed_flops} FLOPs by the price list, {counts} counted"
            )
        forward, train = (
            jax.jit(forward).lower(variables, batch).compile(),
            train.lower(now, batch, key).compile(),
        )
        self.flops, self.int8 = model.cost.executed_flops, counts.int8 // cfg.train.batch_size
        self.params = sum(x.size for x in jax.tree.leaves(now.params))
        self.bytes = sum(x.nbytes for x in jax.tree.leaves(weights))
        self.xla = {"forward": jaxpr.compiled_flops(forward), "step": jaxpr.compiled_flops(train)}
        self._now, self._batch, self._key, self._compiled = now, batch, key, (forward, train)
        self._variables = variables

    def forward(self, n: int) -> None:
        for _ in range(n):
            out = self._compiled[0](self._variables, self._batch)
        jax.block_until_ready(out)

    def step(self, n: int) -> None:
        for _ in range(n):
            out, _ = self._compiled[1](self._now, self._batch, self._key)
        jax.block_until_ready(out.step)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All sizes of a model, timed in the same interleaved rounds; ratios are to the first."""
    sizes = {
        (keep, bits): shrunk(whole(name, args), keep) for bits in args.bits for keep in args.keep
    }
    programs = {size: Program(cfg, size[1]) for size, cfg in sizes.items()}
    rows = []
    cells: dict[str, dict[str, list[timing.Cell]]] = {}
    for kind in ("forward", "step"):
        runs = {
            str(size): timing.here(getattr(program, kind)) for size, program in programs.items()
        }
        cells[kind] = {size: [] for size in runs}
        for found in timing.rounds_of(runs, args.rounds):
            for size, cell in found.items():
                cells[kind][size].append(cell)
    first = next(iter(programs))
    whole_one = programs[first]
    for (keep, bits), program in programs.items():
        row = {"keep": keep, "bits": bits, "params": program.params, "weight_bytes": program.bytes,
               "flops": program.flops, "int8": program.int8 / program.flops,
               "analytic": program.flops / whole_one.flops}  # fmt: skip
        for kind, found in cells.items():
            mine = found[str((keep, bits))]
            row[kind] = {"ms": 1e3 * statistics.median(c.wall for c in mine),
                         "compiled": program.xla[kind] / whole_one.xla[kind],
                         "ratio": timing.compare(mine, found[str(first)])._asdict()}  # fmt: skip
        rows.append(row)
    return {"model": name, "rows": rows}


def show(found: dict[str, Any]) -> Iterator[str]:
    """A model as text."""
    time = f"{'compiled':>8} {'time [q1, q3]':>22} {'cpu':>6}"
    head = (
        f"{found['model']:12} {'keep':>5} {'bits':>4} {'weights kB':>10} {'FLOPs':>6} {'int8':>5}"
    )
    yield f"{head} | {'forward ms':>10} {time} | {'step ms':>8} {time}"
    for r in found["rows"]:
        parts = [f"{'':12} {r['keep']:5.2f} {r['bits']:4} {r['weight_bytes'] / 1e3:10,.0f} {r['analytic']:6.3f} "
                 f"{r['int8']:5.2f}"]  # fmt: skip
        for kind, width in (("forward", 10), ("step", 8)):
            t = r[kind]["ratio"]
            times = f"{t['median']:.3f} [{t['q1']:.3f}, {t['q3']:.3f}]{'*' if t['noisy'] else ' '}"
            parts.append(
                f"{r[kind]['ms']:{width}.1f} {r[kind]['compiled']:8.3f} {times:>22} {t['cpu']:6.3f}"
            )
        yield " | ".join(parts)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", type=lambda s: s.split(","), default="transformer,cerebra,chiar"
    )
    parser.add_argument(
        "--keep", type=lambda s: [float(x) for x in s.split(",")], default="1,0.75,0.5,0.25"
    )
    parser.add_argument(
        "--bits", type=lambda s: [int(x) for x in s.split(",")], default="32,8", help="of 32 and 8"
    )
    for name, value in (("rounds", 7), ("batch", 8), ("length", 256), ("width", 128), ("depth", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    return parser.parse_args()


def main() -> None:
    args = options()
    before = timing.machine()
    print(
        f"depth {args.depth}, D {args.width}, F {4 * args.width}, L {args.length}, batch {args.batch}, float32; "
        f"{args.rounds} rounds on {before['cores']} x {before['cpu']}, load {before['load'][0]:.1f}; * noisy"
    )
    found = []
    for name in args.models:
        found.append(measure(name, args))
        print("\n".join(show(found[-1])), flush=True)
    if args.out:
        text = {
            "args": {k: str(v) for k, v in vars(args).items()},
            "machine": before,
            "models": found,
        }
        args.out.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
