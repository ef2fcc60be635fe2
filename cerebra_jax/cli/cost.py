"""cost: shows what a run will take, per block and in all, without training.

Of a text, without the text.
"""

from __future__ import annotations

import dataclasses
import operator
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.config import RunCfg, to_steps
from cerebra_jax.cost.units import LABELS
from cerebra_jax.display import say
from cerebra_jax.tasks import registry as tasks

QUICK = 4.0  # seconds after which nothing more is compiled or timed
UPDATE = 8  # times the parameters: AdamW reads four arrays and writes three; the norm reads one
LENGTH = 1000  # steps for which a budget is planned where nobody knows how many an epoch has
KEPT = 3  # checkpoints on disk: the last two and the best


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_config(parser)
    arguments.add_device(parser)
    arguments.add_strict(parser)
    arguments.add_verbose(parser)


def check(request: Request) -> None:
    """Adds the configuration, for the device that is asked for."""
    arguments.configured(request)
    arguments.aimed(request)


def run(request: Request) -> None:
    """Prints the preview of a configuration."""
    preview(request.cfg, arguments.doubting(request, say))


def preview(cfg: RunCfg, say: Callable[[str], None]) -> dict[str, Any]:
    """Prints the preview of a run and returns its numbers.

    FLOPs per token are forward unless named otherwise. The program is the one for
    objective.device, whether it is here or not.
    """
    start = time.monotonic()
    task = tasks.sketch(cfg, say)
    cfg = tasks.fitted(cfg, task.shape)
    import jax
    import jax.numpy as jnp

    from cerebra_jax.cost import count as jaxpr
    from cerebra_jax.cost import device, preview, prices, traffic
    from cerebra_jax.kernels.fused_call import lowering_for
    from cerebra_jax.models import model as build
    from cerebra_jax.models import registry
    from cerebra_jax.policies.schedule import Length
    from cerebra_jax.training import sizes
    from cerebra_jax.training.parallel import choose_devices

    # the program that a run ends with
    train, vocab = cfg.train, task.shape.vocab_size
    per_epoch = task.steps_per_epoch(train.batch_size)
    steps = to_steps(train.duration, 0, per_epoch) or None
    length = Length(steps or LENGTH, per_epoch or steps or LENGTH)
    cfg = sizes.controlled(cfg, vocab, length)
    plan = sizes.plan_budget(cfg, vocab, length)
    rated = [build.at_rate(cfg, rate) for rate in plan.rates] if plan else [cfg]
    cfg = rated[-1]
    plain = dataclasses.replace(cfg, quant=dataclasses.replace(cfg.quant, stored=False))
    target = cfg.objective.device
    platform, here = device.platform_of(target), device.is_present(target)
    model = build.build(plain, vocab, platform=platform)
    L = cfg.task.seq_len
    if here:
        devices = len(choose_devices(train.devices, train.batch_size, train.accum))
        chip = device.detect()
    else:
        devices = train.devices or 1
        chip = device.given(target)

    def batch_of(n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in task.example(n).items()}

    variables = jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), batch_of(1))

    def loss_of(model):
        def loss(params, batch):
            routing = {name: jnp.ones(r.shape, r.dtype) for name, r in variables["routing"].items()}
            now = {"params": params, "routing": routing}
            out, aux = model.apply(now, batch, build.neutral_knobs(), jax.random.key(0))
            return task.loss(out, batch, cfg.net.loss_chunk)[0] + aux.expected_B.sum()

        return loss

    # a step, compiled and timed where that is quick
    micro = train.batch_size // train.accum // devices
    batches = preview.Batches(batch_of, micro, train.accum)
    deadline = start + QUICK if here else 0.0  # what runs elsewhere cannot be timed
    step = preview.step(loss_of(model), variables["params"], batches, chip, cfg.net.dtype, deadline)
    estimate = None
    if platform == "gpu":  # where the kernels that a program becomes are known well enough
        with lowering_for(platform):
            traced = jax.make_jaxpr(jax.value_and_grad(loss_of(model)))
            one = traffic.estimate(traced(variables["params"], batch_of(micro)), chip)
        update = UPDATE * preview.tree_bytes(variables["params"])
        estimate = one.times(train.accum).plus(traffic.one_kernel(update, chip))
        if not step.timed:
            step = step._replace(seconds=estimate.seconds)
    in_8_bits = None
    if cfg.quant.bits:
        quantized = build.build(plain, vocab, 0, True, platform)
        gradient = jax.value_and_grad(loss_of(quantized))
        counted = jaxpr.count(gradient, variables["params"], batch_of(1))
        in_8_bits = {
            "flops_per_token": counted.flops / L,
            "int8_per_token": counted.int8 / L,
            "from": cfg.quant.start,
        }

    # under a budget the steps before are larger
    on_its_way, mean_step = None, 1.0  # of the last program
    if plan:
        spent = [build.cost_of(one.net, L, vocab, platform).executed_flops for one in rated]
        counts = plan.counts(length.total)
        mean_step = sum(map(operator.mul, counts, spent)) / length.total / spent[-1]
        on_its_way = {
            "budget": cfg.objective.budget,
            "executed": [one / model.dense.executed_flops for one in spent],
            "mean_step": mean_step,
        }

    # all numbers
    params_bytes = preview.tree_bytes(variables["params"])
    tokens = train.batch_size * L
    dense = model.dense.model_flops
    found = {
        "model": model.name,
        "how": registry.describe(model.net, model.pricing.platform),
        "params": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "flops_per_token": {
            "model": model.cost.model_flops / L,
            "executed": model.cost.executed_flops / L,
            "dense": dense / L,
            "dense_executed": model.dense.executed_flops / L,
            "train_step": step.flops * devices / tokens,
            "elementwise_train_step": step.elementwise * devices / tokens,
        },
        "eight": in_8_bits,
        "budget": on_its_way,
        "rel_flops": {
            "model": model.cost.model_flops / dense,
            "executed": model.cost.executed_flops / model.dense.executed_flops,
        },
        "executed_in_unit": {"unit": model.unit.name, "executed": model.executed},
        "lengths": task.shape.lengths,
        "blocks": [row._asdict() for row in preview.rows(model.cost, model.dense)],
        "memory_bytes": {
            "params": params_bytes,
            "optimizer": 2 * params_bytes,
            "gradients": params_bytes,
            "activations": step.activations,
            "of": chip.memory,
        },
        "device": f"{chip.name} x {devices}",
        "traffic": estimate and estimate._asdict(),
        "timed_examples": step.timed,
        "step_seconds": step.seconds,
        "tokens_per_s": tokens / step.seconds,
        "steps": steps,
        "total_flops": None if steps is None else steps * mean_step * step.flops * devices,
        "checkpoint_bytes": 3 * params_bytes,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "conventions": prices.CONVENTIONS,
    }
    _print(found, cfg, vocab, chip, say)
    return found


def _print(
    f: dict[str, Any], cfg: RunCfg, vocab: int, chip: Any, say: Callable[[str], None]
) -> None:
    """Prints the numbers of a preview for a person."""
    L, net, per = cfg.task.seq_len, cfg.net, f["flops_per_token"]
    # FLOPs
    how = f"; {f['how']}" if f["how"] else ""
    say(
        f"model      {f['model']}: {si(f['params'])} params, {net.depth} layers, D {net.width}, "
        f"H {net.heads}, F {net.ffn_width}, L {L}, V {vocab}{how}"
    )
    say("FLOPs per token, forward; dense: what the dense Transformer of this shape executes")
    say(_table(f, L))
    say(
        f"cost       executed {f['rel_flops']['executed']:.1%} of dense; "
        f"training {si(per['train_step'], 'FLOP')} and "
        f"{si(per['elementwise_train_step'])} elementwise operations per token"
    )
    way = f["budget"]
    if way:
        shares = ", ".join(f"{share:.3f}" for share in way["executed"])
        say(
            f"budget     {way['budget']:g} of dense, reached by programs of {shares}; all figures "
            "are the last one's"
        )
        say(
            "           the training total is of all of them: a mean step is "
            f"{way['mean_step']:.2f} of the last one; the first needs the most memory"
        )
    in8 = f["eight"]
    if in8:
        flops, int8 = si(in8["flops_per_token"], "FLOP"), si(in8["int8_per_token"])
        say(
            f"8 bits     from {in8['from']} on training takes {flops} and {int8} operations "
            "in int8 per token"
        )
    if f["lengths"]:
        lengths = ", ".join(map(str, f["lengths"]))
        say(f"           programs for {lengths} tokens: all figures are the last one's")
    unit = f["executed_in_unit"]
    if unit["unit"] != "flops":
        say(f"           executed {unit['executed']:.1%} of dense in {LABELS[unit['unit']]}")
    # the device
    if chip.measured:
        rates = f"{chip.peak(net.dtype):.2e}/{chip.bandwidth:.2e}"
        say(
            f"device     measured here: {si(chip.peak(net.dtype), 'FLOP/s')} in {net.dtype}, "
            f"{si(chip.bandwidth, 'B/s')}; objective.unit=seconds takes it as "
            f"objective.device={rates}"
        )
    _print_memory(f, say)
    if f["traffic"]:
        moved, kernels = f["traffic"]["bytes"], f["traffic"]["kernels"]
        say(f"traffic    {si(moved, 'B')} a step in {kernels:,} kernels (estimated)")
    _print_time(f, cfg, chip, say)
    disk = f"{si(f['checkpoint_bytes'], 'B')}, {si(f['disk_free_bytes'], 'B')} free"
    say(f"disk       {KEPT} checkpoints of {disk}")
    say(f"convention {f['conventions']}")


def _print_memory(f: dict[str, Any], say: Callable[[str], None]) -> None:
    memory = f["memory_bytes"]
    parts = {k: memory[k] for k in ("params", "optimizer", "gradients", "activations")}
    need = sum(parts.values())
    fits = ""
    if need > memory["of"]:
        fits = ": DOES NOT FIT, try net.remat=dots or full, a larger train.accum or more devices"
    source = "compiled" if f["timed_examples"] else "estimated"
    say(f"memory     {si(need, 'B')} of {si(memory['of'], 'B')} per device{fits}")
    listed = ", ".join(f"{k} {si(x, 'B')}" for k, x in parts.items())
    say(f"           {listed} ({source})")


def _print_time(f: dict[str, Any], cfg: RunCfg, chip: Any, say: Callable[[str], None]) -> None:
    timed, rows = f["timed_examples"], cfg.train.batch_size
    if f["traffic"] and not timed:
        source = "modelled from the kernels of the program, not measured"
    elif not timed:
        source = f"a guess: 40 % of the {'measured' if chip.measured else 'vendor'} peak"
    elif timed == rows:
        source = "timed here"
    else:
        source = f"timed here on {timed} of {rows} windows"
    rate = f"{f['tokens_per_s']:,.0f} tokens/s on {f['device']}"
    say(f"time       {how_long(f['step_seconds'])} per step, {rate} ({source})")
    duration = cfg.train.duration
    mean_step = f["budget"]["mean_step"] if f["budget"] else 1.0
    if f["steps"] is None:
        flops = si(mean_step * 1e6 * f["flops_per_token"]["train_step"], "FLOP")
        seconds = how_long(mean_step * 1e6 / f["tokens_per_s"])
        say(f"training   {duration}: {flops} and {seconds} per million tokens of text")
    else:
        seconds = how_long(mean_step * f["steps"] * f["step_seconds"])
        say(f"training   {duration}: {si(f['total_flops'], 'FLOP')}, {seconds}")


def _table(f: dict[str, Any], L: int) -> str:
    """Returns the FLOPs of each block as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("block", "path"):
        table.add_column(name, no_wrap=True)
    for name in ("model", "executed", "share", "dense"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(row["executed"] for row in f["blocks"])
    for row in f["blocks"]:
        model, executed, dense = (si(row[k] / L) for k in ("model", "executed", "dense"))
        table.add_row(
            row["block"], row["part"], model, executed, f"{row['executed'] / total:.1%}", dense
        )
    per = f["flops_per_token"]
    table.add_row(
        "all", "", *(si(per[k]) for k in ("model", "executed")), "100%", si(per["dense_executed"])
    )
    console = Console()  # plain where stdout is not a terminal
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def si(x: float, unit: str = "") -> str:
    """Returns a number for a person: "1.23 M" of 1_234_567."""
    power = 0
    while abs(x) >= 999.5 and power < 6:
        x /= 1000
        power += 1
    return f"{x:.3g} {' kMGTPE'[power].strip()}{unit}".rstrip()


def how_long(seconds: float) -> str:
    """Returns a time for a person: "90 s", "12 min" or "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
