"""CHIAR-Former: a DCT filter for most tokens, attention for those whose spectrum is complex.

arXiv:2606.08327. Layer 1 filters every token, blended with the identity by the MetaRouter; layers
2 … n−1 send each token to the filter or to attention; layer n attends everywhere.
x = LN(x + op(x)), then x = LN(x + FFN(x)). The filter mixes features, not tokens. Only routed
tokens run the attention queries; what overflows the slots keeps the filter. With net.route.rbf > 0
there is a third operator, a causal mixer in linear time: the light layer is then routed itself.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers import dct_filter
from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.dct_filter import Filter
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.embedding import Embed
from cerebra_jax.layers.feedforward import FeedForward
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rfa import Memory as MixerMemory
from cerebra_jax.layers.rfa import RandomFeatureAttention
from cerebra_jax.layers.rows import Rows
from cerebra_jax.layers.scan_layers import Repeat, scan_layers
from cerebra_jax.models import pricing, stack
from cerebra_jax.models.pricing import Block, Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.shapes import LayerShape, layer_shapes
from cerebra_jax.models.stack import Decisions, Own, Shared
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.entropy_router import EntropyRouter, entropy
from cerebra_jax.routing.report import NOTHING, Reporter
from cerebra_jax.routing.routed import Capacity, Decided, Memory, Routed, carry_out
from cerebra_jax.routing.routers import Circumstances, MetaRouter, Route, Thresholds
from cerebra_jax.types import LayerDecision, Out


def methods(net: NetCfg, platform: str) -> dct.Methods:
    """Returns how a model computes its DCTs, and filters whose coefficients nobody sees."""
    return dct.methods(net.route.dct, net.width, platform)


def seen(net: NetCfg) -> bool:
    """Returns whether the routers look at what the filters of their layers compute."""
    return net.route.mode == "threshold" and net.route.score == "spectral"


def is_routed(net: NetCfg) -> bool:
    """Returns whether some tokens go one way and some the other."""
    return not net.route.mode.startswith("always") and net.depth > 2


class FeedForwardLN(nn.Module):
    """Computes LN(x + FFN(x))."""

    ffn: FeedForward
    norm: Norm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BxLxD, ex_B):
        return self.norm(x_BxLxD + Drop(self.dropout)(ex_B, self.ffn(x_BxLxD)))


class AttentionLN(nn.Module):
    """Computes LN(x + Attention(x)) of gathered or all tokens.

    A layer, but for the examples' keys.
    """

    attention: Attention
    norm: Norm
    dropout: float = 0.0

    @nn.compact
    def __call__(self, queries: Rows, keys: Rows, ex_B, memory=None, place=None):
        if place is None:
            y = self.attention(queries, keys)
        else:
            y, memory = self.attention.decode(queries, memory, place)
        x = self.norm(queries.x + Drop(self.dropout)(ex_B, y))
        return x if place is None else (x, memory)


@dataclasses.dataclass(frozen=True)
class Heavy:
    """The heavy layer of a pass: its dropout is keyed by these examples."""

    layer: AttentionLN
    ex_B: jax.Array | None

    def __call__(self, queries: Rows, keys: Rows):
        return self.layer(queries, keys, self.ex_B)

    def decode(self, rows: Rows, memory, place: cached.Place):
        """Returns the result for a chunk, and the memory after it."""
        return self.layer(rows, rows, self.ex_B, memory, place)

    def init_cache(self, batch: int, slots: int, length: int):
        """Returns an empty memory."""
        return self.layer.attention.init_cache(batch, slots, length)


class MixerState(NamedTuple):
    """What the third operator remembers while decoding."""

    sums: MixerMemory
    used_BxS: jax.Array


class Between(nn.Module):
    """The light layer of three operators: an RBF mixer for its tokens, the filter for the rest.

    kv=routed: only those tokens are its keys and they alone run, gathered. kv=all: every token is a
    key, so all run. Returns the features, who took the mixer, and the state after these tokens.
    """

    mixer: RandomFeatureAttention
    capacity: Capacity

    def __call__(self, rows: Rows, light_BxLxD, route: Route, ex_B, state=None):
        if state is not None:
            return self._decode(rows, light_BxLxD, route, (ex_B, state))
        decided = carry_out(route, self.capacity)
        if decided.slots is not None:
            idx_BxK = decided.slots.idx_BxK
            slots = rows._replace(x=dispatch.gather(rows.x, decided.slots), pos=idx_BxK)
            y = self.mixer(slots, idx_BxK < rows.length, ex_B)
        else:
            everyone = jnp.ones(decided.kept_BxL.shape, bool)
            y = self.mixer(rows, self._keys(decided.kept_BxL, everyone), ex_B)
        return self._joined(rows, decided, y, light_BxLxD), decided.kept_BxL, None

    def _decode(self, rows: Rows, light_BxLxD, route: Route, now):
        ex_B, state = now
        layout = self.capacity.layout
        slot_Bxn, used_BxS = dispatch.place(route.wanted, rows.pos, state.used_BxS, layout)
        kept = slot_Bxn < layout.K
        keys = self._keys(kept, rows.pos < rows.length)
        y, sums = self.mixer.decode(rows, keys, ex_B, state.sums)
        decided = Decided(kept, route.gate * kept)
        return self._joined(rows, decided, y, light_BxLxD), kept, MixerState(sums, used_BxS)

    def _keys(self, kept, everyone):
        return kept if self.capacity.kv == "routed" else everyone

    def _joined(self, rows: Rows, decided: Decided, y, light_BxLxD):
        gate = decided.gate_BxL.astype(rows.x.dtype)
        return dispatch.combine(gate, y, light_BxLxD, decided.slots)

    def init_cache(self, batch: int) -> MixerState:
        """Returns the state of rows that have read nothing."""
        used_BxS = jnp.zeros((batch, len(self.capacity.layout.slots)), jnp.int32)
        return MixerState(self.mixer.init_cache(batch, 0, 0), used_BxS)


class RoutedBlock(nn.Module):
    """One layer that sends each token to one of its operators, x -> (x, report).

    Without a router every token goes one way: to the filter, or without one to attention.
    """

    router: EntropyRouter | None
    filter: Filter | None
    heavy: AttentionLN | None
    rbf: Between | None
    mlp: FeedForwardLN
    capacity: Capacity
    reporter: Reporter

    @nn.compact
    def __call__(self, x_BxLxD, own: Own, shared: Shared, cache: dict | None = None):
        decoding, ex_B = cache is not None, shared.ex_B
        rows = shared.rows(x_BxLxD, self.capacity.length, True, decoding)
        if self.router is None:
            return self._everyone(rows, ex_B, cache)
        after = {}

        # who takes which operator
        light_BxLxD, X_BxLxD = self.filter(x_BxLxD)
        choice = self.router(rows, X_BxLxD, shared.circumstances(own, decoding))
        rbf_kept = None
        if self.rbf is not None:
            state = cache["rbf"] if decoding else None
            found = self.rbf(rows, light_BxLxD, choice.rbf, ex_B, state)
            light_BxLxD, rbf_kept, after["rbf"] = found

        # attention of the selected tokens
        routed = Routed(Heavy(self.heavy, ex_B), self.capacity)
        if decoding:
            memory = cache["heavy"]
            found = routed.decode(rows, choice.attention, light_BxLxD, memory)
            x_BxLxD, decided, after["heavy"] = found
            if self.rbf is None:
                after.pop("rbf", None)
            return self.mlp(x_BxLxD, ex_B), (decided.kept_BxL, after)
        decided = carry_out(choice.attention, self.capacity)
        x_BxLxD = routed(rows, decided, light_BxLxD)
        report = self.reporter.report_choice(choice, decided, rbf_kept, shared.rate)
        return self.mlp(x_BxLxD, ex_B), report

    def _everyone(self, rows: Rows, ex_B, cache: dict | None):
        """Returns the layer of a control: all tokens take the filter, or all attend."""
        after = {}
        if self.filter is not None:
            x_BxLxD, _ = self.filter(rows.x)
        elif cache is None:
            x_BxLxD = self.heavy(rows, rows, ex_B)
        else:
            place = cached.Place(rows.pos, rows.length)
            x_BxLxD, after["heavy"] = self.heavy(rows, rows, ex_B, cache["heavy"], place)
        x_BxLxD = self.mlp(x_BxLxD, ex_B)
        return x_BxLxD, NOTHING if cache is None else (None, after)

    def init_cache(self, batch: int) -> dict[str, Any]:
        """Returns the memory of rows that have read nothing."""
        made: dict[str, Any] = {}
        L = self.capacity.length
        if self.router is not None:
            heavy = Heavy(self.heavy, None)
            room = self.capacity
            used_BxS = jnp.zeros((batch, len(room.layout.slots)), jnp.int32)
            made["heavy"] = Memory(heavy.init_cache(batch, room.remembered, L), used_BxS)
        elif self.heavy is not None:
            made["heavy"] = Heavy(self.heavy, None).init_cache(batch, L, L)
        if self.rbf is not None:
            made["rbf"] = self.rbf.init_cache(batch)
        return made

    def parts(self, net: NetCfg) -> tuple[Part, ...]:
        """Returns what it is made of, with prices."""
        L = self.capacity.length
        room = self.capacity if self.router is not None else None
        found = []
        if self.filter is not None:
            found.append(_filter_part(net, self.filter, L))
        if self.router is not None:
            found.append(Part("router", _routing(self.router, net.width, net.dtype, L)))
        if self.rbf is not None:
            found += _mixer_parts(net, self.rbf, L)
        if self.heavy is not None:
            found.append(stack.mixing_part(net, "attention", self.heavy.attention, L, room))
            found.append(stack.rows_part(net, "norm", self.heavy.norm, L, room))
        if room is not None and room.gathers:
            found.append(stack.dispatch_part(net, L, room, light=True, assigns=True))
        return (*found, *_mlp_parts(net, self.mlp, L))

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its heads, coefficients of the filter and hidden features."""
        found = []
        if self.heavy is not None:
            found += self.heavy.attention.prunable(f"{place}heavy/attention", layer)
        if self.filter is not None:
            found += self.filter.prunable(f"{place}filter", layer)
        return found + self.mlp.ffn.prunable(f"{place}mlp/ffn", layer)


class Layers(NamedTuple):
    """All layers of a model, in order."""

    first_filter: Filter
    first_mlp: FeedForwardLN
    meta_router: MetaRouter | None
    between: tuple[RoutedBlock, ...]
    last_heavy: AttentionLN
    last_mlp: FeedForwardLN


def layers(net: NetCfg, L: int, platform: str, decisions: Decisions | None = None) -> Layers:
    """Returns the layers of a configuration."""
    first, *middle, last = layer_shapes(net)
    meta = None
    if net.route.meta != "off":
        meta = MetaRouter(net.route.meta, net.tasks, name="meta_router", parent=None)
    costs = decisions.cost.layers if decisions else ()
    between = []
    for i, shape in enumerate(middle):
        cost = costs[i] if costs else LayerDecision()
        between.append(_block(net, shape, stack.Placed(L, platform, cost)))
    return Layers(
        Filter(net.width, methods(net, platform), False, net.compat, parent=None),
        _mlp(net, first),
        meta,
        tuple(between),
        _attention(net, last, platform),
        _mlp(net, last),
    )


def _mlp(net: NetCfg, shape: LayerShape) -> FeedForwardLN:
    ffn = stack.feed_forward(net, shape.ffn, 1.0, bias=True)
    return FeedForwardLN(ffn, Norm(parent=None), net.dropout, parent=None)


def _attention(net: NetCfg, shape: LayerShape, platform: str) -> AttentionLN:
    attention = Attention.of(net, shape.heads, 1.0, platform).clone(bias=True, parent=None)
    return AttentionLN(attention, Norm(parent=None), net.dropout, parent=None)


def _block(net: NetCfg, shape: LayerShape, made: stack.Placed) -> RoutedBlock:
    mode, how = net.route.mode, methods(net, made.platform)
    routed = not mode.startswith("always")
    light = heavy = router = between = None
    if mode != "always_full":
        light = Filter(net.width, how, seen(net), net.compat, parent=None)
    if mode != "always_compressed":
        heavy = _attention(net, shape, made.platform)
    if routed:
        router = EntropyRouter(net.route, how.transform, parent=None)
        if net.route.rbf:
            mixer = RandomFeatureAttention(
                net.width, net.heads, net.rbf_features, net.dropout, net.dtype, parent=None
            )
            between = Between(mixer, _capacity(net, made.length, net.route.rbf), parent=None)
            if net.route.kv == "all":  # every token is a key, so all run
                between = between.clone(capacity=_capacity(net, made.length, None), parent=None)
    capacity = _capacity(net, made.length, net.route.rate)
    reporter = Reporter(net.route, True, made.cost)
    return RoutedBlock(
        router, light, heavy, between, _mlp(net, shape), capacity, reporter, parent=None
    )


def _capacity(net: NetCfg, L: int, share: float | None) -> Capacity:
    """Returns slots for a share of the tokens; as many as tokens where nothing is gathered."""
    route = net.route
    soft = route.mode == "soft"
    gathers = route.dispatch and not soft and is_routed(net) and share is not None
    slots = min(1.0, share * route.capacity) if gathers else 1.0
    layout = dispatch.layout(L, slots)
    return Capacity(L, layout, gathers, route.lowering, route.kv, soft)


@register("chiar")
class Chiar(nn.Module):
    """CHIAR-Former language model; (B, L) tokens -> `Out`, `Aux`; with a cache -> `Out`, cache.

    routing = {"tau": (R,), "spread": (R,)} float32, R = depth − 2: thresholds of the routed layers
    and the spread of their scores, with an RBF mixer "low" too, the lower thresholds; empty where
    nothing is compared with one. Constants here; the training step lets them follow what
    `Aux.observed` reports.
    """

    net: NetCfg
    vocab: int
    decisions: Decisions
    platform: str = "cpu"

    @nn.compact
    def __call__(self, batch, knobs, routing, cache: cached.Cache | None = None):
        net, ex_B = self.net, batch["ex_B"]
        B, n = batch["inputs_BxL"].shape
        L, shared = stack.shared_of(net, batch | {}, knobs, cache, n)
        made = _named(layers(net, L, self.platform, self.decisions), self)
        look_up = Embed(self.vocab, net.width, net.init_std, net.dtype, name="embed")
        x_BxLxD, table_VxD = look_up(batch["inputs_BxL"])
        x_BxLxD = Drop(net.dropout)(ex_B, x_BxLxD)

        rest: dict[str, Any] = {}
        stats: dict[str, Any] = {}
        rows = shared.rows(x_BxLxD, L, True, cache is not None)
        x_BxLxD = self._first(made, rows, batch, cache, (stats, rest))

        # the routed layers
        report = None
        kept_RxBxn, after = None, ()
        if made.between:
            own = stack.owns(routing, len(made.between))
            mode = Repeat(net.scan, net.remat)
            memory = None if cache is None else cache.layers
            x_BxLxD, report = scan_layers(made.between, mode, x_BxLxD, own, shared, memory)
            if cache is not None:
                kept_RxBxn, after = report

        # the last layer attends everywhere
        rows = shared.rows(x_BxLxD, L, True, cache is not None)
        if cache is None:
            x_BxLxD = made.last_heavy(rows, rows, ex_B)
        else:
            place = cached.Place(shared.pos, L)
            found = made.last_heavy(rows, rows, ex_B, cache.rest["heavy"], place)
            x_BxLxD, rest["heavy"] = found
        out = Out(Norm(name="norm")(made.last_mlp(x_BxLxD, ex_B)), table_VxD)
        if cache is not None:
            return out, cached.advance(cache, shared.pos, after, kept_RxBxn, rest)
        aux = stack.aux_of(net, L, self.decisions, report, B)
        losses = {}
        if net.route.collapse and made.between:
            losses["collapse"] = -net.route.collapse * aux.stats["use_entropy"].mean(0)
        return out, aux._replace(stats=aux.stats | stats, losses=losses)

    def _first(self, made: Layers, rows: Rows, batch, cache, found):
        """Returns what layer 1 makes of the tokens; `found` gets its statistics and its memory."""
        stats, rest = found
        net, ex_B, x_BxLxD = self.net, batch["ex_B"], rows.x
        light_BxLxD, _ = made.first_filter(x_BxLxD)
        if net.compat:  # the gate is then around both
            light_BxLxD = made.first_mlp(light_BxLxD, ex_B)
        if made.meta_router is not None:
            if cache is None:
                task_B = batch["task_B"] if net.route.meta == "task" else None
                g_BxLx1 = made.meta_router(x_BxLxD, task_B)
            else:
                sums = cache.rest["sum_BxD"]
                g_BxLx1, rest["sum_BxD"] = made.meta_router.decode(rows, sums)
            stats["meta_gate"] = g_BxLx1.mean((1, 2))
            gate = g_BxLx1.astype(x_BxLxD.dtype)
            light_BxLxD = dispatch.combine(gate, light_BxLxD, x_BxLxD)
        return light_BxLxD if net.compat else made.first_mlp(light_BxLxD, ex_B)

    @staticmethod
    def price_list(net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        embedding, head = stack.ends(net, L, vocab)
        made = layers(net, L, platform)
        first = [_filter_part(net, made.first_filter, L)]
        if net.route.meta in ("prefix", "batch"):
            first.append(Part("meta_router", _gating(made.meta_router, net.width, net.dtype, L)))
        first += _mlp_parts(net, made.first_mlp, L)
        found = [Block("layer_00", tuple(first))]
        for i, layer in enumerate(made.between, 1):
            found.append(Block(f"layer_{i:02d}", layer.parts(net)))
        last = (
            stack.mixing_part(net, "attention", made.last_heavy.attention, L, None),
            stack.norm_part(net, L),
            *_mlp_parts(net, made.last_mlp, L),
        )
        name = f"layer_{net.depth - 1:02d}"
        return PriceList((embedding, *found, Block(name, last), head))

    @staticmethod
    def init_cache(net: NetCfg, L: int, ex_B, platform: str) -> cached.Cache:
        """Returns the cache of rows that have read nothing."""
        made, B = layers(net, L, platform), len(ex_B)
        rest: dict[str, Any] = {"heavy": Heavy(made.last_heavy, None).init_cache(B, L, L)}
        if net.route.meta != "off":
            rest["sum_BxD"] = jnp.zeros((B, net.width))
        between = tuple(layer.init_cache(B) for layer in made.between)
        routed = len(between) if is_routed(net) else 0
        return cached.empty(L, ex_B, routed, between, net.scan, rest)

    @staticmethod
    def prunable(net: NetCfg, L: int) -> list[Group]:
        """Returns what pruning may remove, layer by layer."""
        made = layers(net, L, "cpu")
        found = made.first_filter.prunable("first_filter", 0)
        found += made.first_mlp.ffn.prunable("first_mlp/ffn", 0)
        for i, layer in enumerate(made.between):
            found += layer.prunable(f"layer_{i:02d}/", i + 1)
        end = net.depth - 1
        found += made.last_heavy.attention.prunable("last_heavy/attention", end)
        return found + made.last_mlp.ffn.prunable("last_mlp/ffn", end)

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks."""
        return tuple(f"layer_{i:02d}" for i in range(1, net.depth - 1)) if is_routed(net) else ()

    @staticmethod
    def init_routing(net: NetCfg) -> dict[str, jax.Array]:
        """Returns thresholds before any data: the entropy of Gaussian noise.

        About where untrained tokens stand (in any order of the features, with a DCT or without).
        """
        route, R = net.route, net.depth - 2
        if route.mode == "random" or route.mode.startswith("always"):
            return {}
        compared = route.mode == "threshold"
        tau = dct.gaussian_entropy(net.width) if compared else 0.0
        found = {"tau": tau, "spread": 0.15 * net.width**-0.5}
        if route.rbf:
            found = found | {"low": tau} if compared else {}
        return {name: jnp.full(R, value, jnp.float32) for name, value in found.items()}

    @staticmethod
    def fold(net: NetCfg, params: Any, platform: str) -> dict[str, Any]:
        """Returns the matrices of the filters that are computed as one."""
        if methods(net, platform).filter != "folded":
            return {}
        return dct_filter.fold(params, net.scan, seen(net))

    @staticmethod
    def describe(net: NetCfg, platform: str) -> str:
        """Returns how it computes its DCTs, for a person."""
        transform, whole = methods(net, platform)
        more = "" if whole == transform else f", {whole} where no router looks at it"
        return f"DCT by {transform}{more}"


def _named(made: Layers, parent: nn.Module) -> Layers:
    """Returns the layers that stand outside of the repeated ones as parts of the model."""
    own = {
        name: layer.clone(name=name, parent=parent)
        for name, layer in made._asdict().items()
        if isinstance(layer, nn.Module)
    }
    return made._replace(**own)


def static_scores(net: NetCfg, params, ids_BxL, platform: str = "cpu"):
    """Returns entropies of the tokens' embeddings, (B, L).

    What the paper calibrates thresholds on, though the layers that use them see something else.
    """
    how = methods(net, platform)
    x_BxLxD = params["embed"]["table"][ids_BxL].astype(net.dtype)
    look = Filter(net.width, how, True, net.compat)
    _, X_BxLxD = look.apply({"params": params["first_filter"]}, x_BxLxD)
    return entropy(net.route.score, x_BxLxD, X_BxLxD, how.transform)


# prices


def _filter_part(net: NetCfg, layer: Filter, L: int) -> Part:
    return stack.rows_part(net, "filter", layer, L, None)


def _mlp_parts(net: NetCfg, layer: FeedForwardLN, L: int) -> tuple[Part, Part]:
    return stack.rows_part(net, "ffn", layer.ffn, L, None), stack.norm_part(net, L)


def _mixer_parts(net: NetCfg, between: Between, L: int) -> list[Part]:
    """Returns the third operator with prices: its program works on chunks of tokens."""
    room, mixer = between.capacity, between.mixer
    price = _mixing(mixer, net.width, net.dtype, room.slots)
    decided = "mixed" if room.gathers else ""
    found = [Part("rbf", price, L, run_rows=room.slots, decided=decided)]
    if room.gathers:
        found.append(stack.dispatch_part(net, L, room, light=True, assigns=True))
    return found


@functools.cache
def _mixing(mixer: nn.Module, width: int, dtype: str, rows: int) -> pricing.Price:
    """Returns the price of the mixer by its rows, at as many rows as it runs: not bilinear."""

    def make(x, index):
        slots = Rows(x, index, index, pricing.FAR, ((0, rows),))
        return mixer.init(jax.random.key(0), slots, index < 1, index[:, 0])

    def run(params, x, index):
        slots = Rows(x, index, index, pricing.FAR, ((0, rows),))
        return mixer.apply({"params": params}, slots, index < 1, index[:, 0])

    x = jax.ShapeDtypeStruct((1, rows, width), jnp.dtype(dtype))
    index = jax.ShapeDtypeStruct((1, rows), jnp.dtype("int32"))
    ops = pricing.whole(make, run, (x, index)).fixed
    return pricing.per_row(ops, rows)


@functools.cache
def _gating(router: MetaRouter, width: int, dtype: str, L: int) -> pricing.Price:
    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))

    def make(x):
        return router.init(jax.random.key(0), x)

    def run(params, x):
        return router.apply({"params": params}, x)

    return pricing.whole(make, run, (x,))


@functools.cache
def _routing(router: EntropyRouter, width: int, dtype: str, L: int) -> pricing.Price:
    """Returns the price of the decisions: the entropy of what the filter has computed, or a
    score.
    """

    def given(x, index, scalar):
        rows = Rows(x, index, index, L, ((0, L),))
        now = Circumstances(Thresholds(scalar, scalar, scalar), 0, scalar, index[:, 0])
        return rows, x.astype(jnp.float32), now

    def make(*args):
        return router.init(jax.random.key(0), *given(*args))

    def run(params, *args):
        return router.apply({"params": params}, *given(*args))

    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))
    index = jax.ShapeDtypeStruct((1, L), jnp.dtype("int32"))
    scalar = jax.ShapeDtypeStruct((), jnp.dtype("float32"))
    return pricing.whole(make, run, (x, index, scalar))
