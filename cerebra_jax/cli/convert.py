"""convert: makes a run whose weights are int8 out of one that was trained in 8 bits."""

from __future__ import annotations

import dataclasses

from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.screen import Screen
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--to", metavar="DIR", type=arguments.folder, help="the folder of the run that is made"
    )
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Makes the folder of a run in --to out of the best checkpoint of --workdir.

    Says what became smaller.
    """
    cfg, screen, to = request.cfg, Screen(), request.to
    require(to is not None, "--to is missing", "write convert --workdir=RUN --to=DIR")
    require(
        cfg.quant.bits == 8,
        "this run was not trained in 8 bits",
        "train it with --config.quant.bits=8",
    )
    require(
        not cfg.quant.stored,
        "the weights of this run are int8 already",
        "convert the run that it was made from",
    )
    arguments.new_folder(to)
    folder.prepare(to, False, screen.say)
    with folder.quiet(to / "log.txt", request.verbose):
        from cerebra_jax.training import imported

        cfg = dataclasses.replace(
            cfg,
            quant=dataclasses.replace(cfg.quant, stored=True),
            sampler=config.SamplerCfg(),  # such a run is not trained further
            prune=config.PruneCfg(),
        )
        step, before, after = imported.convert(cfg, request.workdir, to, screen.say)
    folder.write_json(to / "config.json", config.to_dict(cfg))
    preprocessing.copy(request.workdir / preprocessing.FILE, to)
    found = {
        "from": str(request.workdir),
        "step": step,
        "bytes_before": before,
        "bytes_after": after,
    }
    folder.write_json(to / "convert.json", found)
    linear = _change(before["linear"], after["linear"])
    everything = _change(before["all"], after["all"])
    screen.say(f"checkpoint {step:,} · linear layers {linear}")
    screen.say(f"all parameters {everything}: embeddings, norms and routers stay float32")
    screen.say(f"done: {to}")


def _change(before: int, after: int) -> str:
    return f"{si(before, 'B')} -> {si(after, 'B')} ({after / before:.3f})"
