"""Says what the backward pass finds kept: of an operation, and of a layer by net.remat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cerebra_jax.cost import prices

_AUTO = {"gpu": "dots", "old_gpu": "dots", "tpu": "full"}
"""What `auto` stands for on each platform; off on others. On a GPU writing and reading elementwise
results costs more than making them again, by a model of its time; on a TPU `full` takes less time
and memory than `dots`, by its compiler's estimate (benchmarks/README.md). No CPU was timed."""

_NAME = "keep"
# Beside matmuls: what convolves, and stock kernels, whose results carry their softmax sums.
_COSTLY = frozenset(("conv_general_dilated", "pallas_call"))
# What sorts and counts whole numbers for a dispatch: a few bytes per token, which would cost many
# small kernels to make again.
_COUNTING = frozenset(("sort", "top_k", "cumsum", "scatter", "scatter-add", "scatter_add"))


def chosen(remat: str, platform: str) -> str:
    """Returns what net.remat stands for on a platform: off, dots or full."""
    return _AUTO.get(platform, "off") if remat == "auto" else remat


def train_factor(remat: str, platform: str) -> int:
    """Returns the FLOPs of a training step per FLOP of its forward pass, which `full` repeats."""
    return prices.TRAIN_FACTOR + (chosen(remat, platform) == "full")


def keep(tree: Any) -> Any:
    """Returns a pytree of arrays that `dots` keeps, as it is.

    For what the backward pass of a kernel needs of its forward pass: sums, not scores.
    """
    return jax.tree.map(lambda x: checkpoint_name(x, _NAME), tree)


def keep_dots(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Returns whether `dots` keeps the results of an operation; a policy of `jax.checkpoint`.

    Kept are matmuls without batch axes, which is every product with a weight, convolutions, fused
    attention and what `keep` names. Products with batch axes are scores: they are many.
    """
    name = primitive.name
    # a kernel of cuDNN is one operation, whose name tells forward from backward
    if name in _COSTLY or "dot_product_attention_fwd" in name:
        return True
    if name in _COUNTING:
        return not any(jnp.issubdtype(x.dtype, jnp.inexact) for x in inputs)
    if name == "name":
        return params["name"] == _NAME
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **params)


def from_inputs(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns f, elementwise, whose backward pass is given its inputs alone.

    Elsewhere JAX keeps what lies between, of a GELU five arrays beside its input. Nothing keeps the
    compiler from using what it has already: unrolled layers on a CPU run the program of before.
    """
    made = jax.custom_vjp(f)

    def forward(*inputs):
        return f(*inputs), inputs

    def backward(inputs, slope):
        return jax.vjp(f, *inputs)[1](slope)

    made.defvjp(forward, backward)
    return made


@jax.custom_vjp
def settled(x):
    """Returns x as it is; its gradient is written to memory before anything reads it.

    For a gradient that takes long to compute and that a sum over rows reads beside matmuls: a GPU's
    compiler else fuses it with the sum, and puts its transcendentals into a kernel before.
    """
    return x


settled.defvjp(lambda x: (x, None), lambda _, slope: (jax.lax.optimization_barrier(slope),))
