"""train: runs, or resumes, or says that it is done."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.errors import Preempted
from cerebra_jax.tasks.build import build
from cerebra_jax.train.record import workdir as folder


class Stop:
    """SIGTERM and SIGINT as a question that the loop asks; before the loop runs, they end the program at once."""

    def __init__(self) -> None:
        self.asked, self.in_loop = False, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.asked = True
        if not self.in_loop:
            raise Preempted("stopped before the first step", "the same command starts again")

    def __call__(self) -> bool:
        return self.asked


def run(request: Request) -> None:
    """Raises RunError with the exit status of any end but a good one."""
    stop, screen = Stop(), Screen()
    workdir = request.workdir
    folder.prepare(workdir, request.fresh, screen.say)
    with folder.locked(workdir, screen.say), folder.quiet(workdir / "log.txt", request.verbose):
        folder.claim(workdir, request.cfg)
        if (done := folder.read_json(workdir / "result.json")) is not None:
            _say_done(done, workdir, screen)
            return
        task = build(request.cfg, screen.say)
        compile_cache(request.cfg.task.cache_dir)
        from cerebra_jax.train import loop  # JAX from here on

        stop.in_loop = True
        result = loop.run(request.cfg, task, workdir, screen, stop)
        folder.write_json(workdir / "result.json", result)
        _say_done(result, workdir, screen)


def compile_cache(cache_dir: str) -> None:
    """Compiled programs are kept between runs, in a folder that only its owner may read: they are native code."""
    cache = Path(cache_dir or os.environ.get("CEREBRA_CACHE") or "~/.cache/cerebra_jax").expanduser() / "xla"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o700)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _say_done(result: dict[str, Any], workdir: Path, screen: Screen) -> None:
    from cerebra_jax.train.record.closing import closing

    for line in closing(result, workdir):
        screen.say(line)
