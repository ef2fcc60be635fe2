"""eval: measures the best checkpoint of a run, by its own config.json."""

from __future__ import annotations

from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks import judged, prepared
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        type=arguments.choice("valid", "test"),
        default="test",
        help="what is measured: valid or test (default test)",
    )
    arguments.add_verify(parser)
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Prints the metrics of --split and writes WORKDIR/eval-SPLIT.json."""
    screen = Screen()
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        if request.verify:
            prepared.forget(request.cfg.task)
        task = preprocessing.build(request.cfg, request.workdir, screen.say)
        compile_cache(request.cfg.task)
        from cerebra_jax.training import trainer
        from cerebra_jax.training.closing import quality

        line = trainer.measure(request.cfg, task, request.workdir, request.split, screen)
        by_class = None
        if getattr(task, "classes", None):
            from cerebra_jax.trained import Trained

            by_class = Trained(request.workdir, request.cfg, task).judge(request.split)
            line |= {"by_class": by_class}
        path = request.workdir / f"eval-{request.split}.json"
        folder.write_json(path, line | {"dataset": task.dataset})
        if line["notice"]:
            screen.say(line["notice"])
        screen.say(f"{request.split} · step {line['step']:,} · {quality(line, task.metrics)}")
        for text in judged.lines(by_class) if by_class else ():
            screen.say(text)
        screen.say(f"written: {path}")
