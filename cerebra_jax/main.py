"""python -m cerebra_jax.main [COMMAND] ..., or the console script `cerebra`; --help lists the commands.

Turns every end of a run into its exit status (errors.py) and one line on stderr; JAX is imported only once the
command line has been found good.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from cerebra_jax import errors

if TYPE_CHECKING:
    from cerebra_jax.cli import flags

# of the commands about a configuration or a run, loaded when they are asked for
MODULES = {
    "train": "train",
    "cost": "cost",
    "certify": "certify",
    "eval": "evaluate",
    "generate": "generate",
    "predict": "predict",
    "convert": "convert",
    "calibrate": "calibrate",
    "shrink": "shrink",
    "heatmap": "heatmap",
    "analyze": "analyze",
}


def main(argv: list[str] | None = None) -> int:
    """Exit status of a command line; house.md lists them."""
    argv = sys.argv[1:] if argv is None else argv
    workdir: Path | None = None
    try:
        from cerebra_jax.cli import flags

        if {"-h", "--help", "--helpfull", "help"} & set(argv):
            print(flags.help_text())
            return errors.DONE
        if argv[:1] == ["report"]:  # the one command that takes folders instead of a configuration
            from cerebra_jax.cli import report

            report.run(argv[1:])
            return errors.DONE
        if argv[:1] == ["sweep"]:  # of many configurations
            from cerebra_jax.cli import sweep

            sweep.run(argv)
            return errors.DONE
        if argv[:1] in (["import"], ["export"]):  # what runs hold, from and to files of tensors
            from cerebra_jax.cli import exchange

            exchange.run(argv)
            return errors.DONE
        request = flags.parse(argv)
        workdir = request.workdir if request.command == "train" else None
        return _command(request)
    except errors.RunError as e:
        return _fail(str(e), e.status)
    except BrokenPipeError:  # `... | head`: nobody reads on
        sys.stdout = None
        return errors.DONE
    except OSError as e:
        if e.errno in errors.DISK_ERRNOS:
            return _fail(
                f"{e.strerror}: {e.filename or workdir}; free some space and run the same command again",
                errors.DISK,
            )
        return _crash(e, workdir)
    except KeyboardInterrupt:
        return _fail("stopped; the same command starts again", errors.PREEMPTED)
    except Exception as e:
        return _crash(e, workdir)


def _command(request: flags.Request) -> int:
    importlib.import_module(f"cerebra_jax.cli.{MODULES[request.command]}").run(request)
    return errors.DONE


def _fail(line: str, status: int) -> int:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return status


def _crash(error: BaseException, workdir: Path | None) -> int:
    """A bug: the traceback goes to WORKDIR/crash.txt (to the screen where there is no workdir), one line on screen."""
    text = "".join(traceback.format_exception(error))
    where = "the traceback is above"
    if workdir is not None and workdir.is_dir():
        (workdir / "crash.txt").write_text(text, encoding="utf-8")
        where = f"the traceback is in {workdir / 'crash.txt'}"
    else:
        print(text, file=sys.stderr)
    return _fail(
        f"a bug in cerebra_jax: {type(error).__name__}: {str(error)[:200]}; {where}, please report it",
        errors.BUG,
    )


if __name__ == "__main__":
    sys.exit(main())
