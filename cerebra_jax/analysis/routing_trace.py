"""What a routed model decides about given tokens, layer by layer, and what these very decisions cost."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.models import transformer
from cerebra_jax.models.model import MODELS, Model, neutral_knobs
from cerebra_jax.types import Batch


class Looked(NamedTuple):
    """Of R routed layers and T tokens, the rows of a batch one after the other: numpy."""

    score_RxT: np.ndarray  # float32, what the routers looked at
    kept_RxT: np.ndarray  # bool: took the heavy path
    mixed_RxT: np.ndarray  # bool: of the others, took CHIAR's RBF mixer
    flops_T: np.ndarray  # forward FLOPs of each token by the decisions taken
    dense_flops: int  # of the dense Transformer of the same shape, for the same tokens
    program_flops: (
        int  # what the program ran for them, counted: static capacities and padding included
    )
    program_dense_flops: int  # what the dense Transformer's program runs for such a batch


def look(model: Model, variables: Any, batch: Batch, count: int) -> Looked:
    """The decisions of one full pass about the first `count` tokens of the batch, thresholds as they stand.

    A row of n real tokens is priced as an example of n tokens against the dense Transformer of n tokens.
    """

    @jax.jit
    def decide(variables, batch):
        return model.apply(variables, batch, neutral_knobs())[1].scores

    def logits(variables, batch):
        out, _ = model.apply(variables, batch, neutral_knobs())
        return jnp.einsum("bld,vd->blv", out.h, out.head_VxD.astype(out.h.dtype))

    scores = decide(variables, batch)
    score_RxBxL, kept_RxBxL = np.asarray(scores["score"]), np.asarray(scores["kept"])
    mixed_RxBxL = np.asarray(scores.get("mixed", np.zeros_like(kept_RxBxL)))
    R, B, L = kept_RxBxL.shape
    vocab, flops, dense = model.module.vocab, [], 0
    for b in range(B):
        n = min(L, count - b * L)
        one, whole = token_flops(model.net, vocab, kept_RxBxL[:, b, :n], mixed_RxBxL[:, b, :n])
        flops.append(one)
        dense += whole
    return Looked(
        score_RxBxL.reshape(R, -1)[:, :count],
        kept_RxBxL.reshape(R, -1)[:, :count],
        mixed_RxBxL.reshape(R, -1)[:, :count],
        np.concatenate(flops),
        dense,
        jaxpr.count(logits, variables, batch).flops,
        B * model.dense.executed_flops,
    )


def token_flops(
    net: NetCfg, vocab: int, kept_RxL: np.ndarray, mixed_RxL: np.ndarray
) -> tuple[np.ndarray, int]:
    """-> ((L,) forward FLOPs of each token, those of the dense Transformer for all L of them).

    A token pays its share of what no decision changes; where it is kept, its own projections and every key it sees;
    where it takes the RBF mixer, that. Their sum is hard_B.
    """
    L = kept_RxL.shape[1]
    each, dense = (
        MODELS[net.name].decisions(net, L, vocab),
        transformer.cost(net, L, vocab).model_flops,
    )
    keys_RxL = kept_RxL if net.route.kv == "routed" else np.ones_like(kept_RxL)
    seen_RxL = (
        keys_RxL.cumsum(1)
        if net.causal
        else np.broadcast_to(keys_RxL.sum(1, keepdims=True), keys_RxL.shape)
    )
    own = [each.of(i) for i in range(len(kept_RxL))]
    token_Rx1, pair_Rx1 = (
        np.array(costs)[:, None] for costs in ([c.token for c in own], [c.pair for c in own])
    )
    relative_L = each.fixed / L + (
        kept_RxL * (token_Rx1 + pair_Rx1 * seen_RxL) + mixed_RxL * each.mixed
    ).sum(0)
    return dense * relative_L, dense
