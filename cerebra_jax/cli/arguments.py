"""Holds what commands declare their options with: a parser whose errors are one line, types of
values, common options.

Options are checked in two steps. The parser reads words and their types; `configured` and `of_run`
then read the configuration that the words name. No JAX is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.cli import settings
from cerebra_jax.cost import device
from cerebra_jax.errors import UserError

# What may differ from the configuration of a run that is evaluated or used.
RUN_KEYS = (
    "task.data_dir",
    "task.path",
    "task.cache_dir",
    "train.devices",
    "train.batch_size",
    "task.gpt2_dir",
    "net.route.meta",
)
LARGEST_TEXT = 1 << 26  # bytes of a text that an option names
LARGEST_SEED = (1 << 31) - 1
SHOWN = 40  # characters of a wrong value in its message
_KEYS_HELP = (
    "--config.KEY=VALUE changes a key of the configuration. `cerebra keys` lists all keys with "
    "their types, defaults, allowed values and meanings."
)


class Request(argparse.Namespace):
    """Holds what the user asked for, checked.

    Beside these, each option of the command is an attribute.
    """

    command: str
    overrides: dict[str, str]  # {configuration key: value as text}
    verbose: bool = False
    strict: bool = False
    device: str = ""
    cfg: config.RunCfg
    workdir: Path
    name: str = ""  # what the configuration is called


class Parser(argparse.ArgumentParser):
    """Parses the options of one command; its errors are UserErrors."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"cerebra {command}", description=description, allow_abbrev=False)
        self.command = command
        self.takes_keys = False  # --config.KEY=VALUE

    def error(self, message: str) -> NoReturn:
        """Raises the UserError of a message of argparse, or of one of the types below."""
        found = re.fullmatch(r"argument (?:-\w/)?(-\S+): (.*)", message, re.DOTALL)
        option, text = found.groups() if found else ("", message)
        if text.startswith("is "):
            what, _, hint = text.rpartition("; ")
            raise UserError(f"{option} {what}", hint)
        if text.startswith("expected"):
            raise UserError(f"{option} needs a value", f"write {option}=VALUE")
        if text.startswith("ignored explicit argument"):
            raise UserError(f"{option} takes no value", f"write {option}")
        hint = f"`cerebra {self.command} --help` shows its options"
        raise UserError(f"{self.command}: {message}", hint)

    def options(self) -> list[str]:
        """Returns the long options, without their dashes."""
        return [
            word.removeprefix("--")
            for word in self._option_string_actions
            if word.startswith("--") and word != "--help"
        ]


# ---- types of values: each raises ArgumentTypeError("is ...; hint"), which Parser.error reads


def whole(least: int, most: int) -> Callable[[str], int]:
    """Returns the type of a whole number from `least` to `most`."""

    def read(text: str) -> int:
        # Python reads no more than 4,300 digits
        is_short = text.isdecimal() and len(text.lstrip("0")) <= len(str(most))
        if not is_short or not least <= int(text) <= most:
            raise _refused(text, f"give a whole number from {least:,} to {most:,}")
        return int(text)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Returns the type of a number from `least` to `most`."""

    def read(text: str) -> float:
        value = as_float(text)
        if not least <= value <= most:  # NaN is neither
            raise _refused(text, f"give a number from {least:g} to {most:g}")
        return value

    return read


def choice(*names: str) -> Callable[[str], str]:
    """Returns the type of one of these words."""

    def read(text: str) -> str:
        if text not in names:
            raise _refused(text, f"choose {', '.join(names[:-1])} or {names[-1]}")
        return text

    return read


def folder(text: str) -> Path:
    """Reads the name of a folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a folder")
    return Path(text)


def file(text: str) -> Path:
    """Reads the name of a file."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a file")
    return Path(text)


def as_float(text: str) -> float:
    """Returns the number that a text is, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def refuse(text: str, hint: str) -> NoReturn:
    """Raises what a type raises for text that it does not take."""
    raise _refused(text, hint)


def _refused(text: str, hint: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return argparse.ArgumentTypeError(f"is {shown!r}; {hint}")


def text_of(path: Path, usage: str) -> str:
    """Returns the text of a file that an option names; `usage` is the hint where there is none.

    UserError where it is no file, where it is too large, and where it is not text in UTF-8.
    """
    require(path.is_file(), f"there is no {path}", usage)
    with open(path, "rb") as file:
        data = file.read(LARGEST_TEXT + 1)
    require(
        len(data) <= LARGEST_TEXT,
        f"{path} is larger than {LARGEST_TEXT >> 20} MiB",
        "give a part of it",
    )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        what = f"{path}:{line} is not text in UTF-8 (byte {data[e.start]:#04x})"
        raise UserError(what, usage) from None
    if (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise UserError(f"{path}:{line} holds a NUL byte: it is no text", usage)
    return text


# ---- options that several commands have


def add_config(parser: Parser) -> None:
    """Declares --config and --config.KEY=VALUE; `configured` reads what they say."""
    parser.takes_keys = True
    parser.epilog = _KEYS_HELP
    parser.add_argument(
        "--config",
        metavar="FILE",
        default="",
        help="a configuration: FILE.py, FILE.py:PART or FILE.json",
    )


def add_run(parser: Parser) -> None:
    """Declares --workdir of a run that exists; `of_run` reads its configuration."""
    parser.takes_keys = True
    parser.epilog = (
        "The configuration is that of the run. --config.KEY=VALUE may change "
        f"{', '.join(RUN_KEYS)}."
    )
    parser.add_argument("--workdir", metavar="DIR", type=folder, help="the folder of the run")


def add_device(parser: Parser) -> None:
    """Declares --device; `aimed` reads it."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="",
        help=f"the chip that it is for, here or not: {', '.join(device.DEVICES)} "
        "(default objective.device, and without one the present chip)",
    )


def aimed(request: Request) -> None:
    """Enters --device into the configuration of a request. UserError where it is not known."""
    if request.device:
        device.given(request.device)
        objective = dataclasses.replace(request.cfg.objective, device=request.device)
        request.cfg = dataclasses.replace(request.cfg, objective=objective)


def add_verbose(parser: Parser) -> None:
    """Declares --verbose."""
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="also show what goes to log.txt otherwise"
    )


def add_strict(parser: Parser) -> None:
    """Declares --strict."""
    parser.add_argument(
        "--strict", action="store_true", help="end with status 2 where the data have a warning"
    )


def add_verify(parser: Parser) -> None:
    """Declares --verify."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="hash all prepared data again, large files too that look untouched",
    )


def doubting(request: Request, say: Callable[[str], None]) -> Callable[[str], None]:
    """Returns `say`; with --strict, one that raises UserError at the first warning."""

    def strictly(line: str) -> None:
        say(line)
        if line.startswith("warning:"):
            raise UserError("there is a warning, and --strict is given", "mend it, or say it")

    return strictly if request.strict else say


def configured(request: Request) -> None:
    """Adds cfg and name of --config to a request, and a workdir where none is given."""
    require(
        bool(request.config),
        "--config is missing",
        "try --config=configs/wikitext.py, or --help",
    )
    request.cfg = settings.load(request.config, request.overrides)
    request.name = settings.name_of(request.config)
    if getattr(request, "workdir", None) is None:
        request.workdir = _default_workdir(request.config, request.name, request.cfg.seed)


def of_run(request: Request, further: str = "") -> None:
    """Adds cfg of the run in --workdir to a request.

    Beside RUN_KEYS, keys that begin with `further` may change.
    """
    command = request.command
    require(
        request.workdir is not None,
        f"{command} needs --workdir",
        "give the folder of a run: --workdir=runs/NAME",
    )
    for key in request.overrides:
        may_change = key in RUN_KEYS or (further and key.startswith(further))
        require(
            bool(may_change),
            f"{command} cannot change {key}",
            f"the run's config.json rules; only {', '.join(RUN_KEYS)} may",
        )
    request.cfg = settings.load(str(request.workdir / "config.json"), request.overrides)


def new_folder(to: Path) -> None:
    """Raises UserError where something else is in a folder that a run is to be made in."""
    require(not to.is_file(), f"{to} is a file", "choose another --to")
    there = {path.name for path in to.iterdir()} if to.is_dir() else set()
    # a refused attempt leaves its log
    require(there <= {"log.txt"}, f"{to} is not empty", "choose another --to")


def _default_workdir(spec: str, name: str, seed: int) -> Path:
    if Path(spec).name == "config.json":  # a run's own configuration resumes that run
        return Path(spec).parent
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-s{seed}"
