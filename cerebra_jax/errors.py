"""Errors that end a run, each with the exit status that scripts and schedulers read.

One line on screen, `error: what is wrong; how to mend it`, and no traceback: a traceback is for bugs (exit 70).
"""

import errno

DONE, REFUSED, USER, BUG, DISK, PREEMPTED, PEER, DIVERGED = 0, 1, 2, 70, 74, 75, 76, 77
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class RunError(Exception):
    """A run that cannot go on: `what` went wrong, `mend` says how to put it right."""

    status = BUG

    def __init__(self, what: str, mend: str = ""):
        super().__init__(f"{what}; {mend}" if mend else what)
        self.what, self.mend = what, mend


class UserError(RunError):
    """The user's mistake: a mistyped key, an impossible value, a missing or broken file."""

    status = USER


class Busy(UserError):
    """Another process is at work in this folder."""


class PointsFailed(RunError):
    """Some runs of a sweep failed; the others went on to their end."""

    status = REFUSED


class NotCertified(RunError):
    """`certify` found that the compiled program does not save what it should."""

    status = REFUSED


class DiskError(RunError):
    """The disk is full or cannot be written; the last good checkpoint is still there."""

    status = DISK


class Preempted(RunError):
    """SIGTERM or SIGINT arrived; the state is saved and the same command goes on."""

    status = PREEMPTED


class Diverged(RunError):
    """Loss or gradients stayed non-finite; nothing non-finite was saved."""

    status = DIVERGED
