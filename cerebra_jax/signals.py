"""Lets a signal end a program in order: with one line, and never inside of an import.

An exception that is raised while a compiled module is being loaded can end the process with
SIGABRT, or come out as an ImportError of that module. So a signal that comes then is raised right
after the import.
"""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TWICE = 1.0  # seconds in which signals are one
AGAIN = 0.02  # seconds until it is looked again whether an import is over


class Interrupt:
    """Raises KeyboardInterrupt in the main thread at SIGTERM, SIGINT or SIGHUP.

    `with Interrupt():` does that, and afterwards the signals mean what they meant before. `came` is
    True from the first of them on: whatever error follows is their doing. A second one right after
    the first, as a terminal and a shell may both send it, changes nothing.
    """

    def __init__(self) -> None:
        self.came = False
        self._raised = -math.inf  # seconds of the clock
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
                self._old[number] = signal.signal(number, self._on_signal)
        self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *exc: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self._on_alarm(number, frame)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if imports(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        elif time.monotonic() - self._raised > TWICE:
            self._raised = time.monotonic()
            raise KeyboardInterrupt


def until_main() -> None:
    """Lets Ctrl-C end the program without the traceback of an import, until `Interrupt` answers."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def after_main() -> None:
    """Lets signals end the program without a word: nothing can be lost any more."""
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def imports(frame: FrameType | None) -> bool:
    """Returns whether a module is being imported where a signal came."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
