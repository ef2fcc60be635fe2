"""What every model is: embedding, blocks one after the other, last norm, head."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from cerebra_jax.config import NetCfg
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.embedding import embed
from cerebra_jax.layers.head import finish
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.scan_layers import Repeat, scan_layers
from cerebra_jax.models import stack
from cerebra_jax.models.pricing import PriceList
from cerebra_jax.models.stack import Decisions, Shared
from cerebra_jax.types import Aux, Batch


class Pass(NamedTuple):
    """A batch, or a chunk that is decoded, on its way through a model."""

    x_BxLxD: jax.Array
    batch: Batch
    length: int  # the context's
    shared: Shared
    cache: cached.Cache | None
    rest: dict[str, Any]  # what stands outside of the blocks remembers after these tokens
    stats: dict[str, jax.Array]  # what it says about itself


class StackModel(nn.Module):
    """Runs the blocks of a model; (B, L) tokens -> `Out`, `Aux`; with a cache -> `Out`, cache.

    A model lists its blocks once, in `blocks`; prices, caches and what pruning may remove follow
    from that list. `enter` and `leave` are for what stands before and after the blocks.

    routing: float32 arrays of one value a routed block, thresholds and the like; see `routing` of
    the model. Constants here; the training step lets them follow what `Aux.observed` reports.
    """

    net: NetCfg
    vocab: int
    decisions: Decisions
    platform: str = "cpu"

    decodes = True  # whether it has a cache to decode with

    @nn.compact
    def __call__(self, batch, knobs, routing, cache: cached.Cache | None = None):
        net = self.net
        x_BxLxD, table_VxD = embed(net, self.vocab, batch)
        L, shared = stack.shared_of(net, batch, knobs, cache, x_BxLxD.shape[1])
        now = self.enter(Pass(x_BxLxD, batch, L, shared, cache, {}, {}))

        # the blocks
        layers = self.blocks(net, L, self.platform, self.decisions)
        own, mode = stack.owns(routing, len(layers)), Repeat(net.scan, net.remat)
        memory = None if cache is None else cache.layers
        report = None
        if layers:
            x_BxLxD, report = scan_layers(layers, mode, now.x_BxLxD, own, now.shared, memory)
            now = now._replace(x_BxLxD=x_BxLxD)
        now = self.leave(now)

        out = finish(net, self.vocab, now.x_BxLxD, table_VxD, now.batch)
        if cache is not None:
            kept_RxBxn, after = report or (None, ())
            return out, cached.advance(cache, shared.pos, after, kept_RxBxn, now.rest)
        aux = stack.aux_of(net, L, self.decisions, report, batch["ex_B"].shape[0])
        return out, self.judged(aux._replace(stats=aux.stats | now.stats))

    @staticmethod
    def blocks(
        net: NetCfg, L: int, platform: str, decisions: Decisions | None = None
    ) -> tuple[Any, ...]:
        """Returns the blocks in order; without `decisions` they know no costs.

        A block is called as block(x, own, shared[, memory]) and has init_cache(batch), parts(net)
        and, where pruning can take something away, prunable(place, layer).
        """
        raise NotImplementedError

    def enter(self, now: Pass) -> Pass:
        """Runs what stands before the blocks; nothing by default."""
        return now

    def leave(self, now: Pass) -> Pass:
        """Runs what stands between the blocks and the last norm; nothing by default."""
        return now

    def judged(self, aux: Aux) -> Aux:
        """Returns what the pass says about itself, with losses of the model's own if it has any."""
        return aux

    @classmethod
    def price_list(cls, net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        return stack.listed(net, L, vocab, cls.blocks(net, L, platform))

    @classmethod
    def init_cache(cls, net: NetCfg, L: int, ex_B, platform: str) -> cached.Cache:
        """Returns the cache of rows that have read nothing."""
        B = len(ex_B)
        memory = tuple(block.init_cache(B) for block in cls.blocks(net, L, platform))
        rest = cls.init_rest(net, L, B, platform)
        return cached.empty(L, ex_B, len(cls.routed(net)), memory, net.scan, rest)

    @classmethod
    def init_rest(cls, net: NetCfg, L: int, batch: int, platform: str) -> dict[str, Any]:
        """Returns the memory of what stands outside of the blocks."""
        return {}

    @classmethod
    def prunable(cls, net: NetCfg, L: int) -> list[Group]:
        """Returns what pruning may remove, layer by layer."""
        return stack.prunable_of(cls.blocks(net, L, "cpu"))

    @staticmethod
    def routed(net: NetCfg) -> tuple[str, ...]:
        """Returns the names of its routed blocks; none by default."""
        return ()

    @staticmethod
    def init_routing(net: NetCfg) -> dict[str, jax.Array]:
        """Returns its thresholds before any data; none by default."""
        return {}

    @staticmethod
    def decision_weights(net: NetCfg) -> dict[str, float]:
        """Returns the weights of the losses that its blocks report; none by default."""
        return {}

    @staticmethod
    def fold(net: NetCfg, params: Any, platform: str) -> dict[str, Any]:
        """Returns what depends on fixed weights alone, to be computed once."""
        return {}

    @staticmethod
    def describe(net: NetCfg, platform: str) -> str:
        """Returns what it chose for a device, for a person."""
        return ""
