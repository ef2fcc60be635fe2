"""Runs the program: `cerebra [COMMAND] ...` or `python -m cerebra_jax [COMMAND] ...`.

--help lists the commands.

Turns every end of a run into its exit status (errors.py) and one line on stderr. JAX is imported
only once the command line has been found good.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from cerebra_jax import errors

_LESS = "use a smaller train.batch_size, a shorter text or fewer rows, or end other programs"
_HELP = {"-h", "--help", "--helpfull"}


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    workdir: Path | None = None
    try:
        from cerebra_jax.cli import commands, flags

        if _HELP & set(argv) or argv[:1] == ["help"]:
            print(flags.command_help(argv))
            return errors.DONE
        if argv[:1] == ["--version"]:
            from cerebra_jax import __version__

            print(f"cerebra_jax {__version__}")
            return errors.DONE
        request = flags.parse(argv)
        workdir = request.workdir if request.command == "train" else None
        commands.load(request.command).run(request)
        return errors.DONE
    except errors.RunError as e:
        return _fail(str(e), e.status)
    except BrokenPipeError:  # `... | head`: nobody reads on
        sys.stdout = None
        return errors.DONE
    except OSError as e:
        if e.errno in errors.DISK_ERRNOS:
            what = f"{e.strerror}: {e.filename or workdir}"
            return _fail(f"{what}; free some space and run the same command again", errors.DISK)
        return _crash(e, workdir)
    except KeyboardInterrupt:
        return _fail("stopped; the same command starts again", errors.PREEMPTED)
    except Exception as e:
        from cerebra_jax.cost import memory

        if memory.is_exhausted(e):
            return _fail(f"memory is full ({str(e)[:100]}); {_LESS}", errors.USER)
        return _crash(e, workdir)


def _fail(line: str, status: int) -> int:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return status


def _crash(error: BaseException, workdir: Path | None) -> int:
    """Reports a bug: its traceback goes to WORKDIR/crash.txt, or to the screen, and one line to the
    screen.
    """
    text = "".join(traceback.format_exception(error))
    where = "the traceback is above"
    if workdir is not None and workdir.is_dir():
        (workdir / "crash.txt").write_text(text, encoding="utf-8")
        where = f"the traceback is in {workdir / 'crash.txt'}"
    else:
        print(text, file=sys.stderr)
    what = f"a bug in cerebra_jax: {type(error).__name__}: {str(error)[:200]}"
    return _fail(f"{what}; {where}, please report it", errors.BUG)


if __name__ == "__main__":
    sys.exit(main())
