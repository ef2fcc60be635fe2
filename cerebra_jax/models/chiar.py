"""CHIAR-Former: a DCT filter for most tokens, attention for those whose spectrum is complex.

arXiv:2606.08327. Layer 1 filters every token, blended with the identity by the MetaRouter; layers
2 … n−1 send each token to the filter or to attention; layer n attends everywhere.
x = LN(x + op(x)), then x = LN(x + FFN(x)). The filter mixes features, not tokens. Only routed
tokens run the attention queries; what overflows the slots keeps the filter. With net.route.rbf > 0
there is a third operator, a causal mixer in linear time: the light layer is then routed itself.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers import dct_filter
from cerebra_jax.layers.dct_filter import Filter
from cerebra_jax.layers.prunable import Group
from cerebra_jax.models import pricing, stack
from cerebra_jax.models.chiar_block import Heavy, RoutedBlock, filter_part, mlp_parts
from cerebra_jax.models.chiar_layers import Layers, is_routed, layers, methods, seen
from cerebra_jax.models.pricing import Block, Part, PriceList
from cerebra_jax.models.registry import register
from cerebra_jax.models.stack import Decisions
from cerebra_jax.models.stack_model import Pass, StackModel
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.entropy_router import entropy
from cerebra_jax.routing.routers import MetaRouter
from cerebra_jax.types import Aux


@register("chiar")
class Chiar(StackModel):
    """CHIAR-Former language model.

    routing = {"tau": (R,), "spread": (R,)}, R = depth − 2: thresholds of the routed layers and
    the spread of their scores, with an RBF mixer "low" too, the lower thresholds; empty where
    nothing is compared with one.
    """

    @staticmethod
    def blocks(
        net: NetCfg, L: int, platform: str, decisions: Decisions | None = None
    ) -> tuple[RoutedBlock, ...]:
        """Returns the routed blocks: layers 2 … n − 1."""
        return layers(net, L, platform, decisions).between

    def enter(self, now: Pass) -> Pass:
        """Runs layer 1: filters every token, blended with the identity by the MetaRouter."""
        net, ex_B, x_BxLxD = self.net, now.batch["ex_B"], now.x_BxLxD
        made = self._layers(now, "first_filter", "first_mlp", "meta_router")
        light_BxLxD, _ = made.first_filter(x_BxLxD)
        if net.compat:  # the gate is then around both
            light_BxLxD = made.first_mlp(light_BxLxD, ex_B)
        if made.meta_router is not None:
            g_BxLx1, now = self._gate(made.meta_router, now)
            gate = g_BxLx1.astype(x_BxLxD.dtype)
            light_BxLxD = dispatch.combine(gate, light_BxLxD, x_BxLxD)
        if not net.compat:
            light_BxLxD = made.first_mlp(light_BxLxD, ex_B)
        return now._replace(x_BxLxD=light_BxLxD)

    def _gate(self, router: MetaRouter, now: Pass) -> tuple[jax.Array, Pass]:
        """Returns how much of the filter each token takes; its mean joins the statistics."""
        rest = now.rest
        if now.cache is None:
            task_B = now.batch["task_B"] if self.net.route.meta == "task" else None
            g_BxLx1 = router(now.x_BxLxD, task_B)
        else:
            rows = now.shared.rows(now.x_BxLxD, now.length, True, True)
            g_BxLx1, sum_BxD = router.decode(rows, now.cache.rest["sum_BxD"])
            rest = rest | {"sum_BxD": sum_BxD}
        stats = now.stats | {"meta_gate": g_BxLx1.mean((1, 2))}
        return g_BxLx1, now._replace(rest=rest, stats=stats)

    def leave(self, now: Pass) -> Pass:
        """Runs layer n: every token attends."""
        ex_B = now.batch["ex_B"]
        made = self._layers(now, "last_heavy", "last_mlp")
        rows = now.shared.rows(now.x_BxLxD, now.length, True, now.cache is not None)
        rest = now.rest
        if now.cache is None:
            x_BxLxD = made.last_heavy(rows, rows, ex_B)
        else:
            place = cached.Place(now.shared.pos, now.length)
            found = made.last_heavy(rows, rows, ex_B, now.cache.rest["heavy"], place)
            x_BxLxD, memory = found
            rest = rest | {"heavy": memory}
        return now._replace(x_BxLxD=made.last_mlp(x_BxLxD, ex_B), rest=rest)

    def _layers(self, now: Pass, *names: str) -> Layers:
        """Returns the layers; those of these names as parts of this model."""
        made = layers(self.net, now.length, self.platform)
        found = {name: getattr(made, name) for name in names}
        own = {
            name: layer.clone(name=name, parent=self)
            for name, layer in found.items()
            if layer is not None
        }
        return made._replace(**own)

    def judged(self, aux: Aux) -> Aux:
        """Adds the loss that keeps the operators in use, net.route.collapse."""
        weight = self.net.route.collapse
        if not weight or "use_entropy" not in aux.stats:
            return aux
        return aux._replace(losses={"collapse": -weight * aux.stats["use_entropy"].mean(0)})

    @classmethod
    def price_list(cls, net: NetCfg, L: int, vocab: int, platform: str) -> PriceList:
        """Returns its blocks with prices."""
        embedding, head = stack.ends(net, L, vocab)
        made = layers(net, L, platform)
        first = [filter_part(net, made.first_filter, L)]
        if net.route.meta in ("prefix", "batch"):
            first.append(Part("meta_router", _gating(made.meta_router, net.width, net.dtype, L)))
        first += mlp_parts(net, made.first_mlp, L)
        found = [Block("layer_00", tuple(first))]
        for i, layer in enumerate(made.between, 1):
            found.append(Block(f"layer_{i:02d}", layer.parts(net)))
        last = (
            stack.mixing_part(net, "attention", made.last_heavy.attention, L, None),
            stack.norm_part(net, L),
            *mlp_parts(net, made.last_mlp, L),
        )
        name = f"layer_{net.depth - 1:02d}"
        return PriceList((embedding, *found, Block(name, last), head))

    @classmethod
    def init_rest(cls, net: NetCfg, L: int, batch: int, platform: str) -> dict[str, Any]:
        """Returns the memory of the first and of the last layer."""
        heavy = Heavy(layers(net, L, platform).last_heavy, None).init_cache(batch, L, L)
        rest: dict[str, Any] = {"heavy": heavy}
        if net.route.meta != "off":
            rest["sum_BxD"] = jnp.zeros((batch, net.width))
        return rest

    @classmethod
    def prunable(cls, net: NetCfg, L: int) -> list[Group]:
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


def static_scores(net: NetCfg, params, ids_BxL, platform: str = "cpu"):
    """Returns entropies of the tokens' embeddings, (B, L).

    What the paper calibrates thresholds on, though the layers that use them see something else.
    """
    how = methods(net, platform)
    x_BxLxD = params["embed"]["table"][ids_BxL].astype(net.dtype)
    look = Filter(net.width, how, True, net.compat)
    _, spectrum = look.apply({"params": params["first_filter"]}, x_BxLxD)
    return entropy(net.route.score, x_BxLxD, spectrum, how.transform)


@functools.cache
def _gating(router: MetaRouter, width: int, dtype: str, L: int) -> pricing.Price:
    x = jax.ShapeDtypeStruct((1, L, width), jnp.dtype(dtype))

    def make(x):
        return router.init(jax.random.key(0), x)

    def run(params, x):
        return router.apply({"params": params}, x)

    return pricing.whole(make, run, (x,))
