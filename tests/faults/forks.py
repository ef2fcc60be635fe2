"""A process that has imported everything, and forks for each command line that it is given.

A run starts in it without the seconds of importing. It is a process of its own all the same: a kill
is a kill, and nothing of it is left for the next one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 540  # then a run has hung; SIGALRM ends it


class Ended(NamedTuple):
    """How a run ended: its status as Popen.returncode, and what it printed."""

    status: int
    out: str
    err: str


class Forks:
    """Runs command lines one after the other."""

    def __init__(self, env: dict[str, str]):
        """Starts the process that forks; `env` is what the runs start from."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"],
            cwd=ROOT,
            env=env | {"PYTHONWARNINGS": "ignore:os.fork"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: list[str], folder: Path, **extra: Any) -> Ended:
        """Runs one; its output goes through files in `folder`.

        chaos: CEREBRA_CHAOS. kill_in_save: [which save of the session, milliseconds after it
        begins]. probe: a file that gets what `_probe` measures.
        """
        out, err = folder / "stdout", folder / "stderr"
        order = {"words": words, "out": str(out), "err": str(err)} | extra
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return Ended(status, out.read_text(errors="replace"), err.read_text(errors="replace"))

    def close(self) -> None:
        """Ends the process that forks."""
        self._process.communicate()


def _serve() -> None:
    """Forks for each order on stdin, and prints the status that the child ended with."""
    import cerebra_jax.cli.train
    import cerebra_jax.tasks.registry
    import cerebra_jax.training.trainer  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(order: dict[str, Any]) -> None:
    """Does what is asked, and ends this process."""
    from cerebra_jax.main import main

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    signal.alarm(LONGEST_S)
    if "chaos" in order:
        os.environ["CEREBRA_CHAOS"] = order["chaos"]
    if "kill_in_save" in order:
        _kill_in_save(*order["kill_in_save"])
    if "probe" in order:
        _probe(Path(order["probe"]), order["every"])
    try:
        status = main(order["words"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os._exit(99)  # `main` lets nothing through
    os._exit(status)


def _kill_in_save(nth: int, after_ms: float) -> None:
    """Makes the nth save of this process its last: SIGKILL comes so long after it begins."""
    from cerebra_jax.training.checkpoint import Checkpoints

    hand_over, begun = Checkpoints._hand_over, []

    def counted(self: Checkpoints, *args: Any) -> None:
        begun.append(1)
        if len(begun) == nth:
            kill = (os.getpid(), signal.SIGKILL)
            threading.Timer(after_ms / 1e3, os.kill, kill).start()
        hand_over(self, *args)

    Checkpoints._hand_over = counted


def _probe(to: Path, every: int) -> None:
    """Writes a line each `every` steps: step, resident bytes, open files, programs compiled so far,
    programs of the training step.
    """
    import jax

    from cerebra_jax.training.trainer import Trainer

    compiled: list[str] = []

    def heard(event: str, seconds: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    step = Trainer._step

    def measured(self: Trainer, at: int) -> None:
        step(self, at)
        if (at + 1) % every:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        line = {
            "step": at + 1,
            "resident": pages * os.sysconf("SC_PAGE_SIZE"),
            "files": len(os.listdir("/proc/self/fd")),
            "compiled": len(compiled),
            "programs": len(self.compiled),
        }
        with open(to, "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    Trainer._step = measured


if __name__ == "__main__":
    _serve()
