"""convert: a run trained in 8 bits becomes one whose weights are int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cerebra_jax import config
from cerebra_jax.checks import need
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.exchange import emptied
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.training import workdir as folder


def run(request: Request) -> None:
    """Makes the folder of a run in --to out of the best checkpoint of --workdir; says what became smaller."""
    cfg, screen = request.cfg, Screen()
    need(bool(request.options.get("to")), "--to is missing", "write convert --workdir=RUN --to=DIR")
    need(
        cfg.quant.bits == 8,
        "this run was not trained in 8 bits",
        "train it with --config.quant.bits=8",
    )
    need(
        not cfg.quant.stored,
        "the weights of this run are int8 already",
        "convert the run that it was made from",
    )
    to = Path(request.options["to"])
    emptied(to)
    folder.prepare(to, False, screen.say)
    with folder.quiet(to / "log.txt", request.verbose):
        from cerebra_jax.training import imported as outside

        off = {"sampler": config.SamplerCfg(), "prune": config.PruneCfg()}  # of training
        cfg = dataclasses.replace(cfg, quant=dataclasses.replace(cfg.quant, stored=True), **off)
        step, before, after = outside.convert(cfg, request.workdir, to, screen.say)
    folder.write_json(to / "config.json", config.to_dict(cfg))
    found = {
        "from": str(request.workdir),
        "step": step,
        "bytes_before": before,
        "bytes_after": after,
    }
    folder.write_json(to / "convert.json", found)
    screen.say(f"checkpoint {step:,} · linear layers {_change(before['linear'], after['linear'])}")
    screen.say(
        f"all parameters {_change(before['all'], after['all'])}: embeddings, norms and routers stay float32"
    )
    screen.say(f"done: {to}")


def _change(before: int, after: int) -> str:
    return f"{si(before, 'B')} -> {si(after, 'B')} ({after / before:.3f})"
