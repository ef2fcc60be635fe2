"""Runs the program: `cerebra [COMMAND] ...` or `python -m cerebra_jax [COMMAND] ...`.

--help lists the commands.

Turns every end of a run into its exit status (errors.py) and one line on stderr. JAX is imported
only once the command line has been found good.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cerebra_jax import signals

if __name__ == "__main__":
    signals.until_main()

import contextlib  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

from cerebra_jax import display, errors  # noqa: E402

if TYPE_CHECKING:
    from cerebra_jax.cli.arguments import Request

_LESS = "use a smaller train.batch_size, a shorter text or fewer rows, or end other programs"
_HELP = {"-h", "--help", "--helpfull"}
LONGEST = 1000  # characters of an error's line; a value of the user's may be a whole file


def main(argv: list[str] | None = None) -> int:
    """Runs a command line, without one that of the process, and returns its exit status."""
    display.open_streams()
    if argv is not None:
        return _Command(argv).status()
    with signals.Interrupt() as interrupt:
        status = _Command(sys.argv[1:], interrupt).status()
    signals.after_main()
    return status


class _Command:
    """One command line: its words and, once they are read, what they ask for."""

    def __init__(self, words: list[str], interrupt: signals.Interrupt | None = None):
        self.words = words
        self.interrupt = interrupt
        self.request: Request | None = None

    def status(self) -> int:
        """Runs the command and returns its exit status; says in one line how it failed."""
        try:
            self._run()
            return errors.DONE
        except errors.RunError as error:
            return _fail(str(error), error.status)
        except KeyboardInterrupt:
            return _stopped()
        except BrokenPipeError:  # `... | head`: nobody reads on
            display.leave_stdout()
            return errors.DONE
        except Exception as error:
            if self.interrupt is not None and self.interrupt.came:
                return _stopped()
            if isinstance(error, OSError) and (own := self._about_a_path(error)):
                return _fail(str(own), own.status)
            from cerebra_jax.cost import memory

            if memory.is_exhausted(error):
                return _fail(f"memory is full ({str(error)[:100]}); {_LESS}", errors.USER)
            return _crash(error, self._workdir)
        finally:
            display.settle_stdout()

    def _run(self) -> None:
        from cerebra_jax.cli import commands, flags

        if _HELP & set(self.words) or self.words[:1] == ["help"]:
            display.say(flags.command_help(self.words))
        elif self.words[:1] == ["--version"]:
            from cerebra_jax import __version__

            display.say(f"cerebra_jax {__version__}")
        else:
            self.request = flags.parse(self.words)
            if self.interrupt is not None and self.interrupt.came:
                raise KeyboardInterrupt
            commands.load(self.request.command).run(self.request)

    @property
    def _workdir(self) -> Path | None:
        """Returns the folder of the run that is trained, None of another command."""
        is_training = self.request is not None and self.request.command == "train"
        return self.request.workdir if self.request and is_training else None

    def _about_a_path(self, error: OSError) -> errors.RunError | None:
        """Returns what an error means that is about the disk, or about a path that the user named.

        None of any other, which is a bug.
        """
        path = error.filename or self._workdir or "standard output"
        if error.errno in errors.DISK_ERRNOS:
            return errors.of_os(error, path)
        for path in (error.filename, error.filename2):
            text = path.decode(errors="replace") if isinstance(path, bytes) else path
            if isinstance(text, str) and any(errors.is_below(text, own) for own in self._named()):
                return errors.of_os(error, text)
        return None

    def _named(self) -> Iterator[str | Path]:
        """Yields the paths that the user named: words, the run's folder, places of its data."""
        for word in self.words:
            value = word.partition("=")[2] if word.startswith("-") else word
            for text in (value, value.partition(":")[0], value.partition("#")[0], value[1:]):
                if text:
                    yield text
        workdir = getattr(self.request, "workdir", None)
        if workdir is not None:
            yield workdir
        cfg = getattr(self.request, "cfg", None)
        if cfg is not None:
            from cerebra_jax import config
            from cerebra_jax.tasks import prepared

            yield prepared.cache_folder(cfg.task)
            yield from filter(None, (config.value(cfg, key) for key in config.places()))


def _stopped() -> int:
    return _fail("stopped; the same command starts again", errors.PREEMPTED)


def _fail(line: str, status: int) -> int:
    text = display.printable(" ".join(line.split()))
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
        display.say(f"error: {text}", file=sys.stderr)
    return status


def _crash(error: BaseException, workdir: Path | None) -> int:
    """Reports a bug: its traceback goes to WORKDIR/crash.txt, or to the screen, and one line to the
    screen.
    """
    import traceback  # takes longer than all that is imported before a signal can be answered

    text = "".join(traceback.format_exception(error))
    where = "the traceback is above"
    try:
        if workdir is None:
            raise FileNotFoundError
        (workdir / "crash.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        where = f"the traceback is in {workdir / 'crash.txt'}"
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            display.say(text, file=sys.stderr)
    what = f"a bug in cerebra_jax: {type(error).__name__}: {str(error)[:200]}"
    return _fail(f"{what}; {where}, please report it", errors.BUG)


if __name__ == "__main__":
    sys.exit(main())
