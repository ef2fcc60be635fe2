"""Shows text that may come from data or from folders: nothing in it can steer a terminal.

Whatever a command prints goes through `say` or `printable`. Imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from typing import IO

# control, format and surrogate characters, and separators of lines and paragraphs
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # of Persian words and of emoji; they only join what stands beside them


def printable(text: str) -> str:
    r"""Returns a text on one line: an escape, a newline and the like become `\x1b`, `\n`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def inert(text: str) -> str:
    """Returns a text as the cell of a CSV file: no spreadsheet takes it for a formula.

    An apostrophe goes before what would be one. Numbers and single signs stay as they are.
    """
    shown = printable(text)
    if len(text) < 2 or text[0] not in "=+-@\t\r":
        return shown
    try:
        float(text)
    except ValueError:
        return f"'{shown}"
    return shown


def printable_lines(text: str) -> str:
    """Returns a text of several lines, each of them printable; it keeps its tabs."""
    lines = (line.split("\t") for line in text.split("\n"))
    return "\n".join("\t".join(map(printable, parts)) for parts in lines)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(text: str = "", file: IO[str] | None = None) -> None:
    """Prints a text of one or several lines, on stdout unless a file is given."""
    print(printable_lines(text), file=file or sys.stdout, flush=True)


def open_streams() -> None:
    """Makes stdout and stderr such that printing cannot fail for what is printed.

    A stream that the caller closed is the null device: without that, the next file to be opened
    would get its number, and whatever a library writes to stderr. Characters that a stream cannot
    encode are replaced.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # what a test or notebook put there
        if reconfigure is not None:
            reconfigure(errors="replace")


def settle_stdout() -> None:
    """Writes what stdout still holds; where that fails, the interpreter would say so at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        leave_stdout()


def leave_stdout() -> None:
    """Throws away what stdout still holds, and all that follows: nobody reads it."""
    stream, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(sys.stdout.fileno(), stream.fileno())
