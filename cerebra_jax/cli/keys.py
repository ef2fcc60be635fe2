"""keys: lists the configuration keys with type, default, allowed values and meaning."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator

from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.config.values import type_name
from cerebra_jax.display import say


def add_arguments(parser: Parser) -> None:
    """Declares the words that choose keys."""
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="show only keys with one of these in their names"
    )


def check(request: Request) -> None:
    """Raises UserError where no key is chosen."""
    chosen = _chosen(request.words)
    words = ", ".join(request.words)
    require(bool(chosen), f"no key has {words} in its name", "`cerebra keys` lists all of them")


def run(request: Request) -> None:
    """Prints the keys, section by section."""
    for line in lines(request.words):
        say(line)


def lines(words: list[str]) -> Iterator[str]:
    """Yields the lines of the keys that have one of the words in their names, or of all keys."""
    yield "configuration keys (--config.KEY=VALUE): type, default, meaning, allowed values"
    section = None
    for key, field in _chosen(words).items():
        head = key.rpartition(".")[0]
        if head != section:
            yield ""
            section = head
        default = "empty" if field.default == () else json.dumps(field.default)
        meaning = f"{field.metadata['doc']}{_allowed(field)}"
        kind = "path" if field.metadata["place"] else type_name(field)
        yield f"  {key:<27} {kind:<13} {default:<15} {meaning}"


def _chosen(words: list[str]) -> dict[str, dataclasses.Field]:
    fields = config.fields()
    if not words:
        return fields
    return {key: field for key, field in fields.items() if any(word in key for word in words)}


def _allowed(field: dataclasses.Field) -> str:
    choices, least, most = (field.metadata[name] for name in ("of", "lo", "hi"))
    if field.metadata["place"] == "write":
        return " [not from a file of data]"
    if choices:
        return f" [{' | '.join(json.dumps(x) if x == '' else str(x) for x in choices)}]"
    if least == -math.inf and most == math.inf:
        return ""
    return f" [{least:g} or more]" if most == math.inf else f" [{least:g} to {most:g}]"
