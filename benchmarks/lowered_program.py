"""Reads the text of a program before compilation (StableHLO): what must and must not be in it.

This module imports nothing of the package and no JAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

FUSED = {"gpu": "__cudnn$fmha", "tpu": "tpu_custom_call"}
_TENSOR = re.compile(r"tensor<((?:\d+x)*)([a-z]+[a-z0-9]*)>")
_DOT = re.compile(
    r"stablehlo\.dot_general .*contracting_dims = \[([\d, ]*)\].* : "
    r"\((tensor<[^>]*>), tensor<[^>]*>\) -> (tensor<[^>]*>)"
)
_HOST = ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv")


class Array(NamedTuple):
    """Describes an array of the program."""

    sizes: tuple[int, ...]
    dtype: str


def _array(text: str) -> Array:
    found = _TENSOR.search(text)
    assert found, text
    sizes = tuple(int(n) for n in found.group(1).split("x") if n)
    return Array(sizes, found.group(2))


def fused_calls(text: str, platform: str) -> int:
    """Returns how often a fused attention kernel is called, in the text of the program."""
    return sum("custom_call" in line and FUSED[platform] in line for line in text.splitlines())


def squares(text: str, length: int) -> set[tuple[int, ...]]:
    """Returns the sizes of arrays in which every token meets every other."""
    found = {_array(one.group()).sizes for one in _TENSOR.finditer(text)}
    return {sizes for sizes in found if sizes.count(length) > 1}


def float_scatters(text: str) -> list[Array]:
    """Returns the arrays of floats that rows are added to, or put into, by index."""
    found = []
    for start in re.finditer(r"stablehlo\.scatter\"?\(", text):
        end = re.compile(r"\}\) : \((tensor<[^>]*>)").search(text, start.end())
        assert end, "a scatter has a type"
        array = _array(end.group(1))
        if array.dtype.startswith(("f", "bf")):
            found.append(array)
    return found


def host_calls(text: str) -> list[str]:
    """Returns the lines in which the program calls its host."""
    calls = (line.strip() for line in text.splitlines() if "custom_call" in line or "feed" in line)
    return [line[:120] for line in calls if any(word in line for word in _HOST)]


def dots(text: str) -> Iterator[tuple[str, int]]:
    """Yields (dtype of the operands, FLOPs) of each matmul, loops counted once."""
    for line in text.splitlines():
        if found := _DOT.search(line):
            left, result = _array(found.group(2)), _array(found.group(3))
            depth = math.prod(left.sizes[int(i)] for i in re.findall(r"\d+", found.group(1)))
            yield left.dtype, 2 * depth * math.prod(result.sizes)


def wide_dots(text: str) -> float:
    """Returns which part of the FLOPs of matmuls has operands of float32."""
    total = wide = 0
    for dtype, flops in dots(text):
        total += flops
        wide += flops * (dtype == "f32")
    return wide / max(1, total)
