"""The position-wise feed-forward layer."""

from __future__ import annotations

import flax.linen as nn
import jax

from cerebra_jax.kernels.remat import from_inputs, settled
from cerebra_jax.layers.linear import linear
from cerebra_jax.layers.prunable import Group, Member


@from_inputs
def _gelu(x):
    return jax.nn.gelu(x, approximate=True)


@from_inputs
def _exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


@from_inputs
def _gated(gate, x):
    return jax.nn.silu(gate) * x


class FeedForward(nn.Module):
    """Computes W_down·act(W_up x) for each row: (…, D) -> (…, D).

    The activation is GELU (tanh form; `exact`: with the error function), or with kind="gated" a
    SiLU gate, W_down(silu(W_gate x) ⊙ W_up x) (Shazeer 2020, arXiv:2002.05202). `share` multiplies
    the hidden features, where given.
    """

    width: int
    hidden: int
    kind: str = "gelu"
    bias: bool = False
    std: float = 0.02
    out_scale: float = 1.0
    exact: bool = False

    @nn.compact
    def __call__(self, x, share=None):
        h = linear(x, self.hidden, self.std, "up", bias=self.bias)
        if self.bias:
            h = settled(h)  # the gradient of the bias is a sum over rows
        if self.kind == "gated":
            gate = linear(x, self.hidden, self.std, "gate", bias=self.bias)
            h = _gated(gate, h)
        else:
            h = _exact_gelu(h) if self.exact else _gelu(h)
        h = h if share is None else h * share
        return linear(h, self.width, self.std * self.out_scale, "down", bias=self.bias)

    def prunable(self, place: str, layer: int, kind: str = "ffn") -> list[Group]:
        """Returns its hidden features, which pruning may remove; `place` is its parameter path."""
        makers = ("up", "gate") if self.kind == "gated" else ("up",)
        members = [Member(f"{place}/{name}/kernel", 1) for name in makers]
        if self.bias:
            members += [Member(f"{place}/{name}/bias", 0) for name in makers]
        down = Member(f"{place}/down/kernel", 0)
        return [Group(down.name, layer, kind, self.hidden, (down, *members))]
