"""Mixture-of-Depths (Raposo et al. 2024, arXiv:2404.02258): every second block runs for a few tokens, the rest skip it.

x += g · (a + FFN(LN(x + a))), a = attention(LN x), for the kept tokens, gathered into slots; the others pass unchanged.
The paper takes the top k of the sequence, which no causal model can know: here a causal model keeps the tokens above a
running quantile, as Cerebra does, with the same router and gate; an encoder the top k.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.layers import block, ends
from cerebra_jax.layers.scan_layers import repeat
from cerebra_jax.models import transformer
from cerebra_jax.routing import dispatch
from cerebra_jax.routing import routers as router
from cerebra_jax.types import FREE, Aux, Cost, DecisionCost, Knobs


class RoutedLayer(nn.Module):
    """A block that kept tokens take, x -> (x, y); y holds its costs, statistics and losses."""

    net: NetCfg
    L: int
    each: DecisionCost = FREE

    @nn.compact
    def __call__(
        self, x_BxLxD, tau, spread, layer, knobs: Knobs, pos_1xL, order, ex_B, mask_BxL, needed_BxL
    ):
        net, L = self.net, self.L
        norm = block.Norm(name="attention_norm")
        h_BxLxD = norm(x_BxLxD)
        decide = router.Router(net, name="router")
        r = decide(h_BxLxD, tau, spread, knobs.temperature, layer, ex_B, mask_BxL, needed_BxL)
        if net.route.dispatch:
            slots = dispatch.assign(r.wanted, router.layout(net, L), net.route.lowering)
            kept_BxL, x_BxKxD = slots.kept_BxL, dispatch.gather(x_BxLxD, slots)
            taken = (
                norm(x_BxKxD),
                slots.idx_BxK,
                dispatch.read(order, slots, L),
            )  # an empty slot stands at L
            plan = router.layout(net, L).plan(net.route.kv)
        else:
            slots, kept_BxL, x_BxKxD = None, r.wanted, x_BxLxD
            taken = (
                h_BxLxD,
                pos_1xL,
                order if net.route.kv == "all" else jnp.where(kept_BxL, order, L),
            )
            plan = block.dense_plan(net, L)
        (q, qpos, qorder), (m, kpos, korder) = (
            taken,
            (h_BxLxD, pos_1xL, order) if net.route.kv == "all" else taken,
        )
        scale = block.out_scale(net)
        plain = net.route.kv == "all" and not net.route.dispatch
        kernel = block.kernel_of(net, L) if plain else block.masked_kernel(net, plan)
        attention = block.Attention(net, plan, kernel, out_scale=scale, name="attention")
        a_BxKxD = attention(q, m, qpos, kpos, qorder, korder)
        ffn = block.FeedForward(net, out_scale=scale, name="ffn")
        f_BxKxD = a_BxKxD + ffn(block.Norm(name="ffn_norm")(x_BxKxD + a_BxKxD))
        gate_BxL = r.gate * kept_BxL
        x_BxLxD += block.Drop(net.dropout)(
            ex_B, dispatch.combine(gate_BxL.astype(x_BxLxD.dtype), f_BxKxD, slots=slots)
        )
        return x_BxLxD, router.report(
            net, L, self.each, r, kept_BxL, gate_BxL, mask_BxL, knobs.rate
        )


class Pair(nn.Module):
    """A block for all tokens, then one for the kept ones."""

    net: NetCfg
    L: int
    each: DecisionCost = FREE

    @nn.compact
    def __call__(
        self, x_BxLxD, tau, spread, layer, knobs: Knobs, pos_1xL, order, ex_B, mask_BxL, needed_BxL
    ):
        x_BxLxD, _ = _dense(self.net, self.L, "dense")(x_BxLxD, pos_1xL, order, ex_B, mask_BxL)
        routed = RoutedLayer(self.net, self.L, self.each, name="routed")
        return routed(
            x_BxLxD, tau, spread, layer, knobs, pos_1xL, order, ex_B, mask_BxL, needed_BxL
        )


def _dense(net: NetCfg, L: int, name: str):
    return transformer.DenseLayer(net, block.dense_plan(net, L), block.kernel_of(net, L), name=name)


class Mod(nn.Module):
    """Language model or encoder of net.depth blocks, the second, fourth, … of them routed.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth // 2, with a threshold; else empty.
    """

    net: NetCfg
    vocab: int
    each: DecisionCost | None = None  # in another unit than FLOPs

    @nn.compact
    def __call__(self, batch, knobs: Knobs, routing):
        net, ex_B, R = self.net, batch["ex_B"], self.net.depth // 2
        mask_BxL = batch["mask_BxL"] if "mask_BxL" in batch else None
        x_BxLxD, table_VxD = ends.embed(net, self.vocab, batch)
        B, L = x_BxLxD.shape[:2]
        places = (jnp.arange(L)[None], block.orders(net, L, mask_BxL), ex_B, mask_BxL)
        scanned = (
            routing.get("tau", jnp.zeros(R)),
            routing.get("spread", jnp.zeros(R)),
            jnp.arange(R),
        )
        each = self.each or decisions(net, L, self.vocab)
        kwargs = {"net": net, "L": L, "each": each}
        shared = (knobs, *places, router.needed(net, batch))
        x_BxLxD, y = repeat(Pair, net, R, kwargs, x_BxLxD, scanned, shared)
        if net.depth % 2:
            x_BxLxD, _ = _dense(net, L, "last")(x_BxLxD, *places)

        expected_B, hard_B = (each.fixed + y.pop(k).sum(0) for k in ("expected_B", "hard_B"))
        scores = {"score": y.pop("score"), "kept": y.pop("chosen")}
        y["score"] = scores["score"].mean(2)
        observed = {name: y.pop(name) for name in routing}
        losses = {"z_loss": net.route.z_loss * y["z_loss"].mean(0)} if "z_loss" in y else {}
        out = ends.finish(net, self.vocab, x_BxLxD, table_VxD, mask_BxL, batch["ex_B"])
        return out, Aux(expected_B, hard_B, y, observed, scores, losses)


def layers(net: NetCfg) -> range:
    """The routed layers."""
    return range(1, net.depth, 2)


def init_routing(net: NetCfg) -> dict[str, jax.Array]:
    """Thresholds of the routed blocks before any data."""
    return router.init_routing(dataclasses.replace(net, depth=net.depth // 2))


def cost(net: NetCfg, L: int, vocab: int) -> Cost:
    """Forward FLOPs per example, head included. `model` prices every token of a routed block as kept."""
    model, executed = (dict(part) for part in transformer.cost(net, L, vocab))
    slots, plan, keys = L, block.dense_plan(net, L), L
    if net.route.dispatch:
        lay = router.layout(net, L)
        slots, plan = lay.K, lay.plan(net.route.kv)
        keys = L if net.route.kv == "all" else slots
    for i in range(1, net.depth, 2):
        layer = f"layer_{i:02d}"
        if net.route.mode in router.SCORED:
            model[f"{layer}/router"] = executed[f"{layer}/router"] = router.router_flops(net, L)
        if net.route.dispatch and net.route.lowering == "onehot":
            model[f"{layer}/dispatch"], executed[f"{layer}/dispatch"] = (
                0,
                2 * dispatch.move_flops(lay, net.width),
            )
        executed[f"{layer}/attention"] = block.attention_flops(net.width, slots, keys, plan)
        executed[f"{layer}/ffn"] = block.ffn_flops(net, slots)
    return Cost(model, executed)


def _per_token(net: NetCfg) -> int:
    """FLOPs that one kept token adds to a routed block, scores apart."""
    projections = (2 if net.route.kv == "all" else 4) * prices.linear_flops(net.width, net.width)
    return projections + prices.ffn_flops(net.width, net.ffn_width, net.ffn)


def decisions(net: NetCfg, L: int, vocab: int) -> DecisionCost:
    """What the decisions cost in FLOPs."""
    dense = transformer.cost(net, L, vocab)
    layers = [(_per_token(net), 4 * net.width)] * (net.depth // 2)
    return router.decision_flops(net, L, layers, cost(net, L, vocab), dense)
