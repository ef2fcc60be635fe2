"""Cerebra: a stack of blocks that route each token to a heavy path or leave it on a compressed, light one.

Per block, pre-LayerNorm: x += g · attention + (1 − g) · compressed attention, then x += FFN. The heavy attention runs
for the kept tokens alone, gathered with their positions (`routing.dispatch`); the light one for all. With route.part=block
the FFN is routed too: every token runs its first ceil(s F) hidden features, kept tokens the others as well, so that a
kept token has the full width F and nothing is computed twice. Causal with a threshold, an encoder with top-k.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.layers import block, compressor, ends, shapes
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.compressor import ceil_share
from cerebra_jax.layers.scan_layers import repeat
from cerebra_jax.models import transformer
from cerebra_jax.routing import dispatch
from cerebra_jax.routing import routers as router
from cerebra_jax.routing.routers import routed
from cerebra_jax.types import FREE, Aux, Cost, DecisionCost, Knobs


class RoutedBlock(nn.Module):
    """One block, x -> (x, y); scanned over its (τ, spread, number). y holds its costs, statistics and losses."""

    net: NetCfg
    L: int
    each: DecisionCost = FREE

    @nn.compact
    def __call__(
        self,
        x_BxLxD,
        tau,
        spread,
        layer,
        knobs: Knobs,
        pos_1xL,
        order,
        ex_B,
        mask_BxL,
        needed_BxL,
        cache=None,
    ):
        net, mode = self.net, self.net.route.mode
        scale, drop, y = block.out_scale(net), block.Drop(net.dropout), {}
        h_BxLxD = block.Norm(name="attention_norm")(x_BxLxD)

        kept = slots = g = step = qorder = None
        new = {}  # the cache after these tokens
        if routed(net):
            decide, drawn = (
                router.Router(net, name="router"),
                () if cache is None else (pos_1xL, self.L),
            )
            r = decide(
                h_BxLxD, tau, spread, knobs.temperature, layer, ex_B, mask_BxL, needed_BxL, *drawn
            )
            kept = r.wanted
            if cache is not None:
                found = cached.routed(net, cache, r.wanted, pos_1xL, layout(net, self.L))
                kept, qorder, new["used_BxS"], step = found
            elif dispatched(net):
                slots = dispatch.assign(r.wanted, router.layout(net, self.L), net.route.lowering)
                kept = slots.kept_BxL
            gate_BxL = r.gate * kept
            g = gate_BxL[..., None].astype(x_BxLxD.dtype)
            y = {"kept": kept}
            if cache is None:
                y = router.report(net, self.L, self.each, r, kept, gate_BxL, mask_BxL, knobs.rate)
        elif cache is not None and "heavy" in cache:
            step, qorder = cached.Step(cache["heavy"], pos_1xL), order

        heavy = light = None
        if step is not None:
            attend = block.Attention(net, (), "full", out_scale=scale, name="heavy")
            heavy, new["heavy"] = attend(h_BxLxD, h_BxLxD, pos_1xL, pos_1xL, qorder, order, step)
        elif mode != "always_compressed":
            heavy = self._attention(h_BxLxD, kept, slots, pos_1xL, order, scale)
        if mode != "always_full":
            light, more = self._light(h_BxLxD, pos_1xL, order, mask_BxL, scale, cache)
            (y if cache is None else new).update(more)
        mixed = (
            light
            if heavy is None
            else heavy
            if light is None
            else dispatch.combine(g, heavy, light, slots)
        )
        if net.local:
            mixed += block.local(net, h_BxLxD, mask_BxL, cache, new)
        x_BxLxD += drop(ex_B, mixed)
        h_BxLxD = block.Norm(name="ffn_norm")(x_BxLxD)
        x_BxLxD += drop(ex_B, self._ffn(h_BxLxD, g, slots, scale, step and step.run))
        return x_BxLxD, y if cache is None else y | {"cache": new}

    def _light(self, h_BxLxD, pos_1xL, order, mask_BxL, scale, cache):
        """The compressed attention, and what it adds: the reconstruction loss, or the cache after these tokens."""
        net = self.net
        compress = compressor.Compressor(net, self.L, name="compressor")
        attend = compressor.CompressedAttention(net, self.L, scale, name="light")
        if cache is None:
            c_BxMxE, seen, lost_B = compress(h_BxLxD, mask_BxL)
            more = {} if lost_B is None else {"reconstruct": lost_B}
            return attend(h_BxLxD, c_BxMxE, seen, pos_1xL, order), more
        win = compressor.windows(self.L, net.compress.r)
        ends = compressor.closing(win, self.L, pos_1xL)
        c_BxmxE, recent = compress(h_BxLxD, None, ends, cache["recent"])
        seen = ends.j_Bxm < len(win.last_M)
        light, kv = attend(h_BxLxD, c_BxmxE, seen, pos_1xL, order, ends, cache["light"])
        return light, {"light": kv, "recent": recent}

    def _attention(self, h_BxLxD, kept, slots, pos_1xL, order, scale):
        """The heavy attention: of the slots (B, K, D), or of all tokens."""
        net, L, all_keys = (
            self.net,
            self.L,
            self.net.route.kv == "all" or self.net.route.mode in _UNROUTED,
        )
        if slots is None:
            if not all_keys:  # a token that is not kept is no key, and as a query it is thrown away
                order = jnp.where(kept, order, L)
            plan = block.dense_plan(net, L)
            kernel = block.kernel_of(net, L) if all_keys else block.masked_kernel(net, plan)
            heavy = block.Attention(net, plan, kernel, out_scale=scale, name="heavy")
            return heavy(h_BxLxD, h_BxLxD, pos_1xL, pos_1xL, order, order)
        plan = router.layout(net, L).plan(net.route.kv)
        heavy = block.Attention(
            net, plan, block.masked_kernel(net, plan), out_scale=scale, name="heavy"
        )
        q_BxKxD, idx_BxK = dispatch.gather(h_BxLxD, slots), slots.idx_BxK
        order_BxK = dispatch.read(
            order, slots, L
        )  # an empty slot stands at L: no real query sees it as a key
        memory, kpos, korder = (
            (h_BxLxD, pos_1xL, order) if all_keys else (q_BxKxD, idx_BxK, order_BxK)
        )
        return heavy(q_BxKxD, memory, idx_BxK, kpos, order_BxK, korder)

    def _ffn(self, h_BxLxD, g, slots, scale, run=None):
        net = self.net
        narrow, rest = ffn_widths(net)
        if rest == 0:
            return block.FeedForward(net, out_scale=scale, name="ffn")(h_BxLxD)
        part = lambda width, name: block.FeedForward(  # noqa: E731
            shapes.with_hidden(net, width), out_scale=scale, name=name
        )
        out = part(narrow, "ffn_light")(h_BxLxD)
        if net.route.mode == "always_compressed":
            return out
        if slots is not None:
            extra = part(rest, "ffn_rest")
            return out + dispatch.combine(g, extra(dispatch.gather(h_BxLxD, slots)), slots=slots)
        wide = cached.when(
            run, lambda module, x: part(rest, "ffn_rest")(x), self, h_BxLxD, net.width
        )
        return out + (wide if g is None else dispatch.combine(g, wide))


_UNROUTED = ("always_full", "always_compressed", "soft")


def dispatched(net: NetCfg) -> bool:
    return net.route.dispatch and net.route.mode not in _UNROUTED


def layers(net: NetCfg) -> range:
    """The routed layers."""
    return range(net.depth if routed(net) else 0)


def layout(net: NetCfg, L: int) -> dispatch.Layout:
    """Slots of the dispatch; as many as tokens where there is none."""
    return router.layout(net, L) if dispatched(net) else dispatch.layout(L, 1.0)


def ffn_widths(net: NetCfg) -> tuple[int, int]:
    """Hidden features of a layer that every token runs, and those that only kept tokens add."""
    narrow = (
        ceil_share(net.compress.s, net.ffn_width) if net.route.part == "block" else net.ffn_width
    )
    return shapes.hidden(net, narrow), shapes.rest(net, net.ffn_width - narrow)


def _per_token(net: NetCfg) -> tuple[int, int]:
    """FLOPs that one kept token adds to a layer, scores apart: q and output projections, with kv=routed its k and v;
    its FFN. And those of each key that it sees."""
    projections = (2 if net.route.kv == "all" else 4) * prices.linear_flops(
        net.width, shapes.inner(net)
    )
    token = projections + prices.ffn_flops(net.width, ffn_widths(net)[1], net.ffn)
    return token, prices.attention_pairs_flops(1, shapes.inner(net))


class Cerebra(nn.Module):
    """Routed language model or encoder; (B, L) tokens -> features and tied output matrix (`Out`), and `Aux`.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth, with a threshold; else empty. Constants here; the
    training step lets them follow what `Aux.observed` reports.
    """

    net: NetCfg
    vocab: int
    each: DecisionCost | None = None  # in another unit than FLOPs

    @nn.compact
    def __call__(self, batch, knobs: Knobs, routing, cache: cached.Cache | None = None):
        net, ex_B = self.net, batch["ex_B"]
        x_BxLxD, table_VxD = ends.embed(net, self.vocab, batch)
        B, n = x_BxLxD.shape[:2]
        L, pos, mask_BxL = cached.places(batch, n, cache)
        order = block.orders(net, L, mask_BxL) if cache is None else pos
        none_R = jnp.zeros(net.depth)
        scanned = (routing.get("tau", none_R), routing.get("spread", none_R), jnp.arange(net.depth))
        shared = (knobs, pos, order, ex_B, mask_BxL, router.needed(net, batch))
        each = self.each or decisions(net, L, self.vocab)
        kwargs = {"net": net, "L": L, "each": each}
        layers = None if cache is None else cache.layers
        x_BxLxD, y = repeat(RoutedBlock, net, net.depth, kwargs, x_BxLxD, scanned, shared, layers)
        out = ends.finish(net, self.vocab, x_BxLxD, table_VxD, mask_BxL, batch["ex_B"])
        if cache is not None:
            return out, cached.advance(cache, pos, y["cache"], y.get("kept"))

        expected_B = hard_B = jnp.full(B, each.fixed, jnp.float32)
        observed, scores = {}, {}
        if routed(net):
            expected_B += y.pop("expected_B").sum(0)
            hard_B += y.pop("hard_B").sum(0)
            scores = {"score": y.pop("score"), "kept": y.pop("chosen")}
            y["score"] = scores["score"].mean(2)
            observed = {name: y.pop(name) for name in routing}
        if net.route.mode == "soft":  # both paths run for every token, whatever the gates say
            hard_B = jnp.full(B, router.kept_cost(net, L, each, 1.0), jnp.float32)
        weights = {"z_loss": net.route.z_loss, "reconstruct": net.compress.reconstruct}
        losses = {name: weight * y[name].mean(0) for name, weight in weights.items() if name in y}
        return out, Aux(expected_B, hard_B, y, observed, scores, losses)


def cost(net: NetCfg, L: int, vocab: int) -> Cost:
    """Forward FLOPs per example, head included. `model` prices every routed token as kept (the ceiling)."""
    model = ends.embed_flops(net, L)
    executed = dict(model)
    priced = functools.cache(lambda each: _layer_flops(each, L))  # most layers are alike
    for i, each in enumerate(shapes.each(net)):
        for part, (flops, run) in priced(each).items():
            model[f"layer_{i:02d}/{part}"], executed[f"layer_{i:02d}/{part}"] = flops, run
    model["head"] = executed["head"] = ends.head_flops(net, L, vocab)
    return Cost(model, executed)


def _layer_flops(net: NetCfg, L: int) -> dict[str, tuple[int, int]]:
    """{part: (model, executed) forward FLOPs} of one layer."""
    D, mode, every = net.width, net.route.mode, net.route.kv == "all"
    narrow, rest = ffn_widths(net)
    lay = router.layout(net, L)
    slots = lay.K if dispatched(net) else L
    if dispatched(net):
        plan = lay.plan(net.route.kv)
        heavy = block.attention_flops(
            D, slots, L if every else slots, plan, inner=shapes.inner(net)
        )
    elif every or mode in _UNROUTED:
        heavy = block.dense_attention_flops(net, L)
    else:
        heavy = block.attention_flops(D, L, L, block.dense_plan(net, L), inner=shapes.inner(net))
    found = {}
    if mode in router.SCORED:
        found["router"] = (router.router_flops(net, L),) * 2
    if mode != "always_full":
        found["compressor"] = (compressor.compressor_flops(net, L),) * 2
        found["light"] = compressor.light_flops(net, L)
    if mode != "always_compressed":
        found["attention"] = block.attention_model_flops(net, L), heavy
    if dispatched(net) and net.route.lowering == "onehot":
        moves = 4 if rest else 2  # to the slots and back, for attention and for the FFN
        found["dispatch"] = 0, moves * dispatch.move_flops(lay, D)
    taken, slots = (0, 0) if mode == "always_compressed" else (L, slots)
    shared, each = L * prices.ffn_flops(D, narrow, net.ffn), prices.ffn_flops(D, rest, net.ffn)
    return found | {"ffn": (shared + taken * each, shared + slots * each)}


def decisions(net: NetCfg, L: int, vocab: int) -> DecisionCost:
    """What the decisions cost in FLOPs."""
    layers = [_per_token(each) for each in shapes.each(net)] if routed(net) else []
    dense = transformer.cost(shapes.whole(net), L, vocab)
    return router.decision_flops(net, L, layers, cost(net, L, vocab), dense)
