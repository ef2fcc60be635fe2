"""What is private to JAX about cuDNN's attention; no other file touches it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

_VERSION = 91200
"""cuDNN 9.12: that of a program for a GPU which is not there."""


def _binding() -> Any:
    """Returns JAX's module of that name; raises ImportError where it has moved."""
    return importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")


@contextlib.contextmanager
def without_a_gpu() -> Iterator[None]:
    """Lets JAX trace cuDNN's attention where there is no GPU.

    It asks the present one for its version and its compute capability, which are answered here as
    by a Hopper with a current cuDNN.
    """
    binding = _binding()
    with contextlib.ExitStack() as stack:
        answers = {"check_cudnn_version": _VERSION, "check_compute_capability": True}
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(binding, name, lambda *_, a=answer: a))
        name = "is_cuda_compute_capability_equal"
        stack.enter_context(mock.patch.object(binding, name, lambda version: version == "9.0"))
        yield
