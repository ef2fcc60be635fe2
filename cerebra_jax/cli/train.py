"""train: trains a model, resumes a stopped run, or says that it is done."""

from __future__ import annotations

import os
import signal
from typing import Any

from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.config import TaskCfg, reads
from cerebra_jax.errors import Preempted
from cerebra_jax.tasks import prepared
from cerebra_jax.training import preprocessing, processes
from cerebra_jax.training import workdir as folder
from cerebra_jax.training.closing import closing


class Stop:
    """Turns SIGTERM, SIGINT and SIGHUP into a question that the loop asks.

    Before the loop they end the program at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.in_loop = False

    def __enter__(self) -> Stop:
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.asked = True
        if not self.in_loop:
            raise Preempted("stopped before the first step", "the same command starts again")

    def __call__(self) -> bool:
        """Returns True once a signal has come."""
        return self.asked


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_config(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=arguments.folder,
        help="the folder of the run (default runs/CONFIG[-PART]-sSEED)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="move an existing folder aside and start again"
    )
    parser.add_argument(
        "--force", action="store_true", help="also train what does not seem to fit into memory"
    )
    arguments.add_strict(parser)
    arguments.add_verify(parser)
    arguments.add_verbose(parser)


check = arguments.configured


def run(request: Request) -> None:
    """Trains; raises RunError with the exit status of any end but a good one."""
    processes.require_one()
    screen, workdir, cfg = Screen(), request.workdir, reads.watched(request.cfg)
    folder.prepare(workdir, request.fresh, screen.say)
    quiet = folder.quiet(workdir / "log.txt", request.verbose)
    with folder.locked(workdir, screen.say), quiet, Stop() as stop:
        folder.claim(workdir, cfg, screen.say)
        result = folder.read_json(workdir / "result.json")
        if result is None:
            if request.verify:
                prepared.forget(cfg.task)
            task = preprocessing.build(cfg, workdir, arguments.doubting(request, screen.say))
            compile_cache(cfg.task)
            from cerebra_jax.training import trainer

            stop.in_loop = True
            result = trainer.run(cfg, task, workdir, screen, stop, request.force)
            folder.write_json(workdir / "result.json", result)
        for line in closing(result, workdir):
            screen.say(line)


def compile_cache(cfg: TaskCfg) -> None:
    """Keeps compiled programs between runs, in a folder that only its owner may read: they are
    native code.

    A file of data cannot name that folder (`config.parse_data`).
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = prepared.cache_folder(cfg) / "xla"
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o700)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
