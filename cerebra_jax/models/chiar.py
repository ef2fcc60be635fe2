"""CHIAR-Former (arXiv:2606.08327): a DCT filter for most tokens, attention for those whose spectrum is complex.

Layer 1 filters every token, blended with the identity by the MetaRouter; layers 2 … n−1 send each token to the filter
or to attention; layer n attends everywhere. x = LN(x + op(x)), then x = LN(x + FFN(x)). The filter mixes features, not
tokens. Only routed tokens run the attention queries (`ops.dispatch`); what overflows the slots keeps the filter.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.models import block, ends, router, transformer
from cerebra_jax.models.decoding import cache as cached
from cerebra_jax.models.router import Decision, MetaRouter, routed
from cerebra_jax.ops import attend as att
from cerebra_jax.ops import dispatch, spectral
from cerebra_jax.ops.gates import threshold_for
from cerebra_jax.types import FREE, Aux, Cost, DecisionCost, Knobs, Out


class Filter(nn.Module):
    """LN(x + iDCT(w ⊙ DCT(x))) over the features of each token, w = 1 at the start; also returns DCT(x), float32."""

    net: NetCfg

    @nn.compact
    def __call__(self, x_BxLxD):
        method = self.net.route.dct
        w_D = self.param("w", nn.initializers.ones, (self.net.width,), jnp.float32)
        X_BxLxD = spectral.dct(x_BxLxD.astype(jnp.float32), method)
        y_BxLxD = spectral.idct(w_D[None, None] * X_BxLxD, method).astype(x_BxLxD.dtype)
        if self.net.compat:
            y_BxLxD, X_BxLxD = 2 * y_BxLxD, spectral.published_scale(self.net.width)[None, None] * X_BxLxD
        return block.Norm(name="norm")(x_BxLxD + y_BxLxD), X_BxLxD


class FeedForwardLN(nn.Module):
    """x = LN(x + FFN(x))."""

    net: NetCfg

    @nn.compact
    def __call__(self, x_BxLxD, ex_B):
        y = block.FeedForward(self.net, bias=True, name="ffn")(x_BxLxD)
        return block.Norm(name="norm")(x_BxLxD + block.Drop(self.net.dropout)(ex_B, y))


class AttentionLN(nn.Module):
    """x = LN(x + Attention(x)) for gathered or all tokens: queries (B, Q, D) over memory (B, K, D), or over a cache."""

    net: NetCfg
    plan: att.Plan
    kernel: str

    @nn.compact
    def __call__(self, q_BxQxD, m_BxKxD, qpos, kpos, ex_B, qorder=None, step: cached.Step | None = None):
        attention = block.Attention(self.net, self.plan, self.kernel, bias=True, name="attention")
        korder = None if qorder is None else kpos
        y, kv = attention(q_BxQxD, m_BxKxD, qpos, kpos, qorder, korder, step), None
        if step is not None:
            y, kv = y
        x_BxQxD = block.Norm(name="norm")(q_BxQxD + block.Drop(self.net.dropout)(ex_B, y))
        return x_BxQxD if step is None else (x_BxQxD, kv)


class RoutedLayer(nn.Module):
    """One routed layer, x -> (x, y); scanned over its (τ, spread, number). y holds its costs and statistics; nothing
    where every token goes one way."""

    net: NetCfg
    L: int
    kernel: str
    each: DecisionCost = FREE

    @nn.compact
    def __call__(self, x_BxLxD, tau, spread, layer, temperature, rate, pos_1xL, ex_B, cache=None):
        net, route, L = self.net, self.net.route, self.L
        if not routed(net):
            return self._always(x_BxLxD, pos_1xL, ex_B, cache)
        light_BxLxD, X_BxLxD = Filter(net, name="filter")(x_BxLxD)
        decide, drawn = Decision(net, name="router"), () if cache is None else (pos_1xL, L)
        wanted, gate, p, score = decide(x_BxLxD, X_BxLxD, temperature, tau, spread, layer, ex_B, *drawn)
        if cache is not None:
            kept, qorder, used_BxS, step = cached.routed(net, cache, wanted, pos_1xL, layout(net, L))
            heavy = AttentionLN(net, (), self.kernel, name="heavy")
            heavy_BxLxD, kv = heavy(x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B, qorder, step)
        elif dispatched(net):
            lay = layout(net, L)
            slots = dispatch.assign(wanted, lay, route.lowering)
            kept = slots.kept_BxL
            spos_BxK = slots.idx_BxK  # an empty slot stands at position L: no real query sees it as a key
            q_BxKxD = dispatch.gather(x_BxLxD, slots)
            memory, kpos = (x_BxLxD, pos_1xL) if route.kv == "all" else (q_BxKxD, spos_BxK)
            plan = lay.plan(route.kv)
            heavy = AttentionLN(net, plan, block.masked_kernel(net, L, plan), name="heavy")
            heavy_BxLxD = dispatch.scatter(heavy(q_BxKxD, memory, spos_BxK, kpos, ex_B), slots)
        else:
            kept, pos = wanted, pos_1xL
            if route.kv == "routed":  # a token that is not routed is no key, and as a query it is thrown away
                pos = jnp.where(kept, pos_1xL, L)
            plan = att.causal_plan(L)
            kernel = self.kernel if route.kv == "all" else block.masked_kernel(net, L, plan)
            heavy = AttentionLN(net, plan, kernel, name="heavy")
            heavy_BxLxD = heavy(x_BxLxD, x_BxLxD, pos, pos, ex_B)
        x_BxLxD = block.mix((gate * kept).astype(x_BxLxD.dtype), heavy_BxLxD, light_BxLxD)
        x_BxLxD = FeedForwardLN(net, name="mlp")(x_BxLxD, ex_B)
        if cache is not None:
            return x_BxLxD, {"kept": kept, "cache": {"heavy": kv, "used_BxS": used_BxS}}

        kept_BxL = kept.astype(jnp.float32)
        flat = jax.lax.stop_gradient(score)
        y = {
            "expected_B": router.decided(net, p, L, self.each),
            "hard_B": router.decided(net, kept_BxL, L, self.each),
            "kept": kept_BxL.mean(1),
            "wanted": router.fullest(wanted, True),
            "overflow": (wanted.astype(jnp.float32) - kept_BxL).mean(1),
            "score": flat,
            "chosen": kept,
        }
        if route.mode != "random":
            y |= {"tau": threshold_for(route, flat, rate), "spread": flat.std(axis=1)}
        return x_BxLxD, y

    def _always(self, x_BxLxD, pos_1xL, ex_B, cache):
        """The layer of a control: all tokens take the filter, or all attend."""
        net, y = self.net, {} if cache is None else {"cache": {}}
        if net.route.mode == "always_compressed":
            x_BxLxD, _ = Filter(net, name="filter")(x_BxLxD)
        else:
            heavy = AttentionLN(net, att.causal_plan(self.L), self.kernel, name="heavy")
            if cache is None:
                x_BxLxD = heavy(x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B)
            else:
                step = cached.Step(cache["heavy"], pos_1xL)
                x_BxLxD, y["cache"]["heavy"] = heavy(x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B, pos_1xL, step)
        return FeedForwardLN(net, name="mlp")(x_BxLxD, ex_B), y


def layers(net: NetCfg) -> range:
    """The routed layers."""
    return range(1, net.depth - 1 if routed(net) else 1)


def static_scores(net: NetCfg, params, ids_BxL):
    """Entropies of the tokens' embeddings, (B, L): what the paper calibrates thresholds on, though the layers that use
    them see something else."""
    x_BxLxD = params["embed"]["table"][ids_BxL].astype(net.dtype)
    _, X_BxLxD = Filter(net).apply({"params": params["first_filter"]}, x_BxLxD)
    return router.entropy(net, x_BxLxD, X_BxLxD)


def dispatched(net: NetCfg) -> bool:
    return net.route.dispatch and net.route.mode != "soft" and routed(net)


def layout(net: NetCfg, L: int) -> dispatch.Layout:
    """Slots of the dispatch; as many as tokens where there is none."""
    return dispatch.layout(L, min(1.0, net.route.rate * net.route.capacity) if dispatched(net) else 1.0)


def _per_token(net: NetCfg) -> int:
    """FLOPs that one routed token adds, scores apart: its query and output projections, with kv=routed its k and v."""
    return (2 if net.route.kv == "all" else 4) * prices.linear_flops(net.width, net.width)


class Chiar(nn.Module):
    """CHIAR-Former language model; (B, L) tokens -> features and tied output matrix (`Out`), and `Aux`.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth − 2: thresholds of the routed layers and the spread of
    their scores; empty where nothing is compared with a threshold. Constants here; the training step lets them follow
    what `Aux.observed` reports.
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
        first_mlp = FeedForwardLN(net, name="first_mlp")
        light_BxLxD = first_mlp(light_BxLxD, ex_B) if net.compat else light_BxLxD  # the gate is then around both
        if net.route.meta != "off":
            meta = MetaRouter(net.route.meta, name="meta_router")
            if cache is None:
                g_BxLx1 = meta(x_BxLxD)
            else:
                g_BxLx1, rest["sum_BxD"] = meta(x_BxLxD, cache.rest["sum_BxD"], pos_1xL, real)
            stats["meta_gate"] = g_BxLx1.mean((1, 2))
            light_BxLxD = block.mix(g_BxLx1.astype(x_BxLxD.dtype), light_BxLxD, x_BxLxD)
        x_BxLxD = light_BxLxD if net.compat else first_mlp(light_BxLxD, ex_B)

        R = net.depth - 2
        each = self.each or decisions(net, L, self.vocab)
        layer = {"net": net, "L": L, "kernel": kernel, "each": each}
        expected_B = hard_B = jnp.full(B, each.fixed, jnp.float32)
        observed, scores, y = {}, {}, {"cache": ()}
        if R:
            shared = (knobs.temperature, knobs.rate, pos_1xL, ex_B)
            none_R = jnp.zeros(R)
            scanned = (routing.get("tau", none_R), routing.get("spread", none_R), jnp.arange(R))
            layers = None if cache is None else cache.layers
            x_BxLxD, y = block.repeat(RoutedLayer, net, R, layer, x_BxLxD, scanned, shared, layers)
        if R and cache is None and routed(net):
            expected_B += y.pop("expected_B").sum(0)
            hard_B += y.pop("hard_B").sum(0)
            observed = {name: y.pop(name) for name in routing}
            scores = {"score": y.pop("score"), "kept": y.pop("chosen")}
            stats |= y | {"score": scores["score"].mean(2)}
        if net.route.mode == "soft":  # both branches run for every token, whatever the gates say
            hard_B = jnp.full(B, router.kept_cost(net, L, each, 1.0), jnp.float32)

        heavy = AttentionLN(net, att.causal_plan(L), kernel, name="last_heavy")
        step = None if cache is None else cached.Step(cache.rest["heavy"], pos_1xL)
        x_BxLxD = heavy(x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B, None if cache is None else pos_1xL, step)
        if cache is not None:
            x_BxLxD, rest["heavy"] = x_BxLxD
        x_BxLxD = FeedForwardLN(net, name="last_mlp")(x_BxLxD, ex_B)
        out = Out(block.Norm(name="norm")(x_BxLxD), table_VxD)
        if cache is not None:
            return out, cached.advance(cache, pos_1xL, y["cache"], y.get("kept"), **rest)
        return out, Aux(expected_B, hard_B, stats, observed, scores, {})


def cost(net: NetCfg, L: int, vocab: int) -> Cost:
    """Forward FLOPs per example, head included. `model` prices every routed token as attending (the ceiling)."""
    D, R = net.width, net.depth - 2
    filter_flops = 2 * L * prices.dct_flops(D, net.route.dct)
    score = score_flops(net, L)
    kv = L * prices.linear_flops(D, 2 * D) if net.route.kv == "all" else 0
    routed_ceiling = L * _per_token(net) + 4 * D * prices.causal_pairs(L)
    if dispatched(net):
        lay = layout(net, L)
        heavy = block.attention_flops(D, lay.K, L if net.route.kv == "all" else lay.K, lay.plan(net.route.kv))
    elif net.route.kv == "all" or not routed(net):
        heavy = block.dense_attention_flops(net, L)
    else:
        heavy = block.attention_flops(D, L, L, att.causal_plan(L))
    model, executed = {}, {}

    def add(name: str, flops: int, run: int | None = None) -> None:
        model[name], executed[name] = flops, flops if run is None else run

    add("layer_00/filter", filter_flops)
    if net.route.meta != "off":
        add("layer_00/meta_router", L * prices.linear_flops(D, 1))
    add("layer_00/ffn", block.ffn_flops(net, L))
    for i in range(1, R + 1):
        if net.route.mode != "always_full":
            add(f"layer_{i:02d}/filter", filter_flops)
        if routed(net):
            add(f"layer_{i:02d}/router", score)
        if net.route.mode != "always_compressed":
            add(f"layer_{i:02d}/attention", kv + routed_ceiling, heavy)
        if dispatched(net) and net.route.lowering == "onehot":  # to the slots and back
            add(f"layer_{i:02d}/dispatch", 0, 2 * dispatch.move_flops(layout(net, L), D))
        add(f"layer_{i:02d}/ffn", block.ffn_flops(net, L))
    last = f"layer_{R + 1:02d}"
    add(f"{last}/attention", block.attention_model_flops(net, L), block.dense_attention_flops(net, L))
    add(f"{last}/ffn", block.ffn_flops(net, L))
    add("head", block.head_flops(net, L, vocab))
    return Cost(model, executed)


def score_flops(net: NetCfg, L: int) -> int:
    """Forward FLOPs per example of the decisions: a threshold looks at what the filter has computed, but for features
    in another order, which have a DCT of their own; chance looks at nothing."""
    if net.route.mode in ("hard", "soft"):
        return L * prices.linear_flops(net.width, 1)
    return L * prices.dct_flops(net.width, net.route.dct) if net.route.score == "permuted" else 0


def decisions(net: NetCfg, L: int, vocab: int) -> DecisionCost:
    """What the decisions cost in FLOPs."""
    dense, layers = transformer.cost(net, L, vocab), net.depth - 2 if routed(net) else 0
    return router.decision_flops(net, L, layers, _per_token(net), cost(net, L, vocab), dense)


def init_routing(net: NetCfg) -> dict[str, jax.Array]:
    """Thresholds before any data: the entropy of Gaussian noise, about where untrained tokens stand (in any order of
    the features, with a DCT or without)."""
    if net.route.mode == "random" or not routed(net):
        return {}
    R = net.depth - 2
    tau = spectral.gaussian_entropy(net.width) if net.route.mode == "threshold" else 0.0
    return {"tau": jnp.full(R, tau, jnp.float32), "spread": jnp.full(R, 0.15 * net.width**-0.5, jnp.float32)}
