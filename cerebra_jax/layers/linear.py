"""Linear layers on the last axis, in the form that XLA's CPU runs fastest."""

from __future__ import annotations

import flax.linen as nn
import jax

from cerebra_jax.kernels.matmul import on_rows
from cerebra_jax.layers.parameters import Dense


def normal(std: float = 0.02) -> nn.initializers.Initializer:
    """Returns the initial distribution of most weights: normal with this standard deviation."""
    return nn.initializers.normal(std)


def as_matrix(layer: nn.Module, x: jax.Array) -> jax.Array:
    """Returns layer(x) for x of any number of axes, computed on its rows as one matrix."""
    return on_rows(layer, x)


def linear(x: jax.Array, width: int, std: float, name: str, *, bias: bool = False) -> jax.Array:
    """Returns a new linear layer of the calling module applied to x, (…, n) -> (…, width).

    To be called inside a compact method. The products are in the dtype of x, weights are float32.
    """
    layer = Dense(width, bias, x.dtype, kernel_init=normal(std), name=name)
    return as_matrix(layer, x)
