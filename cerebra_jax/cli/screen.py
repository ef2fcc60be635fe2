"""Shows a run: a progress bar where a person looks on, plain lines elsewhere.

Everything goes to stdout.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cerebra_jax import display


class Screen:
    """Prints lines, and a bar below them on a terminal.

    In a log or a notebook a line at each interval instead.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None

    @property
    def live(self) -> bool:
        """Returns True where a bar can be drawn."""
        return self._console.is_terminal and os.environ.get("TERM") != "dumb"

    def say(self, line: str) -> None:
        """Prints one line, above the bar.

        A run whose reader has left (`| head`, a closed terminal) goes on unseen.
        """
        try:
            if self.live:
                self._console.print(display.printable(line))
            else:
                display.say(display.printable(line))
        except OSError:
            display.leave_stdout()
            self._console = Console(file=sys.stdout)

    def begin(self, total: int, done: int) -> None:
        """Shows the bar of a run of `total` steps of which `done` are done."""
        if not self.live:
            return
        columns = (
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(),
            TextColumn("{task.fields[t]}"),
        )
        self._bar = Progress(*columns, console=self._console, refresh_per_second=4)
        self._bar.add_task("", total=total, completed=done, t="compiling")
        self._bar.start()

    def step(self, done: int, text: str, due: bool) -> None:
        """Shows a step.

        `due` at the intervals of train.log_every, the only lines where there is no bar.
        """
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, t=text)
        elif due:
            self.say(f"step {done:,} · {text}")

    def end(self) -> None:
        """Takes the bar away; harmless twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
