"""Names of a program's operations: the modules that they are of, and the regions that are one.

Three name scopes (`jax.named_scope`) change what `cost/count.py` counts inside them:

    RECURRENCE               elementwise operations and reductions are FLOPs, of kind "scan"
    FUSED_ATTENTION          one operation: FLOPs as usual, bytes of the operands from outside and
                             of the results used outside; what lies between stays on the chip
    FUSED_CAUSAL_ATTENTION   the same, and a product over all L x L pairs has the FLOPs of the
                             L (L + 1) / 2 visible ones, which is what a causal kernel runs
"""

from __future__ import annotations

import functools
import re
from typing import Any

RECURRENCE = "diagonal_recurrence"
FUSED_ATTENTION = "fused_attention"
FUSED_CAUSAL_ATTENTION = "fused_causal_attention"


def scope_of(eqn: Any, around: str) -> str:
    """Returns the name stacks of an equation and of those around it, as JAX writes them.

    Calls of a function that is named as a fused region are one.
    """
    parts = [around, str(eqn.source_info.name_stack)]
    if eqn.params.get("name") in (FUSED_ATTENTION, FUSED_CAUSAL_ATTENTION):
        parts.append(eqn.params["name"])
    return "/".join(part for part in parts if part)


_WRAPPED = re.compile(r"^\w+\((.*)\)$")
_MACHINERY = frozenset("body branch checkpoint closed_call cond rematted_computation while".split())


@functools.lru_cache(maxsize=1 << 14)
def module_path(stack: str) -> str:
    """Returns the path of flax modules in a name stack.

    Wrappers such as transpose(jvp(…)), the root module's class, names of methods and what JAX
    names its own machinery are left out, and repetitions (of a module that is computed again).
    """
    parts: list[str] = []
    root = None
    for i, part in enumerate(_split(stack)):
        while match := _WRAPPED.match(part):
            part = match.group(1)
        for name in part.split("/"):
            name = name.partition(".")[0]
            if i == 0 and root is None and name[:1].isupper():
                root = name
            machinery = name in _MACHINERY or name.startswith("branch_") or "->" in name
            if name and name != root and not machinery and parts[-1:] != [name]:
                parts.append(name)
    return "/".join(parts)


def _split(stack: str) -> list[str]:
    """Splits a name stack at the slashes that stand outside of parentheses."""
    parts, depth = [""], 0
    for letter in stack:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "/" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@functools.lru_cache(maxsize=1 << 14)
def region_of(stack: str) -> str | None:
    """Returns the name stack up to a fused region, None outside of one.

    The stacks of forward and backward passes differ, so that they are two regions.
    """
    parts = _split(stack) if "fused_" in stack else []
    for i, part in enumerate(parts):
        name = module_path(part).rpartition("/")[2]
        if name in (FUSED_ATTENTION, FUSED_CAUSAL_ATTENTION):
            return "/".join(parts[: i + 1])
    return None
