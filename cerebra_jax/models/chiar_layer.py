"""One layer of CHIAR that sends each token to one of its operators."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels.straight_through import threshold_for
from cerebra_jax.layers import block
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dct_filter import (
    AttentionLN,
    FeedForwardLN,
    Filter,
    dispatched,
    layout,
    seen,
)
from cerebra_jax.layers.rfa import Between
from cerebra_jax.routing import dispatch
from cerebra_jax.routing import routers as router
from cerebra_jax.routing.entropy_router import Decision, uses
from cerebra_jax.routing.routers import routed
from cerebra_jax.types import FREE, DecisionCost


class RoutedLayer(nn.Module):
    """One routed layer, x -> (x, y); scanned over its (τ, lower τ, spread, number). y holds its costs and statistics;
    nothing where every token goes one way."""

    net: NetCfg
    L: int
    kernel: str
    each: DecisionCost = FREE

    @nn.compact
    def __call__(
        self, x_BxLxD, tau, low, spread, layer, temperature, rate, pos_1xL, ex_B, cache=None
    ):
        net, route, L = self.net, self.net.route, self.L
        if not routed(net):
            return self._always(x_BxLxD, pos_1xL, ex_B, cache)
        light_BxLxD, X_BxLxD = Filter(net, seen(net), name="filter")(x_BxLxD)
        decide, drawn = Decision(net, name="router"), () if cache is None else (pos_1xL, L)
        choice = decide(x_BxLxD, X_BxLxD, temperature, tau, low, spread, layer, ex_B, *drawn)
        wanted, gate, p, score = choice.attention
        slots = rbf_kept = rbf_memory = None
        if choice.rbf:
            memory = None if cache is None else cache["rbf"]
            between = Between(net, L, name="rbf")
            light_BxLxD, rbf_kept, rbf_memory = between(
                x_BxLxD, light_BxLxD, choice.rbf, pos_1xL, ex_B, memory
            )
        if cache is not None:
            kept, qorder, used_BxS, step = cached.routed(
                net, cache, wanted, pos_1xL, layout(net, L)
            )
            attend = AttentionLN(net, (), self.kernel, name="heavy")
            heavy, kv = attend(x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B, qorder, step)
        elif dispatched(net):
            lay = layout(net, L)
            slots = dispatch.assign(wanted, lay, route.lowering)
            kept = slots.kept_BxL
            spos_BxK = (
                slots.idx_BxK
            )  # an empty slot stands at position L: no real query sees it as a key
            q_BxKxD = dispatch.gather(x_BxLxD, slots)
            memory, kpos = (x_BxLxD, pos_1xL) if route.kv == "all" else (q_BxKxD, spos_BxK)
            plan = lay.plan(route.kv)
            attend = AttentionLN(net, plan, block.masked_kernel(net, plan), name="heavy")
            heavy = attend(q_BxKxD, memory, spos_BxK, kpos, ex_B)
        else:
            kept, pos = wanted, pos_1xL
            if (
                route.kv == "routed"
            ):  # a token that is not routed is no key, and as a query it is thrown away
                pos = jnp.where(kept, pos_1xL, L)
            plan = att.causal_plan(L)
            kernel = self.kernel if route.kv == "all" else block.masked_kernel(net, plan)
            attend = AttentionLN(net, plan, kernel, name="heavy")
            heavy = attend(x_BxLxD, x_BxLxD, pos, pos, ex_B)
        x_BxLxD = dispatch.combine((gate * kept).astype(x_BxLxD.dtype), heavy, light_BxLxD, slots)
        x_BxLxD = FeedForwardLN(net, name="mlp")(x_BxLxD, ex_B)
        if cache is not None:
            new = {"heavy": kv, "used_BxS": used_BxS} | ({"rbf": rbf_memory} if choice.rbf else {})
            return x_BxLxD, {"kept": kept, "cache": new}

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
        y |= uses(choice, kept, rbf_kept, route.mode == "soft")
        if choice.rbf:
            y["expected_B"] += self.each.mixed * choice.rbf.p.sum(1)
            y["hard_B"] += self.each.mixed * rbf_kept.astype(jnp.float32).sum(1)
            y["mixed"] = rbf_kept
            y["overflow"] += (choice.rbf.wanted.astype(jnp.float32) - rbf_kept).mean(1)
        if route.mode == "threshold" or not (choice.rbf or route.mode == "random"):
            y |= {"tau": threshold_for(route, flat, rate), "spread": flat.std(axis=1)}
        if route.mode == "threshold" and choice.rbf:
            y["low"] = threshold_for(route, flat, rate, route.rbf)
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
                x_BxLxD, y["cache"]["heavy"] = heavy(
                    x_BxLxD, x_BxLxD, pos_1xL, pos_1xL, ex_B, pos_1xL, step
                )
        return FeedForwardLN(net, name="mlp")(x_BxLxD, ex_B), y
