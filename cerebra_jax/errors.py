"""Defines the errors that end a run, each with the exit status that scripts and schedulers read.

An error is one line on screen, `error: what is wrong; hint`, and no traceback: a traceback is for
bugs (exit 70).
"""

import errno

DONE = 0
REFUSED = 1
USER = 2
BUG = 70
DISK = 74
PREEMPTED = 75
PEER = 76
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
