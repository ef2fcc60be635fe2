"""eval: measures the best checkpoint of a run, by its own config.json."""

from __future__ import annotations

import dataclasses

from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.build import build
from cerebra_jax.train.record import workdir as folder


def run(request: Request) -> None:
    """Prints the metrics of --split and writes WORKDIR/eval-SPLIT.json."""
    screen = Screen()
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = build(request.cfg, screen.say)
        compile_cache(request.cfg.task.cache_dir)
        from cerebra_jax.train import loop  # JAX from here on
        from cerebra_jax.train.record.closing import leaks, quality

        line = loop.measure(request.cfg, task, request.workdir, request.split, screen)
        path = request.workdir / f"eval-{request.split}.json"
        folder.write_json(path, line | {"dataset": task.dataset, "notice": task.notice})
        if task.notice:
            screen.say(task.notice)
        screen.say(f"{request.split} · step {line['step']:,} · {quality(line, task.metrics)}")
        for warning in leaks(line, dataclasses.asdict(request.cfg.net)):
            screen.say(warning)
        screen.say(f"written: {path}")
