"""train: runs, or resumes, or says that it is done."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.errors import Preempted
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder
from cerebra_jax.training.closing import closing


class Stop:
    """SIGTERM, SIGINT and SIGHUP as a question that the loop asks; before the loop they end the program at once."""

    def __init__(self) -> None:
        self.asked, self.in_loop = False, False

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
        return self.asked


def run(request: Request) -> None:
    """Raises RunError with the exit status of any end but a good one."""
    screen, workdir = Screen(), request.workdir
    folder.prepare(workdir, request.fresh, screen.say)
    quiet = folder.quiet(workdir / "log.txt", request.verbose)
    with folder.locked(workdir, screen.say), quiet, Stop() as stop:
        folder.claim(workdir, request.cfg)
        result = folder.read_json(workdir / "result.json")
        if result is None:
            task = build(request.cfg, screen.say)
            compile_cache(request.cfg.task.cache_dir)
            from cerebra_jax.training import trainer as loop

            stop.in_loop = True
            result = loop.run(request.cfg, task, workdir, screen, stop)
            folder.write_json(workdir / "result.json", result)
        for line in closing(result, workdir):
            screen.say(line)


def compile_cache(cache_dir: str) -> None:
    """Compiled programs are kept between runs, in a folder that only its owner may read: they are native code."""
    cache = (
        Path(cache_dir or os.environ.get("CEREBRA_CACHE") or "~/.cache/cerebra_jax").expanduser()
        / "xla"
    )
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o700)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
