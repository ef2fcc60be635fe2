"""The dense baseline: a Transformer with RoPE and a tied head, causal or encoder, LayerNorm before or after parts."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers import block, ends, shapes
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.scan_layers import repeat
from cerebra_jax.types import Aux, Cost


class DenseLayer(nn.Module):
    """pre: x + Attention(LN x), then x + FFN(LN x), whose outputs start scaled by 1/√(2·depth) (GPT-2).
    post: LN(x + Attention(x)), then LN(x + FFN(x)), as CHIAR does it: the control that differs in the routing only."""

    net: NetCfg
    plan: att.Plan
    kernel: str
    reach: att.Reach = att.PAST

    @nn.compact
    def __call__(self, x_BxLxD, pos_1xL, order, ex_B, mask_BxL, cache=None):
        net = self.net
        pre = net.norm == "pre"
        scale = block.out_scale(net) if pre else 1.0
        drop = block.Drop(net.dropout)
        how = {"plan": self.plan, "kernel": self.kernel, "reach": self.reach}
        attention = block.Attention(net, **how, out_scale=scale, name="attention")
        ffn = block.FeedForward(net, out_scale=scale, name="ffn")
        attention_norm, ffn_norm = block.Norm(name="attention_norm"), block.Norm(name="ffn_norm")
        h = attention_norm(x_BxLxD) if pre else x_BxLxD
        new = {}  # the cache after these tokens
        if cache is None:
            mixed = attention(h, h, pos_1xL, pos_1xL, order, order)
        else:
            step = cached.Step(cache["heavy"], pos_1xL)
            mixed, new["heavy"] = attention(h, h, pos_1xL, pos_1xL, order, order, step)
        if net.local:
            mixed += block.local(net, h, mask_BxL, cache, new)
        x_BxLxD += drop(ex_B, mixed)
        x_BxLxD = x_BxLxD if pre else attention_norm(x_BxLxD)
        x_BxLxD += drop(ex_B, ffn(ffn_norm(x_BxLxD) if pre else x_BxLxD))
        return x_BxLxD if pre else ffn_norm(x_BxLxD), {} if cache is None else {"cache": new}


class Transformer(nn.Module):
    """Language model, or encoder; (B, L) tokens -> features and tied output matrix (`Out`)."""

    net: NetCfg
    vocab: int

    @nn.compact
    def __call__(self, batch, knobs, routing, cache: cached.Cache | None = None):
        net = self.net
        x_BxLxD, table_VxD = ends.embed(net, self.vocab, batch)
        (B, n), ex_B = x_BxLxD.shape[:2], batch["ex_B"]
        L, pos, mask_BxL = cached.places(batch, n, cache)
        order = self.order(L, mask_BxL) if cache is None else pos
        kwargs, layers = {"net": net} | self.attention(L), None if cache is None else cache.layers
        x_BxLxD, y = repeat(
            DenseLayer, net, net.depth, kwargs, x_BxLxD, (), (pos, order, ex_B, mask_BxL), layers
        )
        out = ends.finish(net, self.vocab, x_BxLxD, table_VxD, mask_BxL, batch["ex_B"])
        if cache is not None:
            return out, cached.advance(cache, pos, y["cache"])
        share_B = jnp.full(B, self.share(L), jnp.float32)
        return out, Aux(share_B, share_B, {}, {}, {}, {})

    def share(self, L) -> float:
        """FLOPs relative to the dense Transformer of the same shape, before anything was removed from this one."""
        net, whole = self.net, shapes.whole(self.net)
        return (
            1.0
            if net is whole
            else cost(net, L, self.vocab).model_flops / cost(whole, L, self.vocab).model_flops
        )

    def attention(self, L) -> dict:
        """How every layer attends."""
        return {"plan": block.dense_plan(self.net, L), "kernel": block.kernel_of(self.net, L)}

    def order(self, L, mask_BxL):
        """What its mask compares."""
        return block.orders(self.net, L, mask_BxL)


def cost(net: NetCfg, L: int, vocab: int) -> Cost:
    """Forward FLOPs per example, head included."""
    model = ends.embed_flops(net, L)
    executed = dict(model)
    for i, each in enumerate(shapes.each(net)):
        model[f"layer_{i:02d}/attention"] = block.attention_model_flops(each, L)
        executed[f"layer_{i:02d}/attention"] = block.dense_attention_flops(each, L)
        model[f"layer_{i:02d}/ffn"] = executed[f"layer_{i:02d}/ffn"] = block.ffn_flops(each, L)
    model["head"] = executed["head"] = ends.head_flops(net, L, vocab)
    return Cost(model, executed)
