"""Measures how much the loss depends on what each routed layer gets of each token.

The measure is the norm of a gradient, and one backward pass gives all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import cerebra_block, chiar_block, mod_block, registry
from cerebra_jax.models.model import Model, neutral_knobs
from cerebra_jax.types import Batch

ROUTED_LAYERS = (chiar_block.RoutedBlock, cerebra_block.RoutedBlock, mod_block.RoutedBlock)


class Probed(NamedTuple):
    """What was measured on a language model's batch, per routed layer and token."""

    # ‖∂ (nats of all real tokens of the example) / ∂ (the layer's input at this token)‖₂
    norm_RxBxL: jax.Array
    nats_BxL: jax.Array  # loss of the next token, told at this one; 0 where it weighs 0
    score_RxBxL: jax.Array
    kept_RxBxL: jax.Array  # bool


def probe(model: Model) -> Callable[[Any, Batch], Probed]:
    """Returns probe(variables, batch) of a language model, jitted.

    It is the evaluation's own pass with its decisions as they are. A decision by threshold is
    constant around its input, so its gradient is that of the path taken, and of the gate.
    """
    unrolled = _unrolled(model)
    R = len(registry.routed(model.net))

    @jax.jit
    def run(variables, batch):
        """Returns the norms, by the gradient for a shift of 0 at each layer's input."""
        B, L = batch["inputs_BxL"].shape

        def loss(shifts):
            out, aux = _shifted(unrolled, variables, batch, shifts)
            nats, nats_BxL = chunked_xent(
                out.h,
                out.head_VxD,
                batch["labels_BxL"],
                batch["w_BxL"],
                unrolled.net.loss_chunk,
                each=True,
            )
            return nats, (nats_BxL, aux.scores)

        shifts = [jnp.zeros((B, L, unrolled.net.width))] * R
        gradients, (nats_BxL, scores) = jax.grad(loss, has_aux=True)(shifts)
        norm_RxBxL = jnp.stack([jnp.sqrt(jnp.square(g_BxLxD).sum(-1)) for g_BxLxD in gradients])
        return Probed(norm_RxBxL, nats_BxL, scores["score"], scores["kept"])

    def probe_of(variables: Any, batch: Batch) -> Probed:
        chex.assert_rank(batch["inputs_BxL"], 2)
        chex.assert_equal_shape([batch[key] for key in ("inputs_BxL", "labels_BxL", "w_BxL")])
        return run(_unstacked(variables), batch)

    return probe_of


def _shifted(model: Model, variables: Any, batch: Batch, shifts: list[jax.Array]):
    """Returns `model.apply` with shifts[r] (B, L, D) added to the r-th routed layer's input."""
    remaining = iter(shifts)

    def add(layer, args, kwargs, context):
        if isinstance(context.module, ROUTED_LAYERS) and context.method_name == "__call__":
            x_BxLxD = args[0]
            args = (x_BxLxD + next(remaining).astype(x_BxLxD.dtype), *args[1:])
        return layer(*args, **kwargs)

    with nn.intercept_methods(add):
        return model.apply(variables, batch, neutral_knobs())


def _unrolled(model: Model) -> Model:
    """Returns the same model with a module of its own for each layer."""
    net = dataclasses.replace(model.net, scan=False, remat="off")
    return dataclasses.replace(model, net=net, module=model.module.clone(net=net))


def _unstacked(variables: Any) -> Any:
    """Returns parameters that are stacked over scanned layers as those of single layers."""
    params = dict(variables["params"])
    if "layers" in params:
        stacked = params.pop("layers")
        depth = len(jax.tree.leaves(stacked)[0])
        for i in range(depth):
            params[f"layer_{i:02d}"] = _layer(stacked, i)
    return {**variables, "params": params}


def _layer(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], stacked)
