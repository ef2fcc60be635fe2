"""8 bits: the linear layers of a model multiply int8 by int8 into int32, weights scaled per output
channel, activations per token, so that no token's rounding depends on another one. Router, norms,
embeddings, the tied logits, pooled heads, MetaRouter, DCT and attention scores stay float32. By
qwix, an extra, which intercepts the layers that `rules` names.

`trained`: float32 parameters, rounded on the way into every product, gradients straight through
(Jacob et al. 2018, arXiv:1712.05877; Bengio et al. 2013, arXiv:1308.3432). `stored`: the same
products of parameters that are int8.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.errors import UserError
from cerebra_jax.models.quantized_names import LINEAR, holds

Params = dict[str, Any]


def trained(module: nn.Module) -> nn.Module:
    """The module in 8 bits, with the parameters it had; UserError where qwix is missing."""
    qwix, training = _library(), importlib.import_module("qwix._src.core.dot_general_qt")

    class Provider(qwix.QtProvider):
        """qwix 0.1.8 takes any operand of a kernel's shape for the kernel, so also as many tokens
        as it has rows: in the layers of `LINEAR` the left one is activations, always. Gradients are
        of the operands before rounding.
        """

        def _create_dot_general_qt_config(self, rule, op_id, lhs, rhs):
            return training.DotGeneralQtConfig(
                lhs_qtype=jnp.int8, rhs_qtype=jnp.int8, use_original_residuals=True
            )

    return qwix.quantize_model(module, Provider(_rules(qwix)))


@dataclasses.dataclass(frozen=True)
class Stored:
    """A module whose kernels are int8, as `convert` makes them: {"int8": (..., D, E), "scale":
    (..., 1, E)}.
    """

    module: nn.Module  # float

    @property
    def vocab(self) -> int:
        return self.module.vocab

    def init(self, *args: Any, **kwargs: Any) -> dict[str, Params]:
        """As of the module, rounded."""
        return {
            "params": convert(self.module.init(*args, **kwargs)["params"], self.module.net.dtype)
        }

    def apply(self, variables: dict[str, Params], *args: Any, **kwargs: Any) -> Any:
        """As of the module; there is no gradient."""
        qwix = _library()
        aux = importlib.import_module("qwix._src.providers.ptq").WithAux

        def boxed(node: Any) -> Any:
            if isinstance(node, dict) and node.keys() == {"int8", "scale"}:
                return aux(qwix.QArray(node["int8"], node["scale"]), None)
            return {k: boxed(v) for k, v in node.items()} if isinstance(node, dict) else node

        module = qwix.quantize_model(self.module, qwix.PtqProvider(_rules(qwix)))
        return module.apply({**variables, "params": boxed(variables["params"])}, *args, **kwargs)


def convert(params: Params, dtype: str) -> Params:
    """The parameters of `Stored`: what `trained` rounds, rounded once and for all.

    The float kernels are gone.
    """
    qwix = _library()

    @jax.jit
    def rounded(w):
        found = qwix.quantize(w.astype(dtype), jnp.int8, channelwise_axes=(w.ndim - 1,))
        return {"int8": found.qvalue, "scale": found.scale}

    def walk(prefix: str, node: Any) -> Any:
        if isinstance(node, dict):
            return {k: walk(f"{prefix}/{k}" if prefix else k, v) for k, v in node.items()}
        if not holds(prefix):
            return node
        return (
            jax.vmap(rounded)(node) if prefix.startswith("layers/") else rounded(node)
        )  # stacked by net.scan

    return walk("", params)


def _rules(qwix: Any) -> list[Any]:
    """One rule for all; jnp.einsum is another operation, and stays as it is."""
    return [qwix.QuantizationRule(module_path=LINEAR, op_names=("dot_general",),
                                  weight_qtype=jnp.int8, act_qtype=jnp.int8)]  # fmt: skip


def _library() -> Any:
    try:
        return importlib.import_module("qwix")
    except ImportError:
        raise UserError(
            "8 bits need qwix, which is not installed", "pip install 'cerebra-jax[quant]'"
        ) from None
