"""What is private to JAX about cuDNN's attention; no other file touches it."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

_NEEDED = ("dot_product_attention", "_dot_product_attention_bwd_p_wrapper", "MaskType")

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


@functools.cache
def is_known() -> bool:
    """Returns whether this JAX has what `forward` and `backward` call, where they look for it."""
    try:
        binding = _binding()
    except ImportError:
        return False
    return all(hasattr(binding, name) for name in _NEEDED)


def forward(q_BxQxHxC, k_BxKxHxC, v_BxKxHxC, causal: bool) -> tuple[jax.Array, jax.Array]:
    """Returns (attention, log Σ exp(scores) in float32 (B, H, Q)); it has no gradient."""
    binding = _binding()
    return binding.dot_product_attention(
        q_BxQxHxC,
        k_BxKxHxC,
        v_BxKxHxC,
        scale=q_BxQxHxC.shape[-1] ** -0.5,
        mask_type=_mask_type(causal),
        return_residual=True,
    )


def backward(rows, k_BxKxHxC, v_BxKxHxC, causal: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of queries, keys and values.

    rows: (queries, log Σ exp(scores), results, gradients of the results). The sums and the results
    may be those over more keys than these: the gradients are then this part of the whole ones.
    """
    q_BxQxHxC, lse_BxHxQ, o_BxQxHxC, do_BxQxHxC = rows
    none = jnp.zeros(0, q_BxQxHxC.dtype)
    return tuple(
        _binding()._dot_product_attention_bwd_p_wrapper.bind(
            q_BxQxHxC,
            k_BxKxHxC,
            v_BxKxHxC,
            *[none] * 7,  # bias, lengths, offsets and pages
            lse_BxHxQ,
            o_BxQxHxC,
            do_BxQxHxC,
            scale=q_BxQxHxC.shape[-1] ** -0.5,
            seed=42,
            dropout_rate=0.0,
            variadic_args=(False, False),
            mask_type=_mask_type(causal),
            layout=0,
            sliding_window_length=None,
        )
    )


def _mask_type(causal: bool) -> Any:
    kinds = _binding().MaskType
    return kinds.CAUSAL if causal else kinds.NO_MASK
