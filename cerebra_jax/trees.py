"""Named parameters, and name-pattern rules that must hit every parameter exactly once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns {'layers/ffn/up/kernel': leaf} for a nested dict of arrays, in sorted order."""
    out: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key in sorted(node):
                walk(f"{prefix}/{key}" if prefix else str(key), node[key])
        else:
            out[prefix] = node

    walk("", tree)
    return out


def map_named(function: Callable[[str], Any], tree: Any) -> Any:
    """Returns the tree with each leaf replaced by what the function makes of its name."""

    def walk(prefix: str, node: Any) -> Any:
        if isinstance(node, dict):
            return {k: walk(f"{prefix}/{k}" if prefix else str(k), v) for k, v in node.items()}
        return function(prefix)

    return walk("", tree)


def label(tree: Any, rules: list[tuple[str, str]]) -> Any:
    """Returns the tree with each leaf replaced by the label of the one rule that matches its name.

    A rule is (regular expression, label). Raises ValueError where no rule or more than one rule
    matches: a parameter that no rule covers is a bug.
    """

    def of(name: str) -> str:
        hits = [found for pattern, found in rules if re.fullmatch(pattern, name)]
        if len(hits) != 1:
            raise ValueError(f"{name}: {len(hits)} rules match {hits}")
        return hits[0]

    return map_named(of, tree)
