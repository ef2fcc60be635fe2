"""The third operator of CHIAR: a causal mixer whose weights are a Gaussian kernel, in linear time."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels import rfa as rbf
from cerebra_jax.layers import block
from cerebra_jax.layers.dct_filter import dispatched, layout
from cerebra_jax.routing import dispatch
from cerebra_jax.routing.routers import Route


class Memory(NamedTuple):
    """What the mixer knows of the tokens before: its sums, how many keys they are, and slots used by segment."""

    sums_BxHxFxE: jax.Array
    keys_B: jax.Array
    used_BxS: jax.Array


class RbfLN(nn.Module):
    """LN(x + Σ_j κ(q_i, k_j) v_j / Σ_j κ(q_i, k_j)) over the keys j ≤ i, q and k of length 1 per head and turned by
    their positions: `kernels.rfa`. With a memory: -> (that, the sums and the count after these tokens)."""

    net: NetCfg

    @nn.compact
    def __call__(self, x_BxNxD, pos, key_BxN, ex_B, memory: Memory | None = None):
        net, D = self.net, self.net.width
        B, N, H = *x_BxNxD.shape[:2], net.heads

        def heads(x):  # (B, n, H*C) -> (B, H, n, C)
            return x.reshape(B, N, H, D // H).swapaxes(1, 2)

        def turned(x):
            x = heads(x).astype(jnp.float32)
            return att.rope(x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12), pos)

        kv = block._dense(2 * D, True, x_BxNxD, 0.02, "kv")
        q = block._dense(D, True, x_BxNxD, 0.02, "q")
        fq, fk = (rbf.features(turned(x), net.rbf_features) for x in (q, kv[..., :D]))
        state = None if memory is None else (memory.sums_BxHxFxE, memory.keys_B)
        y, after = rbf.average(fq, fk, heads(kv[..., D:]), key_BxN, state), None
        if memory is not None:
            y, after = y
        y = block._dense(
            D, True, y.astype(x_BxNxD.dtype).swapaxes(1, 2).reshape(B, N, D), 0.02, "out"
        )
        x_BxNxD = block.Norm(name="norm")(x_BxNxD + block.Drop(net.dropout)(ex_B, y))
        return x_BxNxD if memory is None else (x_BxNxD, after)


class Between(nn.Module):
    """Where a token takes the RBF mixer, what it gives in the place of the filter. -> ((B, L, D), who took it, memory).

    kv=routed: only those tokens are its keys and they alone run, gathered. kv=all: every token is a key, so all run.
    """

    net: NetCfg
    L: int

    @nn.compact
    def __call__(self, x_BxLxD, light_BxLxD, r: Route, pos_1xL, ex_B, memory: Memory | None = None):
        net, mixer, found, after = self.net, RbfLN(self.net, name="mixer"), None, None
        if memory is not None:
            slot_Bxn, used_BxS = dispatch.place(
                r.wanted, pos_1xL, memory.used_BxS, slots(net, self.L)
            )
            kept = slot_Bxn < slots(net, self.L).K
            key = kept if net.route.kv == "routed" else pos_1xL < self.L
            y, after = mixer(x_BxLxD, pos_1xL, key, ex_B, memory)
            after = Memory(*after, used_BxS)
        elif gathered(net):
            found = dispatch.assign(r.wanted, slots(net, self.L), net.route.lowering)
            kept, idx_BxK = (
                found.kept_BxL,
                found.idx_BxK,
            )  # an empty slot stands at position L: no key
            y = mixer(dispatch.gather(x_BxLxD, found), idx_BxK, idx_BxK < self.L, ex_B)
        else:
            kept = r.wanted
            key = kept if net.route.kv == "routed" else jnp.ones(kept.shape, bool)
            y = mixer(x_BxLxD, pos_1xL, key, ex_B)
        return (
            dispatch.combine((r.gate * kept).astype(x_BxLxD.dtype), y, light_BxLxD, found),
            kept,
            after,
        )


def gathered(net: NetCfg) -> bool:
    """Only the tokens that take the mixer run it."""
    return dispatched(net) and net.route.kv == "routed"


def slots(net: NetCfg, L: int) -> dispatch.Layout:
    """Slots of the mixer; as many as tokens where all run."""
    return layout(net, L, net.route.rbf) if gathered(net) else dispatch.layout(L, 1.0)


def empty(net: NetCfg, B: int, L: int) -> Memory:
    """The memory of rows that have read nothing."""
    sums = jnp.zeros((B, net.heads, 2 * net.rbf_features, net.width // net.heads + 1))
    return Memory(
        sums, jnp.zeros(B, jnp.int32), jnp.zeros((B, len(slots(net, L).slots)), jnp.int32)
    )


def _sums(net: NetCfg, N: int, carried: bool) -> int:
    return rbf.prefix_flops(N, net.heads, 2 * net.rbf_features, net.width // net.heads + 1, carried)


def per_token(net: NetCfg) -> tuple[int, int]:
    """(FLOPs of one query, of one key): projections, features, and a reading of the state or an addition to it."""
    D, M = net.width, net.rbf_features
    state = net.heads * prices.matmul_flops(1, 2 * M, D // net.heads + 1)
    made = rbf.features_flops(1, D, M) + state
    return 2 * prices.linear_flops(D, D) + made, prices.linear_flops(D, 2 * D) + made


def decided_flops(net: NetCfg) -> int:
    """FLOPs that one token adds by taking the mixer; with kv=all it is a key whatever it takes."""
    query, key = per_token(net)
    return query if net.route.kv == "all" else query + key


def run_flops(net: NetCfg, L: int) -> int:
    """FLOPs per example of the mixer as executed."""
    return rows_flops(net, slots(net, L).K)


def rows_flops(net: NetCfg, N: int, carried: bool = False) -> int:
    """FLOPs of N rows; `carried`: of a chunk that is decoded."""
    projections = 4 * N * prices.linear_flops(net.width, net.width)
    return (
        projections
        + 2 * rbf.features_flops(N, net.width, net.rbf_features)
        + _sums(net, N, carried)
    )
