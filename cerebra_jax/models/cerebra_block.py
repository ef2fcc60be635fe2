"""Cerebra's block: routes each token to a heavy path or leaves it on a light one."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.mixers import mixer
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rows import Rows
from cerebra_jax.layers.short_conv import ShortConv
from cerebra_jax.models import light, stack
from cerebra_jax.models.dense_block import local_part, reading, short, short_cache, short_conv
from cerebra_jax.models.pricing import Part
from cerebra_jax.models.shapes import LayerShape
from cerebra_jax.models.stack import Own, Shared
from cerebra_jax.routing.report import Reporter
from cerebra_jax.routing.routed import Capacity, Decided, Routed, carry_out, selected_only
from cerebra_jax.routing.routers import router_of, scored


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
        if self.has_variable("folded", "ffn"):
            return self._whole_ffn(h_BxLxD, decided)
        narrow = self.ffn_light(h_BxLxD)
        if self.ffn_rest is None:
            return narrow
        if decided is None:
            return narrow + self.ffn_rest(h_BxLxD)
        return narrow + selected_only(_rest, self, h_BxLxD, decided)

    def _whole_ffn(self, h_BxLxD, decided: Decided | None):
        """Returns the same from weights that stand side by side: see `beside`."""
        light, rest = self.ffn_light.hidden, self.ffn_rest.hidden
        both = self.ffn_light.clone(hidden=light + rest, parent=None)
        params = {"params": self.get_variable("folded", "ffn")}
        if decided is None:
            return both.apply(params, h_BxLxD)
        gate_BxLx1 = decided.gate_BxL[..., None].astype(h_BxLxD.dtype)
        every_F = jnp.arange(light + rest) < light
        share_BxLxF = jnp.where(every_F[None, None], jnp.ones_like(gate_BxLx1), gate_BxLx1)
        return both.apply(params, h_BxLxD, share_BxLxF)

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
        if self.router is not None and scored(net.route):
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


def beside(params: dict[str, Any]) -> dict[str, Any]:
    """Returns `folded` of a block whose FFN is routed: both parts of it as one layer.

    Two products instead of four. Rows that are not kept run all of it, so it is for decoding on a
    GPU or a TPU, where they do so anyway.
    """
    if "ffn_rest" not in params:
        return {}
    light, rest = params["ffn_light"], params["ffn_rest"]
    axes = {"up": 1, "gate": 1, "down": 0}
    found = {
        name: {"kernel": jnp.concatenate([part["kernel"], rest[name]["kernel"]], axes[name])}
        for name, part in light.items()
    }
    return {"ffn": found}


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
