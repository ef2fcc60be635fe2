"""Reads the command line: words become a checked `Request`, and every mistake a UserError.

Imports no JAX.

cerebra [COMMAND] [OPTION]... [--config.KEY=VALUE]...
"""

from __future__ import annotations

from cerebra_jax import config
from cerebra_jax.cli import commands
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.config import names
from cerebra_jax.errors import UserError

__all__ = ["Request", "command_help", "help_text", "parse", "read", "unknown_key"]

DEFAULT = "train"
_STATUSES = (
    "exit status: 0 done, 1 not certified or points failed, 2 your mistake, 70 a bug, 74 disk, "
    "75 stopped and saved, 77 diverged"
)


def parse(argv: list[str]) -> Request:
    """Returns the request of the words after the program's name, with the configuration that they
    name.
    """
    request = read(argv)
    module = commands.load(request.command)
    if hasattr(module, "check"):
        module.check(request)
    return request


def read(argv: list[str]) -> Request:
    """Returns the request of the words alone: no file is read."""
    has_command = bool(argv) and not argv[0].startswith("-")
    command = commands.find(argv[0]) if has_command else DEFAULT
    overrides, words = _without_keys(argv[1:] if has_command else argv)
    parser = _parser(command)
    request, unknown = parser.parse_known_args(words, Request())
    if unknown:
        raise _unknown(parser, unknown[0])
    for key in overrides:
        if not parser.takes_keys:
            raise UserError(f"{command} cannot change {key}", "it takes no --config.KEY")
    request.command, request.overrides = command, overrides
    return request


def help_text() -> str:
    """Returns the usage of the program and its commands."""
    lines = [
        "usage: cerebra [COMMAND] --config=FILE.py[:PART] [--config.KEY=VALUE]...",
        "       (or python -m cerebra_jax ...)",
        "",
        "commands:",
        *(f"  {name:<10} {command.help}" for name, command in commands.COMMANDS.items()),
        "",
        "`cerebra COMMAND --help` shows the options of a command.",
        "`cerebra keys` lists the configuration keys with their types, defaults, allowed values "
        "and meanings;",
        "`cerebra keys net.route` only those with these letters in their names.",
        "`cerebra --version` shows the version.",
        "",
        _STATUSES,
    ]
    return "\n".join(lines)


def command_help(argv: list[str]) -> str:
    """Returns the help that these words ask for: of a command, or of the program where they name
    none.
    """
    words = [word for word in argv if word != "help"]
    if not words or words[0].startswith("-"):
        return help_text()
    return _parser(commands.find(words[0])).format_help().rstrip()


def unknown_key(key: str) -> UserError:
    """Returns the error for a key that no configuration has."""
    inside = [k for k in config.fields() if k.startswith(f"{key}.")]
    if inside:
        hint = f"set one of its keys: --config.{inside[0]}=VALUE"
        return UserError(f"{key} is a section, not a key", hint)
    hint = config.suggest_key(key).replace("did you mean ", "did you mean --config.")
    return UserError(f"unknown key {key}", hint)


def _parser(command: str) -> Parser:
    parser = Parser(command, commands.COMMANDS[command].help)
    commands.load(command).add_arguments(parser)
    return parser


def _without_keys(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Returns ({configuration key: value as text}, the other words).

    Of a key that is given twice, the last value.
    """
    overrides: dict[str, str] = {}
    others: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        head, _, key = name.partition(".")
        if not word.startswith("-") or head not in ("config", "noconfig") or not key:
            others.append(word)
            continue
        key = names.current_key(key)
        keys = config.fields()
        if key not in keys:
            raise unknown_key(key)
        is_bool = isinstance(keys[key].default, bool) or key in names.SWITCHES
        usage = f"--config.{key}=VALUE"
        if head == "noconfig" and (equals or not is_bool):
            raise UserError(f"cannot read {word}", f"write {usage}")
        if is_bool and not equals:
            value = str(head == "config")
        elif not equals:
            if not left or left[0].startswith("--"):
                raise UserError(f"{word} needs a value", f"write {usage}")
            value = left.pop(0)
        overrides[key] = value
    return overrides, others


def _unknown(parser: Parser, word: str) -> UserError:
    """Returns the error for a word that a command does not take."""
    if not word.startswith("-"):
        hint = f"options are written --name=value; `cerebra {parser.command} --help` lists them"
        return UserError(f"unexpected argument {word!r}", hint)
    name = word.lstrip("-").partition("=")[0]
    what = f"{parser.command} takes no {word.partition('=')[0]}"
    near = _meant(parser, name)
    taken = ", ".join(f"--{option}" for option in parser.options())
    return UserError(what, f"did you mean {near}?" if near else f"it takes {taken}")


def _meant(parser: Parser, name: str) -> str:
    """Returns the option or the key that a word means, or is nearest to by its letters.

    "" where there is none.
    """
    options, keys = parser.options(), list(config.fields())
    # what the word means
    option = names.synonym(name, names.OPTIONS)
    if option in options:
        return f"--{option}"
    if parser.takes_keys:
        tails = {key.rpartition(".")[2]: key for key in reversed(keys)}
        word = name.replace("-", "_")
        key = name if name in keys else names.synonym(name, names.KEYS)
        if not key and word in tails:
            key = tails[word]
        if key:
            return f"--config.{key}"
    # what it is spelled like
    head, dot, rest = name.partition(".")
    near = config.suggest(head, options)
    if near:
        return f"--{_name_in(near)}{dot}{rest}"
    if dot and parser.takes_keys:
        near = config.suggest(name, keys)
        return f"--config.{_name_in(near)}" if near else ""
    return ""


def _name_in(hint: str) -> str:
    """Returns NAME of "did you mean NAME?"."""
    return hint.removeprefix("did you mean ").removesuffix("?")
