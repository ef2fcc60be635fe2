"""Cerebra: a stack of blocks that route each token to a heavy path or leave it on a light one.

Per block, pre-LayerNorm: x += g · heavy + (1 − g) · light, then x += FFN. The heavy layer runs for
the kept tokens alone, gathered with their positions; the light one for all. net.heavy and net.light
say which layers they are: attention and compressed attention as published. With route.part=block
the FFN is routed too: every token runs its first ceil(s F) hidden features, kept tokens the others
as well, so that a kept token has the full width F and nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers import compressor
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.head import finish
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rows import Rows
from cerebra_jax.layers.scan_layers import Repeat, scan_layers
from cerebra_jax.layers.short_conv import ShortConv
from cerebra_jax.models import light, stack
from cerebra_jax.models.pricing import Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import LayerShape, layer_shapes
from cerebra_jax.models.stack import Decisions, Own, Shared
from cerebra_jax.models.transformer import local_part, reading, short, short_cache, short_conv
from cerebra_jax.routing import thresholds
from cerebra_jax.routing.report import Reporter
from cerebra_jax.routing.routed import Capacity, Decided, Routed, carry_out, selected_only
from cerebra_jax.routing.routers import SCORED, router_of
from cerebra_jax.types import LayerDecision


class RoutedBlock(nn.Module):
    """One block; its layers are its fields. x -> (x, report).

    None among them: it has no such path.
    """

    router: nn.Module | None
    heavy: nn.Module | None
    compressor: nn.Module | None
    light: nn.Module | None
    local: ShortConv | None
    ffn: FeedForward | None  # of a block whose FFN is not routed
    ffn_light: FeedForward | None
    ffn_rest: FeedForward | None
    attention_norm: Norm
    ffn_norm: Norm
    capacity: Capacity
    reporter: Reporter
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache: dict | None = None):
        decoding = cache is not None
        drop = Drop(self.dropout)
        after = {}  # the cache after these tokens
        h_BxLxD = self.attention_norm(x_BxLxD)
        rows = shared.rows(h_BxLxD, self.capacity.length, self.reporter.causal, decoding)

        # light path
        light_BxLxD, lost_B = self._light(rows, own, cache, after)

        # heavy path of the selected tokens
        decided = route = None
        if self.router is not None:
            route = self.router(rows, shared.circumstances(own, decoding))
            mixed, decided = self._heavy(rows, (route, own), light_BxLxD, cache, after)
        elif self.heavy is not None:
            mixed = self._everyone(rows, own, cache, after)
        else:
            mixed = light_BxLxD
        if self.local is not None:
            mixed += short(self.local, rows, cache, after)
        x_BxLxD += drop(shared.ex_B, mixed)
        x_BxLxD += drop(shared.ex_B, self._ffn(self.ffn_norm(x_BxLxD), decided))

        if decoding:
            return x_BxLxD, (None if decided is None else decided.kept_BxL, after)
        report = self.reporter.report(route, decided, shared.mask_BxL, shared.rate)
        return x_BxLxD, report if lost_B is None else self.reporter.add(report, lost_B)

    def _light(self, rows: Rows, own: Own, cache: dict | None, after: dict):
        """Returns the features of the light path and its loss; (None, None) without one."""
        if self.light is None:
            return None, None
        layer = light.joined(self.compressor, self.light, self.reporter.causal)
        if cache is not None:
            place = cached.Place(rows.pos, rows.length)
            y_BxnxD, after["light"] = layer.decode(rows, cache["light"], place)
            return y_BxnxD, None
        if self.compressor is not None:
            return layer.with_loss(rows, rows)
        return layer(rows, rows, **reading(layer, self.reporter.causal, own)), None

    def _heavy(self, rows: Rows, decision, light_BxLxD, cache: dict | None, after: dict):
        route, own = decision
        backwards = reading(self.heavy, self.reporter.causal, own)
        routed = Routed(light.directed(self.heavy, backwards), self.capacity)
        if cache is None:
            decided = carry_out(route, self.capacity)
            return routed(rows, decided, light_BxLxD), decided
        mixed, decided, after["heavy"] = routed.decode(rows, route, light_BxLxD, cache["heavy"])
        return mixed, decided

    def _everyone(self, rows: Rows, own: Own, cache: dict | None, after: dict):
        if cache is None:
            return self.heavy(rows, rows, **reading(self.heavy, self.reporter.causal, own))
        place = cached.Place(rows.pos, rows.length)
        mixed, after["heavy"] = self.heavy.decode(rows, cache["heavy"], place)
        return mixed

    def _ffn(self, h_BxLxD, decided: Decided | None):
        if self.ffn is not None:
            return self.ffn(h_BxLxD)
        narrow = self.ffn_light(h_BxLxD)
        if self.ffn_rest is None:
            return narrow
        if decided is None:
            return narrow + self.ffn_rest(h_BxLxD)
        return narrow + selected_only(_rest, self, h_BxLxD, decided)

    def init_cache(self, batch: int) -> dict[str, Any]:
        """Returns the memory of rows that have read nothing."""
        L = self.capacity.length
        made = short_cache(self.local, batch)
        if self.light is not None:
            layer = light.joined(self.compressor, self.light, self.reporter.causal)
            made["light"] = layer.init_cache(batch, L, L)
        if self.router is not None:
            made["heavy"] = Routed(self.heavy, self.capacity, parent=None).init_cache(batch)
        elif self.heavy is not None:
            made["heavy"] = self.heavy.init_cache(batch, L, L)
        return made

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        L = self.capacity.length
        room = self.capacity if self.router is not None else None
        found = [stack.norm_part(net, 2 * L)]
        if self.router is not None and net.route.mode in SCORED:
            found.append(light.router_part(net, self.router, L))
        if self.light is not None:
            found += light.parts(net, self.compressor, self.light, L)
        if self.heavy is not None:
            found.append(stack.mixing_part(net, "attention", self.heavy, L, room))
        if self.local is not None:
            found.append(local_part(net, self.local, L))
        every = self.ffn or self.ffn_light
        found.append(stack.rows_part(net, "ffn", every, L, None))
        if self.ffn_rest is not None:
            found.append(stack.rows_part(net, "ffn", self.ffn_rest, L, room))
        if room is not None and room.gathers:
            both = self.light is not None
            found.append(stack.dispatch_part(net, L, room, light=both, assigns=True))
            if self.ffn_rest is not None:
                found.append(stack.dispatch_part(net, L, room, light=False, assigns=False))
        return tuple(found)

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its heads, channels of compressed tokens, and hidden features."""
        found = []
        if self.heavy is not None:
            found += self.heavy.prunable(f"{place}/heavy", layer)
        if self.compressor is not None:
            readers = (f"{place}/light/kv/kernel",)
            found += self.compressor.prunable(f"{place}/compressor", layer, readers)
        name = "ffn" if self.ffn is not None else "ffn_light"
        found += (self.ffn or self.ffn_light).prunable(f"{place}/{name}", layer)
        if self.ffn_rest is not None:
            found += self.ffn_rest.prunable(f"{place}/ffn_rest", layer, "rest")
        return found


def _rest(module: RoutedBlock, x):
    return module.ffn_rest(x)


def block(net: NetCfg, shape: LayerShape, made: stack.Placed) -> RoutedBlock:
    """Returns one block; `made` says where it stands and what its decisions cost."""
    mode, scale = shape.route.mode, stack.out_scale(net)
    router = router_of(net.width, shape.route, net.causal)
    capacity = stack.capacity_of(net, shape.route, made.length, net.route.dispatch)
    heavy = compress = path = rest = None
    if mode != "always_compressed":
        heavy = mixer(net.heavy, net, shape.heads, scale, made.platform)
        capacity = capacity.suited(heavy)
        rest = stack.feed_forward(net, shape.rest, scale) if shape.rest else None
    if mode != "always_full":
        compress, path = light.light_path(net, shape, made, scale)
    ffn = stack.feed_forward(net, shape.ffn, scale)
    return RoutedBlock(
        router=router,
        heavy=heavy,
        compressor=compress,
        light=path,
        local=short_conv(net),
        ffn=None if shape.rest else ffn,
        ffn_light=ffn if shape.rest else None,
        ffn_rest=rest,
        attention_norm=Norm(parent=None),
        ffn_norm=Norm(parent=None),
        capacity=capacity,
        reporter=Reporter(shape.route, net.causal, made.cost),
        dropout=net.dropout,
        parent=None,
    )


def blocks(net: NetCfg, L: int, platform: str, decisions: Decisions | None = None):
    """Returns the layers, in order."""
    found = []
    for i, shape in enumerate(layer_shapes(net)):
        known = decisions is not None and decisions.cost.layers
        cost = decisions.cost.layers[i] if known else LayerDecision()
        found.append(block(net, shape, stack.Placed(L, platform, cost)))
    return tuple(found)


def is_routed(net: NetCfg) -> bool:
    """Returns whether some tokens go one way and some the other."""
    return not net.route.mode.startswith("always")


@register("cerebra")
class Cerebra(nn.Module):
    """Routed language model or encoder; (B, L) tokens -> `Out`, `Aux`.

    With a cache -> `Out`, cache.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth, with a threshold; else empty.
    Constants here; the training step lets them follow what `Aux.observed` reports.
    """

    net: NetCfg
    vocab: int
    decisions: Decisions
    platform: str = "cpu"

    @nn.compact
    def __call__(self, batch, knobs, routing, cache: cached.Cache | None = None):
        net = self.net
        x_BxLxD, table_VxD = stack.embedded(net, self.vocab, batch)
        B, n = x_BxLxD.shape[:2]
        L, shared = stack.shared_of(net, batch, knobs, cache, n)
        layout = blocks(net, L, self.platform, self.decisions)
        layers = None if cache is None else cache.layers
        own, mode = stack.owns(routing, net.depth), Repeat(net.scan, net.remat)
        x_BxLxD, report = scan_layers(layout, mode, x_BxLxD, own, shared, layers)
        out = finish(net, self.vocab, x_BxLxD, table_VxD, batch)
        if cache is not None:
            kept_RxBxn, after = report
            return out, cached.advance(cache, shared.pos, after, kept_RxBxn, {})
        return out, stack.aux_of(net, L, self.decisions, report, B)

    @staticmethod
    def price_list(net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        return stack.listed(net, L, vocab, blocks(net, L, platform))

    @staticmethod
    def init_cache(net: NetCfg, L: int, ex_B, platform: str) -> cached.Cache:
        """Returns the cache of rows that have read nothing."""
        layers = tuple(layer.init_cache(len(ex_B)) for layer in blocks(net, L, platform))
        routed = net.depth if is_routed(net) else 0
        return cached.empty(L, ex_B, routed, layers, net.scan, {})

    @staticmethod
    def prunable(net: NetCfg, L: int) -> list[Group]:
        """Returns what pruning may remove, layer by layer."""
        return stack.prunable_of(blocks(net, L, "cpu"))

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks."""
        return tuple(f"layer_{i:02d}" for i in range(net.depth)) if is_routed(net) else ()

    @staticmethod
    def init_routing(net: NetCfg):
        """Returns its thresholds before any data."""
        return thresholds.initial([shape.route for shape in layer_shapes(net)])

    @staticmethod
    def decision_weights(net: NetCfg) -> dict[str, float]:
        """Returns the weights of the losses that its layers report."""
        return {"z_loss": net.route.z_loss, "reconstruct": net.compress.reconstruct}


def folded(net: NetCfg, params: Any) -> dict[str, Any]:
    """Returns keys and values of the windows as one map each, where that is no more work."""
    return compressor.fold(net.compress.kind, params) if net.light == "compressed" else {}
