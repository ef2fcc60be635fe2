"""shrink: the pruned weights of a run cut out, into the folder of a smaller run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cerebra_jax.checks import need
from cerebra_jax.cli import settings
from cerebra_jax.cli.exchange import emptied
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder


def run(request: Request) -> None:
    """Makes the run and prints both models; `--config.train.KEY=VALUE` is for what is trained further."""
    screen, workdir, name = Screen(), request.workdir, request.options.get("to", "")
    need(bool(name), "--to is missing", "write shrink --workdir=RUN --to=DIR")
    to, tile = Path(name), request.options.get("tile", "0")
    need(tile.isdecimal(), f"--tile is {tile!r}", "give a whole number: --tile=8")
    emptied(to)
    cfg = settings.load(str(workdir / "config.json"), {})
    need(
        not cfg.twin,
        f"the run is the {cfg.twin} twin of a model",
        "shrink the run of the model itself",
    )
    need(
        not cfg.quant.stored,
        "the weights of the run are int8 (quant.stored)",
        "shrink first, then convert",
    )
    with folder.quiet(workdir / "log.txt", request.verbose):
        task = build(cfg, screen.say)
        compile_cache(cfg.task.cache_dir)
        from cerebra_jax.training import shrink as cut

        found = cut.shrink(cfg, task, workdir, cut.Target(request.cfg, to, int(tile)), screen.say)
    a, b = found.before, found.after
    for kind, counts in dataclasses.asdict(found.net.kept).items():
        if counts:
            screen.say(f"left in each layer (0: all) · {kind} {counts}")
    if found.filled:
        screen.say(f"{found.filled} pruned units stay, at zero, to fill the tile")
    screen.say(f"parameters {a.params:,} -> {b.params:,} · {b.params / a.params:.3f} of them")
    screen.say(f"weights {a.bytes / 1e6:.2f} MB -> {b.bytes / 1e6:.2f} MB")
    share = f"{a.relative:.3f} -> {b.relative:.3f} of dense"
    screen.say(f"executed {a.flops:,} -> {b.flops:,} FLOPs an example, forward · {share}")
    screen.say(
        f"outputs differ by {found.gap:.1e} at most, of {found.largest:.3g}, on validation data"
    )
    screen.say(f"done: {to}")
