"""CHIAR-Former (arXiv:2606.08327): a DCT filter for most tokens, attention for those whose spectrum is complex.

Layer 1 filters every token, blended with the identity by the MetaRouter; layers 2 … n−1 send each token to the filter
or to attention; layer n attends everywhere. x = LN(x + op(x)), then x = LN(x + FFN(x)). The filter mixes features, not
tokens. Only routed tokens run the attention queries (`routing.dispatch`); what overflows the slots keeps the filter. With
net.route.rbf > 0 there is a third operator, a causal mixer in linear time. The layers stand in `models.operators`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels import dct as spectral
from cerebra_jax.layers import block, ends, shapes
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers import rfa as rbf
from cerebra_jax.layers.dct_filter import (
    AttentionLN,
    FeedForwardLN,
    Filter,
    dispatched,
    filter_flops,
    layout,
    methods,
    seen,
)
from cerebra_jax.layers.scan_layers import repeat
from cerebra_jax.models import transformer
from cerebra_jax.models.chiar_layer import RoutedLayer
from cerebra_jax.routing import dispatch
from cerebra_jax.routing import routers as router
from cerebra_jax.routing.entropy_router import entropy
from cerebra_jax.routing.routers import MetaRouter, routed
from cerebra_jax.types import Aux, Cost, DecisionCost, Knobs, Out


def layers(net: NetCfg) -> range:
    """The routed layers."""
    return range(1, net.depth - 1 if routed(net) else 1)


def static_scores(net: NetCfg, params, ids_BxL):
    """Entropies of the tokens' embeddings, (B, L): what the paper calibrates thresholds on, though the layers that use
    them see something else."""
    x_BxLxD = params["embed"]["table"][ids_BxL].astype(net.dtype)
    _, X_BxLxD = Filter(net, seen=True).apply({"params": params["first_filter"]}, x_BxLxD)
    return entropy(net, x_BxLxD, X_BxLxD)


def _per_token(net: NetCfg) -> tuple[int, int]:
    """FLOPs that one routed token adds to a layer, scores apart: its query and output projections, with kv=routed its
    k and v. And those of each key that it sees."""
    inner = shapes.inner(net)
    return (2 if net.route.kv == "all" else 4) * prices.linear_flops(net.width, inner), 4 * inner


class Chiar(nn.Module):
    """CHIAR-Former language model; (B, L) tokens -> features and tied output matrix (`Out`), and `Aux`.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth − 2: thresholds of the routed layers and the spread of
    their scores, with an RBF mixer "low" too, the lower thresholds; empty where nothing is compared with one. Constants
    here; the training step lets them follow what `Aux.observed` reports.
    """

    net: NetCfg
    vocab: int
    each: DecisionCost | None = None  # in another unit than FLOPs

    @nn.compact
    def __call__(self, batch, knobs: Knobs, routing, cache: cached.Cache | None = None):
        net = self.net
        ids_BxL, ex_B = batch["inputs_BxL"], batch["ex_B"]
        B, n = ids_BxL.shape
        L, pos_1xL, real = cached.places(batch, n, cache)
        kernel = block.kernel_of(net, L)
        x_BxLxD, table_VxD = ends.Embed(self.vocab, net, name="embed")(ids_BxL)
        x_BxLxD = block.Drop(net.dropout)(ex_B, x_BxLxD)

        stats, rest = {}, {}
        light_BxLxD, _ = Filter(net, name="first_filter")(x_BxLxD)
        first_mlp = FeedForwardLN(shapes.of(net, 0), name="first_mlp")
        light_BxLxD = (
            first_mlp(light_BxLxD, ex_B) if net.compat else light_BxLxD
        )  # the gate is then around both
        if net.route.meta != "off":
            meta = MetaRouter(net.route.meta, net.tasks, name="meta_router")
            if cache is None:
                g_BxLx1 = meta(
                    x_BxLxD, task_B=batch["task_B"] if net.route.meta == "task" else None
                )
            else:
                g_BxLx1, rest["sum_BxD"] = meta(x_BxLxD, cache.rest["sum_BxD"], pos_1xL, real)
            stats["meta_gate"] = g_BxLx1.mean((1, 2))
            light_BxLxD = dispatch.combine(g_BxLx1.astype(x_BxLxD.dtype), light_BxLxD, x_BxLxD)
        x_BxLxD = light_BxLxD if net.compat else first_mlp(light_BxLxD, ex_B)

        R = net.depth - 2
        each = self.each or decisions(net, L, self.vocab)
        layer = {"net": net, "L": L, "kernel": kernel, "each": each}
        expected_B = hard_B = jnp.full(B, each.fixed, jnp.float32)
        observed, scores, y = {}, {}, {"cache": ()}
        if R:
            shared = (knobs.temperature, knobs.rate, pos_1xL, ex_B)
            none_R = jnp.zeros(R)
            scanned = (
                *(routing.get(name, none_R) for name in ("tau", "low", "spread")),
                jnp.arange(R),
            )
            layers = None if cache is None else cache.layers
            x_BxLxD, y = repeat(
                RoutedLayer, net, R, layer, x_BxLxD, scanned, shared, layers, first=1
            )
        if R and cache is None and routed(net):
            expected_B += y.pop("expected_B").sum(0)
            hard_B += y.pop("hard_B").sum(0)
            observed = {name: y.pop(name) for name in routing}
            scores = {"score": y.pop("score"), "kept": y.pop("chosen")}
            scores |= {"mixed": y.pop("mixed")} if net.route.rbf else {}
            stats |= y | {"score": scores["score"].mean(2)}
        if net.route.mode == "soft":  # both branches run for every token, whatever the gates say
            hard_B = jnp.full(B, router.kept_cost(net, L, each, 1.0), jnp.float32)

        last = shapes.of(net, net.depth - 1)
        heavy = AttentionLN(last, att.causal_plan(L), kernel, name="last_heavy")
        step = None if cache is None else cached.Step(cache.rest["heavy"], pos_1xL)
        x_BxLxD = heavy(
            x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B, None if cache is None else pos_1xL, step
        )
        if cache is not None:
            x_BxLxD, rest["heavy"] = x_BxLxD
        x_BxLxD = FeedForwardLN(last, name="last_mlp")(x_BxLxD, ex_B)
        out = Out(block.Norm(name="norm")(x_BxLxD), table_VxD)
        if cache is not None:
            return out, cached.advance(cache, pos_1xL, y["cache"], y.get("kept"), **rest)
        losses = (
            {"collapse": -net.route.collapse * stats["use_entropy"].mean(0)}
            if net.route.collapse and R
            else {}
        )
        return out, Aux(expected_B, hard_B, stats, observed, scores, losses)


def cost(net: NetCfg, L: int, vocab: int) -> Cost:
    """Forward FLOPs per example, head included. `model` prices every routed token as attending (the ceiling)."""
    D, R = net.width, net.depth - 2
    filtered = L * filter_flops(net, seen(net))
    score = score_flops(net, L)
    model, executed = {}, {}
    first, *between, end = shapes.each(net)

    def add(name: str, flops: int, run: int | None = None) -> None:
        model[name], executed[name] = flops, flops if run is None else run

    add("layer_00/filter", L * filter_flops(net, seen=False))
    if net.route.meta in ("prefix", "batch"):
        add("layer_00/meta_router", L * prices.linear_flops(D, 1))
    add("layer_00/ffn", block.ffn_flops(first, L))
    for i, each in enumerate(between, 1):
        if net.route.mode != "always_full":
            add(f"layer_{i:02d}/filter", filtered)
        if routed(net):
            add(f"layer_{i:02d}/router", score)
        if net.route.rbf:
            add(f"layer_{i:02d}/rbf", L * sum(rbf.per_token(net)), rbf.run_flops(net, L))
        if net.route.mode != "always_compressed":
            add(f"layer_{i:02d}/attention", *_heavy_flops(each, L))
        if dispatched(net) and net.route.lowering == "onehot":  # to the slots and back
            moved = [
                layout(net, L),
                *([rbf.slots(net, L)] if net.route.rbf and rbf.gathered(net) else []),
            ]
            add(f"layer_{i:02d}/dispatch", 0, 2 * sum(dispatch.move_flops(lay, D) for lay in moved))
        add(f"layer_{i:02d}/ffn", block.ffn_flops(each, L))
    last = f"layer_{R + 1:02d}"
    add(
        f"{last}/attention",
        block.attention_model_flops(end, L),
        block.dense_attention_flops(end, L),
    )
    add(f"{last}/ffn", block.ffn_flops(end, L))
    add("head", ends.head_flops(net, L, vocab))
    return Cost(model, executed)


def _heavy_flops(net: NetCfg, L: int) -> tuple[int, int]:
    """(model, executed) forward FLOPs of the attention of a routed layer."""
    D, inner, every = net.width, shapes.inner(net), net.route.kv == "all"
    kv, (token, pair) = L * prices.linear_flops(D, 2 * inner) if every else 0, _per_token(net)
    ceiling = kv + L * token + pair * prices.causal_pairs(L)
    if dispatched(net):
        lay = layout(net, L)
        return ceiling, block.attention_flops(
            D, lay.K, L if every else lay.K, lay.plan(net.route.kv), inner=inner
        )
    if every or not routed(net):
        return ceiling, block.dense_attention_flops(net, L)
    return ceiling, block.attention_flops(D, L, L, att.causal_plan(L), inner=inner)


def score_flops(net: NetCfg, L: int) -> int:
    """Forward FLOPs per example of the decisions: a threshold looks at what the filter has computed, but for features
    in another order, which have a DCT of their own; chance looks at nothing."""
    if net.route.mode in ("hard", "soft"):
        return L * prices.linear_flops(net.width, 3 if net.route.rbf else 1)
    return (
        L * prices.dct_flops(net.width, methods(net).transform)
        if net.route.score == "permuted"
        else 0
    )


def decisions(net: NetCfg, L: int, vocab: int) -> DecisionCost:
    """What the decisions cost in FLOPs."""
    dense = transformer.cost(shapes.whole(net), L, vocab)
    mixed = rbf.decided_flops(net) if net.route.rbf else 0
    own = [_per_token(each) for each in shapes.each(net)[1:-1]] if routed(net) else []
    return router.decision_flops(net, L, own, cost(net, L, vocab), dense, mixed)


def init_routing(net: NetCfg) -> dict[str, jax.Array]:
    """Thresholds before any data: the entropy of Gaussian noise, about where untrained tokens stand (in any order of
    the features, with a DCT or without)."""
    if net.route.mode == "random" or not routed(net):
        return {}
    R = net.depth - 2
    tau = spectral.gaussian_entropy(net.width) if net.route.mode == "threshold" else 0.0
    found = {"tau": tau, "spread": 0.15 * net.width**-0.5}
    if net.route.rbf:
        found = found | {"low": tau} if net.route.mode == "threshold" else {}
    return {name: jnp.full(R, value, jnp.float32) for name, value in found.items()}
