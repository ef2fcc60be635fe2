"""Traces what a routed model decides about given tokens, layer by layer, and what that costs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost.device import present_platform
from cerebra_jax.cost.units import FLOPS
from cerebra_jax.models.model import Model, Pricing, neutral_knobs
from cerebra_jax.types import Batch


class Trace(NamedTuple):
    """The decisions of R routed layers on T tokens, the rows of a batch one after the other."""

    score_RxT: np.ndarray  # float32, what the routers looked at
    kept_RxT: np.ndarray  # bool: took the heavy path
    mixed_RxT: np.ndarray  # bool: of the others, took CHIAR's RBF mixer
    flops_T: np.ndarray  # forward FLOPs of each token by the decisions taken
    dense_flops: int  # of the dense Transformer of the same shape, for the same tokens
    program_flops: int  # what the program ran for them, with static capacities and padding
    program_dense_flops: int  # what the dense Transformer's program runs for such a batch


def trace(model: Model, variables: Any, batch: Batch, count: int) -> Trace:
    """Returns the decisions of one full pass about the first `count` tokens of the batch.

    Thresholds are as they stand. A row of n real tokens is priced as an example of n tokens,
    against the dense Transformer of n tokens.
    """

    @jax.jit
    def decide(variables, batch):
        _, aux = model.apply(variables, batch, neutral_knobs())
        return aux.scores

    def logits(variables, batch):
        out, _ = model.apply(variables, batch, neutral_knobs())
        return jnp.einsum("bld,vd->blv", out.h, out.head_VxD.astype(out.h.dtype))

    # the decisions
    scores = decide(variables, batch)
    score_RxBxL = np.asarray(scores["score"])
    kept_RxBxL = np.asarray(scores["kept"])
    mixed_RxBxL = np.zeros_like(kept_RxBxL)
    if "mixed" in scores:
        mixed_RxBxL = np.asarray(scores["mixed"])

    # their prices, row by row
    R, B, L = kept_RxBxL.shape
    flops = []
    dense_flops = 0
    for b in range(B):
        n = min(L, count - b * L)
        flops_n, dense = token_flops(
            model.net, model.module.vocab, kept_RxBxL[:, b, :n], mixed_RxBxL[:, b, :n]
        )
        flops.append(flops_n)
        dense_flops += dense

    return Trace(
        score_RxT=score_RxBxL.reshape(R, B * L)[:, :count],
        kept_RxT=kept_RxBxL.reshape(R, B * L)[:, :count],
        mixed_RxT=mixed_RxBxL.reshape(R, B * L)[:, :count],
        flops_T=np.concatenate(flops),
        dense_flops=dense_flops,
        program_flops=jaxpr.count(logits, variables, batch).flops,
        program_dense_flops=B * model.dense.executed_flops,
    )


def token_flops(
    net: NetCfg, vocab: int, kept_RxL: np.ndarray, mixed_RxL: np.ndarray
) -> tuple[np.ndarray, int]:
    """Returns the forward FLOPs of each token, (L,), and the dense Transformer's for all L of them.

    A token pays its share of what no decision changes. Where it is kept, it pays its own
    projections and every key that it sees; where it takes the RBF mixer, it pays that. The sum
    over tokens is hard_B.
    """
    L = kept_RxL.shape[1]
    prices = Pricing(L, vocab, FLOPS, present_platform())
    price = prices.decisions(net)
    dense = prices.dense(net)[0]

    # how many keys a query at each token sees
    is_key_RxL = kept_RxL if net.route.kv == "routed" else np.ones_like(kept_RxL)
    if net.causal:
        keys_RxL = is_key_RxL.cumsum(axis=1)
    else:
        keys_RxL = np.broadcast_to(is_key_RxL.sum(axis=1, keepdims=True), is_key_RxL.shape)

    token_Rx1, pair_Rx1, more_Rx1 = np.array(price.layers).T[..., None]
    heavy_RxL = kept_RxL * (token_Rx1 + pair_Rx1 * keys_RxL)
    relative_L = price.fixed / L + (heavy_RxL + mixed_RxL * more_Rx1).sum(axis=0)
    return dense * relative_L, dense
