"""eval: measures the best checkpoint of a run, by its own config.json."""

from __future__ import annotations

from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder


def run(request: Request) -> None:
    """Prints the metrics of --split and writes WORKDIR/eval-SPLIT.json."""
    screen = Screen()
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = build(request.cfg, screen.say)
        compile_cache(request.cfg.task.cache_dir)
        from cerebra_jax.training import trainer as loop
        from cerebra_jax.training.closing import quality

        line = loop.measure(request.cfg, task, request.workdir, request.split, screen)
        path = request.workdir / f"eval-{request.split}.json"
        folder.write_json(path, line | {"dataset": task.dataset})
        if line["notice"]:
            screen.say(line["notice"])
        screen.say(f"{request.split} · step {line['step']:,} · {quality(line, task.metrics)}")
        screen.say(f"written: {path}")
