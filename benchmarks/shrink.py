"""Asks whether fewer heads, hidden features and channels save time, and whether 8 bits do.

Shrunk models are timed against the whole float model, in the forward pass and in a training step.

python benchmarks/shrink.py [--models=transformer,cerebra,chiar] [--keep=1,0.75,0.5,0.25]
                            [--bits=32,8] [--rounds=7] [--batch=8] [--length=256] [--width=128]
                            [--depth=4] [--out=FILE.json]

With 8 bits (extra quant) the forward pass is that of `convert`, with int8 weights, and the step is
that of training for it. benchmarks/README.md says how it is measured, and what the columns mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import common
import jax
from step_ours import LENGTH, random_batch

from cerebra_jax import config
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import timing, xla
from cerebra_jax.models import model as models
from cerebra_jax.models import prunable, quantization
from cerebra_jax.tasks.registry import sketch
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import state
from cerebra_jax.training.experiment import policies
from cerebra_jax.training.objective import Objective
from cerebra_jax.training.step import make_train_step

KINDS = ("forward", "step")


class Size(NamedTuple):
    """What fraction of its units a model keeps, and the bits of its weights: 32 or 8."""

    keep: float
    bits: int


def unpruned(name: str, args: argparse.Namespace) -> config.RunCfg:
    """Returns the configuration of a model before anything is removed."""
    values = config.defaults()
    values.net.name = name
    values.net.depth = args.depth
    values.net.width = args.width
    values.net.heads = max(1, args.width // 32)
    values.net.ffn_width = 4 * args.width
    values.task.seq_len = args.length
    values.train.batch_size = args.batch
    values.train.warmup = "0 steps"
    if name == "cerebra":
        values.net.route.part = "block"
        values.net.route.kv = "routed"
    return config.parse(values)


def shrunk(cfg: config.RunCfg, keep: float) -> config.RunCfg:
    """Returns the same with that fraction of each group's units.

    At least one head stays; other units stay in multiples of 8.
    """

    def remaining(group: prunable.Group) -> int:
        if group.kind == "dct":
            return group.n
        tile = 1 if group.kind == "heads" else 8
        return min(group.n, max(tile, round(keep * group.n / tile) * tile))

    groups = prunable.groups(cfg.net)
    net = prunable.shape_of(cfg.net, {group.name: remaining(group) for group in groups})
    values = config.to_dict(cfg)
    values["net"]["kept"] = dataclasses.asdict(net.kept)
    return config.parse(values)


class Program:
    """A model's forward pass and its training step, compiled, with what they count."""

    def __init__(self, cfg: config.RunCfg, bits: int):
        """Compiles both; raises SystemExit where counted FLOPs are not those of the price list."""
        # the model and the state of its training
        model = models.build(cfg, cfg.task.vocab_size, quantized=bits == 8)
        task = sketch(cfg)
        optimizer = optim.make(cfg.train, LENGTH)
        self._batch = random_batch(cfg, 0)
        self._key = jax.random.key(1)
        self._state = state.init(model, optimizer, self._batch, self._key)

        # the model that answers: of 8 bits, with int8 weights
        weights = self._state.params
        answering = model
        if bits == 8:
            quant = dataclasses.replace(cfg.quant, bits=8, stored=True)
            answering = models.build(dataclasses.replace(cfg, quant=quant), cfg.task.vocab_size)
            weights = quantization.convert(weights, cfg.net.dtype)
        self._variables = {"params": weights, "routing": self._state.routing}

        def forward(variables, batch):
            out, _ = answering.apply(variables, batch, models.neutral_knobs())
            return task.loss(out, batch, cfg.net.loss_chunk)[0]

        # what they count
        counts = jaxpr.count(forward, self._variables, self._batch)
        self.flops = model.cost.executed_flops
        if counts.flops + counts.int8 != cfg.train.batch_size * self.flops:
            raise SystemExit(
                f"{cfg.net.name}: {self.flops} FLOPs by the price list, {counts} counted"
            )
        self.int8 = counts.int8 // cfg.train.batch_size
        self.params = sum(x.size for x in jax.tree.leaves(self._state.params))
        self.bytes = sum(x.nbytes for x in jax.tree.leaves(weights))

        # compile
        objective = Objective(model, task, policies(cfg))
        step = jax.jit(make_train_step(objective, optimizer, cfg, LENGTH))
        self._step = step.lower(self._state, self._batch, self._key).compile()
        self._forward = jax.jit(forward).lower(self._variables, self._batch).compile()
        self.xla = {
            "forward": xla.compiled_flops(self._forward),
            "step": xla.compiled_flops(self._step),
        }

    def forward(self, n: int) -> None:
        for _ in range(n):
            out = self._forward(self._variables, self._batch)
        jax.block_until_ready(out)

    def step(self, n: int) -> None:
        for _ in range(n):
            after, _ = self._step(self._state, self._batch, self._key)
        jax.block_until_ready(after.step)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times all sizes of a model in the same interleaved rounds; ratios are to the first size."""
    sizes = [Size(keep, bits) for bits in args.bits for keep in args.keep]
    cfg = unpruned(name, args)
    programs = {size: Program(shrunk(cfg, size.keep), size.bits) for size in sizes}

    # time
    cells = {}
    for kind in KINDS:
        runs = {
            str(size): timing.here(getattr(program, kind)) for size, program in programs.items()
        }
        cells[kind] = common.collect(runs, args.rounds)

    # compare
    first = programs[sizes[0]]
    rows = []
    for size, program in programs.items():
        row: dict[str, Any] = {
            "keep": size.keep,
            "bits": size.bits,
            "params": program.params,
            "weight_bytes": program.bytes,
            "flops": program.flops,
            "int8": program.int8 / program.flops,
            "analytic": program.flops / first.flops,
        }
        for kind, found in cells.items():
            own = found[str(size)]
            row[kind] = {
                "ms": 1e3 * statistics.median(cell.wall for cell in own),
                "compiled": program.xla[kind] / first.xla[kind],
                "ratio": timing.compare(own, found[str(sizes[0])])._asdict(),
            }
        rows.append(row)
    return {"model": name, "rows": rows}


def show(found: dict[str, Any]) -> Iterator[str]:
    """Writes a model's table."""
    times = f"{'compiled':>8} {'time [q1, q3]':>22} {'cpu':>6}"
    head = (
        f"{found['model']:12} {'keep':>5} {'bits':>4} {'weights kB':>10} {'FLOPs':>6} {'int8':>5}"
    )
    yield f"{head} | {'forward ms':>10} {times} | {'step ms':>8} {times}"
    for row in found["rows"]:
        size = (
            f"{'':12} {row['keep']:5.2f} {row['bits']:4} {row['weight_bytes'] / 1e3:10,.0f} "
            f"{row['analytic']:6.3f} {row['int8']:5.2f}"
        )
        yield f"{size} | {_times(row['forward'], 10)} | {_times(row['step'], 8)}"


def _times(found: dict[str, Any], width: int) -> str:
    ratio = found["ratio"]
    mark = "*" if ratio["noisy"] else " "
    interval = f"{ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]{mark}"
    return f"{found['ms']:{width}.1f} {found['compiled']:8.3f} {interval:>22} {ratio['cpu']:6.3f}"


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, rounds=7, batch=8, length=256, width=128, depth=4)
    parser.add_argument("--models", type=common.words, default="transformer,cerebra,chiar")
    parser.add_argument("--keep", type=common.fractions, default="1,0.75,0.5,0.25")
    parser.add_argument("--bits", type=common.integers, default="32,8", help="of 32 and 8")
    return parser.parse_args()


def main() -> None:
    args = options()
    machine = timing.machine()
    print(
        f"depth {args.depth}, D {args.width}, F {4 * args.width}, L {args.length}, "
        f"batch {args.batch}, float32; {args.rounds} rounds on {machine['cores']} x "
        f"{machine['cpu']}, load {machine['load'][0]:.1f}; * noisy"
    )
    found = []
    for name in args.models:
        found.append(measure(name, args))
        print("\n".join(show(found[-1])), flush=True)
    common.write(args, machine, models=found)


if __name__ == "__main__":
    main()
