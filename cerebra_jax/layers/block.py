"""Parts that every sequence model is made of, each with its price beside it; what stands at its ends is in `ends`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import device, prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels.dropout import dropout
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers import shapes


def _init(stddev: float = 0.02):
    return nn.initializers.normal(stddev)


def out_scale(net: NetCfg) -> float:
    """By how much smaller the initial weights are that write into the residual stream, of 2 · depth parts."""
    return net.branch * (2 * net.depth) ** -0.5


class Norm(nn.Module):
    """LayerNorm in float32, result in the dtype of its input. As a matrix, because the gradient of scale and bias is 9
    times slower on XLA's CPU for (1, 8192, 256): it is not cut into parallel tasks where the first axis is 1."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(dtype=jnp.float32, epsilon=1e-5, name="norm")(x.reshape(-1, x.shape[-1]))
        return y.reshape(x.shape).astype(x.dtype)


def _dense(width: int, bias: bool, x, std: float, name: str):
    """A linear layer on the last axis. As a matrix, x runs forward and backward in half the time on XLA's CPU: with two
    batch axes, the gradient of the kernel is a contraction over two axes, which transposes x and the gradient of y."""
    y = nn.Dense(width, bias, x.dtype, kernel_init=_init(std), name=name)(
        x.reshape(-1, x.shape[-1])
    )
    return y.reshape(*x.shape[:-1], width)


class Attention(nn.Module):
    """Multi-head attention with RoPE of given queries over given keys, each at its own position.

    (B, Q, D) queries and (B, K, D) memory -> (B, Q, D). Q = K = all tokens is plain self-attention; Q of fewer,
    gathered tokens is routed attention. Which key blocks are visited is the static `plan`. A query sees the keys whose
    `order` is not above its own; without orders, those at or before its position. With a `step`, the keys join a cache,
    all of which the queries look through: -> ((B, Q, D), the cache).
    """

    net: NetCfg
    plan: att.Plan
    kernel: str
    bias: bool = False
    out_scale: float = 1.0
    reach: att.Reach = att.PAST

    @nn.compact
    def __call__(
        self,
        q_BxQxD,
        m_BxKxD,
        qpos,
        kpos,
        qorder=None,
        korder=None,
        step: cached.Step | None = None,
    ):
        net = self.net
        B, Q, D = q_BxQxD.shape
        H, C = shapes.heads(net), net.width // net.heads
        A = H * C  # D, unless heads were pruned
        run = None if step is None else step.run

        def heads(x):  # (B, n, H*C) -> (B, H, n, C)
            return x.reshape(B, x.shape[1], H, C).swapaxes(1, 2)

        def remember(module, m):
            return _dense(2 * A, self.bias, m, net.init_std, "kv")

        kv = cached.when(
            run if step is not None and step.lazy else None, remember, self, m_BxKxD, 2 * A
        )
        k, v = (heads(x) for x in jnp.split(kv, 2, axis=2))
        k = att.rope(k, kpos)
        qorder, korder = (qpos, kpos) if qorder is None else (qorder, korder)
        plan, kernel = self.plan, self.kernel
        if step is not None:
            memory = cached.write(step.kv, step.at_Bxn, k, v, korder)
            k, v, korder = memory
            plan = cached.plan(Q, korder.shape[1])
            kernel = masked_kernel(net, plan)

        def look(module, q):
            q = att.rope(heads(_dense(A, self.bias, q, net.init_std, "q")), qpos)
            o_BxHxQxC = att.attend(q, k, v, qorder, korder, plan, kernel, self.reach)
            o_BxQxA = o_BxHxQxC.swapaxes(1, 2).reshape(B, Q, A)
            return _dense(D, self.bias, o_BxQxA, net.init_std * self.out_scale, "out")

        y_BxQxD = cached.when(run, look, self, q_BxQxD, D)
        return y_BxQxD if step is None else (y_BxQxD, memory)


def orders(net: NetCfg, L: int, mask_BxL=None):
    """What masks compare, (B or 1, L) int32: a token sees those whose order is not above its own.

    Causal: positions. Encoder: 0 for all. Padding stands at L: no real token sees it, and it sees everything, because a
    query without a key would be NaN.
    """
    order_1xL = jnp.arange(L)[None] if net.causal else jnp.zeros((1, L), jnp.int32)
    return order_1xL if mask_BxL is None else jnp.where(mask_BxL, order_1xL, L)


def dense_plan(net: NetCfg, L: int) -> att.Plan:
    """Attention plan of all tokens."""
    return att.causal_plan(L) if net.causal else ((0, L, 0, L),)


def attention_flops(
    D: int, queries: int, keys: int, plan: att.Plan, kernel: str = "full", inner: int = 0
) -> int:
    """Forward FLOPs per example as executed: q and output projections, k and v projections, visited scores. `inner`:
    the width of all heads, 0: D."""
    inner = inner or D
    projections = 2 * queries * prices.linear_flops(D, inner) + keys * prices.linear_flops(
        D, 2 * inner
    )
    return projections + att.scores_flops(plan, inner, kernel)


def dense_attention_flops(net: NetCfg, L: int) -> int:
    """`attention_flops` of plain self-attention of L tokens, with the kernel that would run here."""
    return attention_flops(
        net.width, L, L, dense_plan(net, L), kernel_of(net, L), shapes.inner(net)
    )


def kernel_of(net: NetCfg, L: int) -> str:
    """The kernel of plain self-attention of L tokens on the present device."""
    platform = device.present_platform()
    if net.causal and att.fused(net.attention, net.dtype, net.width // net.heads, platform):
        return "cudnn"
    return masked_kernel(net, dense_plan(net, L))


def masked_kernel(net: NetCfg, plan: att.Plan, heads: int = 0) -> str:
    """The kernel where masks are more than plain causality, which is all that cuDNN's knows here. `heads`: of them, 0:
    as many as the net's."""
    if net.attention not in ("auto", "cudnn"):
        return net.attention
    return att.score_kernel(plan, device.present_platform(), (heads or net.heads) / net.heads)


def pairs(net: NetCfg, L: int) -> int:
    """(query, key) pairs that see each other among L tokens: half the square if causal."""
    return prices.causal_pairs(L) if net.causal else L * L


def attention_model_flops(net: NetCfg, L: int) -> int:
    """Forward FLOPs per example of dense attention: 8D² per token and 4D per visible pair."""
    inner = shapes.inner(net)
    return 4 * L * prices.linear_flops(net.width, inner) + prices.attention_pairs_flops(
        pairs(net, L), inner
    )


class FeedForward(nn.Module):
    """Position-wise feed-forward layer: GELU (tanh form; net.compat: exact), or SiLU-gated (Shazeer 2020,
    arXiv:2002.05202)."""

    net: NetCfg
    bias: bool = False
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BxLxD):
        net = self.net
        hidden = shapes.hidden(net)
        h = _dense(hidden, self.bias, x_BxLxD, net.init_std, "up")
        if net.ffn == "gated":
            gate = _dense(hidden, self.bias, x_BxLxD, net.init_std, "gate")
            h = jax.nn.silu(gate) * h
        else:
            h = jax.nn.gelu(h, approximate=not net.compat)
        return _dense(net.width, self.bias, h, net.init_std * self.out_scale, "down")


def ffn_flops(net: NetCfg, L: int) -> int:
    """Forward FLOPs per example of the feed-forward layer."""
    return L * prices.ffn_flops(net.width, shapes.hidden(net), net.ffn)


class Local(nn.Module):
    """Σ_i w_i ⊙ h_{t−i} over this token and the net.local − 1 before it (encoder: around it); (B, L, D), same shape.

    A causal token cannot see the compressed window that it stands in, and with route.kv=routed not even its neighbour:
    this is how it does. Multiply-adds of shifted arrays, elementwise work by the conventions. Poli et al. 2023,
    arXiv:2302.10866, and Gu & Dao 2023, arXiv:2312.00752, put a short convolution before long-range mixing.
    """

    net: NetCfg

    @nn.compact
    def __call__(self, h_BxLxD, mask_BxL=None, recent=None):
        taps, L = self.net.local, h_BxLxD.shape[1]
        w_TxD = self.param(
            "w", _init(self.net.init_std), (taps, h_BxLxD.shape[2]), jnp.float32
        ).astype(h_BxLxD.dtype)
        if mask_BxL is not None:
            h_BxLxD = jnp.where(mask_BxL[..., None], h_BxLxD, jnp.zeros((), h_BxLxD.dtype))
        after = 0 if self.net.causal else (taps - 1) // 2
        if recent is None:
            padded = jnp.pad(h_BxLxD, ((0, 0), (taps - 1 - after, after), (0, 0)))
        else:
            padded, recent = cached.slide(recent, h_BxLxD, mask_BxL)
        y_BxLxD = sum(padded[:, i : i + L] * w_TxD[i][None, None] for i in range(taps))
        return y_BxLxD if recent is None else (y_BxLxD, recent)


def local(net: NetCfg, h_BxLxD, mask_BxL, cache, new):
    """`Local` of a layer; with the layer's cache, what it remembers next goes into `new`."""
    short = Local(net, name="local")
    if cache is None:
        return short(h_BxLxD, mask_BxL)
    y_BxLxD, new["near"] = short(h_BxLxD, mask_BxL, cache["near"])
    return y_BxLxD


class Drop(nn.Module):
    """Dropout keyed by the global index of the example; off without a `dropout` rng."""

    rate: float

    def __call__(self, ex_B, x_BxLxD):
        key = self.make_rng("dropout") if self.rate > 0 and self.has_rng("dropout") else None
        return dropout(key, ex_B, x_BxLxD, self.rate)
