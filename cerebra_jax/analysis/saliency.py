"""How much the loss depends on what each routed layer gets of each token: norms of gradients, one backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import cerebra, chiar
from cerebra_jax.models.baselines import mod
from cerebra_jax.models.model import MODELS, Model, neutral_knobs
from cerebra_jax.types import Batch

ROUTED_LAYERS = (chiar.RoutedLayer, cerebra.RoutedBlock, mod.RoutedLayer)


class Probed(NamedTuple):
    """Of a language model's batch, per routed layer and token."""

    norm_RxBxL: (
        jax.Array
    )  # ‖∂ (nats of all real tokens of the example) / ∂ (the layer's input at this token)‖₂
    nats_BxL: jax.Array  # loss of the next token, told at this one; 0 where it weighs 0
    score_RxBxL: jax.Array
    kept_RxBxL: jax.Array  # bool


def probe(model: Model) -> Callable[[Any, Batch], Probed]:
    """probe(variables, batch) of a language model, jitted: the evaluation's own pass with its decisions as they are.

    A decision by threshold is constant around its input, so its gradient is that of the path taken, and of the gate.
    """
    whole = _unrolled(model)
    R = len(MODELS[model.name].layers(model.net))

    def run(variables, batch):
        B, L = batch["inputs_BxL"].shape

        def loss(shifts):
            out, aux = _shifted(whole, variables, batch, shifts)
            nats, nats_BxL = chunked_xent(
                out.h,
                out.head_VxD,
                batch["labels_BxL"],
                batch["w_BxL"],
                whole.net.loss_chunk,
                each=True,
            )
            return nats, (nats_BxL, aux.scores)

        grads, (nats_BxL, scores) = jax.grad(loss, has_aux=True)(
            [jnp.zeros((B, L, whole.net.width))] * R
        )
        norm_RxBxL = jnp.stack([jnp.sqrt(jnp.square(g).sum(-1)) for g in grads])
        return Probed(norm_RxBxL, nats_BxL, scores["score"], scores["kept"])

    compiled = jax.jit(run)
    return lambda variables, batch: compiled(_unstacked(variables), batch)


def _shifted(model: Model, variables: Any, batch: Batch, shifts: list[jax.Array]):
    """`model.apply` with shifts[r] (B, L, D) added to the input of the r-th routed layer."""
    left = iter(shifts)

    def add(layer, args, kwargs, context):
        if isinstance(context.module, ROUTED_LAYERS) and context.method_name == "__call__":
            args = (args[0] + next(left).astype(args[0].dtype), *args[1:])
        return layer(*args, **kwargs)

    with nn.intercept_methods(add):
        return model.apply(variables, batch, neutral_knobs())


def _unrolled(model: Model) -> Model:
    """The same model with a module of its own for each layer."""
    net = dataclasses.replace(model.net, scan=False, remat=False)
    return dataclasses.replace(model, net=net, module=model.module.clone(net=net))


def _unstacked(variables: Any) -> Any:
    """Parameters stacked over scanned layers, as those of single ones."""
    params = dict(variables["params"])
    if "layers" in params:
        stacked = params.pop("layers")
        depth = len(jax.tree.leaves(stacked)[0])
        params |= {
            f"layer_{i:02d}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)
        }
    return {**variables, "params": params}
