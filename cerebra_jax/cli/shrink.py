"""shrink: cuts out the pruned weights of a run, into the folder of a smaller run."""

from __future__ import annotations

import dataclasses

from cerebra_jax.checks import joined, require
from cerebra_jax.cli import arguments, settings
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

LARGEST_TILE = 1 << 20  # as wide as the widest net.ffn_width


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.epilog = (
        f"{parser.epilog} So may train.KEY, for when the smaller run is trained further."
    )
    parser.add_argument(
        "--to", metavar="DIR", type=arguments.folder, help="the folder of the run that is made"
    )
    parser.add_argument(
        "--tile",
        metavar="N",
        type=arguments.whole(0, LARGEST_TILE),
        default=0,
        help="hidden features and channels stay in multiples of it (default 8; on a TPU 128)",
    )
    arguments.add_verbose(parser)


def check(request: Request) -> None:
    """Adds the configuration of the run, in which training may change."""
    arguments.of_run(request, further="train.")


def run(request: Request) -> None:
    """Makes the run and prints the figures of both models."""
    screen, workdir, to = Screen(), request.workdir, request.to
    require(to is not None, "--to is missing", "write shrink --workdir=RUN --to=DIR")
    arguments.new_folder(to)
    cfg = settings.load(str(workdir / "config.json"), {})
    require(
        not cfg.twin,
        f"the run is the {cfg.twin} twin of a model",
        "shrink the run of the model itself",
    )
    require(
        not cfg.quant.stored,
        "the weights of the run are int8 (quant.stored)",
        "shrink first, then convert",
    )
    with folder.quiet(workdir / "log.txt", request.verbose):
        task = preprocessing.build(cfg, workdir, screen.say)
        compile_cache(cfg.task)
        from cerebra_jax.training import shrink as cut

        found = cut.shrink(
            cfg, task, workdir, cut.Target(request.cfg, to, request.tile), screen.say
        )
    preprocessing.copy(workdir / preprocessing.FILE, to)
    # what is left of each layer
    for kind, counts in dataclasses.asdict(found.net.kept).items():
        if counts:
            screen.say(f"left in each layer (0: all) · {kind} {joined(counts)}")
    if found.filled:
        screen.say(f"{found.filled} pruned units stay, at zero, to fill the tile")
    # both models beside each other
    a, b = found.before, found.after
    screen.say(f"parameters {a.params:,} -> {b.params:,} · {b.params / a.params:.3f} of them")
    screen.say(f"weights {a.bytes / 1e6:.2f} MB -> {b.bytes / 1e6:.2f} MB")
    share = f"{a.relative:.3f} -> {b.relative:.3f} of dense"
    screen.say(f"executed {a.flops:,} -> {b.flops:,} FLOPs an example, forward · {share}")
    gap = f"outputs differ by {found.gap:.1e} at most, of {found.largest:.3g}"
    screen.say(f"{gap}, on validation data")
    screen.say(f"done: {to}")
