"""Defines the errors that end a run, each with the exit status that scripts and schedulers read.

An error is one line on screen, `error: what is wrong; hint`, and no traceback: a traceback is for
bugs (exit 70).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

DONE = 0
REFUSED = 1
USER = 2
BUG = 70
DISK = 74
PREEMPTED = 75
DIVERGED = 77
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class RunError(Exception):
    """Ends a run: `what` went wrong, `hint` says how to put it right."""

    status = BUG

    def __init__(self, what: str, hint: str = ""):
        super().__init__(f"{what}; {hint}" if hint else what)
        self.what = what
        self.hint = hint


class UserError(RunError):
    """Tells the user's mistake: a mistyped key, an impossible value, a missing or broken file."""

    status = USER


class Busy(UserError):
    """Tells that another process is at work in this folder."""


class PointsFailed(RunError):
    """Tells that some runs of a sweep failed; the others went on to their end."""

    status = REFUSED


class NotCertified(RunError):
    """Tells that the compiled program does not save what it should, as `certify` found."""

    status = REFUSED


class DiskError(RunError):
    """Tells that the disk is full or cannot be written; the last good checkpoint is still there."""

    status = DISK


class Preempted(RunError):
    """Tells that SIGTERM or SIGINT arrived; the state is saved and the same command goes on."""

    status = PREEMPTED


class Diverged(RunError):
    """Tells that loss or gradients stayed non-finite; nothing non-finite was saved."""

    status = DIVERGED


_HINTS = {  # of what an operating system says about a path
    errno.ENOENT: "check the name",
    errno.EEXIST: "move it away, or give another name",
    errno.EISDIR: "a folder stands where a file belongs: move it away, or give another name",
    errno.ENOTDIR: "a file stands where a folder belongs: move it away, or give another name",
    errno.EACCES: "change its permissions, or give another name",
    errno.EPERM: "change its permissions, or give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead back to themselves: give another name",
}


def of_os(error: OSError, path: str | Path, hint: str = "") -> RunError:
    """Returns what an error of the operating system about a path is: the disk's, or the user's."""
    what = f"{path}: {error.strerror or error}"
    if error.errno in DISK_ERRNOS:
        return DiskError(what, "free some space and run the same command again")
    found = _HINTS[error.errno] if error.errno in _HINTS else "give another name"
    return UserError(what, hint or found)


def is_below(path: str | Path, named: str | Path) -> bool:
    """Returns whether a path is one that was named, is inside it, or leads to it."""
    inner, outer = Path(os.path.abspath(path)), Path(os.path.abspath(named))
    return inner == outer or outer in inner.parents or inner in outer.parents
