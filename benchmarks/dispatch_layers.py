"""The programs that benchmarks/dispatch.py times: dense variants, routed ones, and masked ones that save nothing."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import CompressCfg, NetCfg, RouteCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost.timing import best_rate
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers import block
from cerebra_jax.models import cerebra, transformer
from cerebra_jax.models import model as build
from cerebra_jax.routing import dispatch as dispatching
from cerebra_jax.routing import routers as router


class Group(NamedTuple):
    """What is timed in the same rounds."""

    mask: str  # causal or encoder
    part: str  # attention, or block: with its FFN
    L: int
    B: int
    kept: tuple[int, ...]
    kv: tuple[str, ...]
    width: int
    heads: int
    r: float
    s: float
    light_heads: int


class Program(NamedTuple):
    """A compiled forward and backward pass, and what it costs. FLOPs are of the whole batch."""

    run: Callable[[int], None]
    kept: int | None  # None: dense
    kv: str
    executed: int  # analytic, forward
    model: int  # the same with causal attention as half the square, and every token kept
    counted: jaxpr.Counts  # forward
    train: jaxpr.Counts  # forward and backward, recomputation included
    temp: int
    share: float | None = None
    overflow: float | None = None


def group(mask: str, part: str, L: int, args: argparse.Namespace) -> Group:
    kept = tuple(
        dict.fromkeys(L // int(k[2:]) if k.startswith("L/") else int(k) for k in args.kept)
    )
    return Group(mask, part, L, args.batch, kept, tuple(args.kv), args.width, args.heads, args.r, args.s,
                 args.light_heads or max(1, round(args.heads * args.s)))  # fmt: skip


class DenseAttention(nn.Module):
    """x + attention(LN x): the first half of `transformer.DenseLayer`."""

    net: NetCfg
    plan: att.Plan
    kernel: str

    @nn.compact
    def __call__(self, x_BxLxD, pos_1xL, order, ex_B, mask_BxL):
        h = block.Norm(name="attention_norm")(x_BxLxD)
        attention = block.Attention(self.net, self.plan, self.kernel, name="attention")
        return x_BxLxD + attention(h, h, pos_1xL, pos_1xL, order, order), None


class RoutedAttention(cerebra.RoutedBlock):
    """A routed block without its FFN."""

    def _ffn(self, h_BxLxD, *_):
        return jnp.zeros((), h_BxLxD.dtype)


def net_of(g: Group, k: int, kv: str, dispatch: bool = True) -> NetCfg:
    """Cerebra with k of L tokens on the heavy path, without slack."""
    mode = "threshold" if g.mask == "causal" else "topk"
    route = RouteCfg(
        mode=mode, rate=k / g.L, k=k, capacity=1.0, kv=kv, part=g.part, noise=0.0, dispatch=dispatch
    )
    compress = CompressCfg(r=g.r, s=g.s, heads=g.light_heads)
    return NetCfg(name="cerebra", causal=g.mask == "causal", depth=1, width=g.width, heads=g.heads,
                  ffn_width=4 * g.width, route=route, compress=compress)  # fmt: skip


def dense_variants(
    g: Group, full: bool
) -> Iterator[tuple[str, att.Plan, str, int, contextlib.AbstractContextManager]]:
    """(name, plan, kernel, chunk, what changes while it is traced) of the dense layers to choose the best from."""
    variants = [(1, "full", att.CHUNK), *((1, "blockwise", chunk) for chunk in (64, 128, 256))]
    if g.mask == "causal":  # the whole square is never the best of them
        variants = [(8, kernel, chunk) for _, kernel, chunk in variants] + [
            (16, "full", 128),
            (16, "blockwise", 128),
        ]
    for prefixes, kernel, chunk in variants if full else variants[2:3]:
        plan = tuple((a, b, 0, b) for a, b in att.segment_bounds(g.L, prefixes))
        how = "whole" if kernel == "full" else f"chunks of {chunk}"
        yield (
            f"{prefixes} prefixes, {how}" if g.mask == "causal" else how,
            plan,
            kernel,
            chunk,
            contextlib.nullcontext(),
        )
    if full:
        change = mock.patch.object(att, "attend", functools.partial(_library, g.mask == "causal"))
        yield "dot_product_attention", ((0, g.L, 0, g.L),), "full", att.CHUNK, change


def _library(causal: bool, q, k, v, *_):
    """Attention by jax.nn.dot_product_attention, in place of `attend`."""
    return jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (q, k, v)), is_causal=causal
    ).swapaxes(1, 2)


def programs(g: Group, full: bool) -> Iterator[tuple[str, Program]]:
    """Every program of the group, compiled; SystemExit if two that must agree do not."""
    rng = np.random.default_rng(0)
    x, do = (jnp.asarray(rng.standard_normal((g.B, g.L, g.width)), jnp.float32) for _ in range(2))
    net = net_of(g, g.kept[0], "all")
    pos, order, ex = jnp.arange(g.L)[None], block.orders(net, g.L), jnp.arange(g.B)
    own = lambda parts: g.B * sum(v for k, v in parts.items() if _counts(g, k))  # noqa: E731

    layer = DenseAttention if g.part == "attention" else transformer.DenseLayer
    args = (pos, order, ex, None)
    params = jax.jit(lambda key: layer(net, ((0, g.L, 0, g.L),), "full").init(key, x, *args))(
        jax.random.key(0)
    )
    model = own(transformer.cost(net, g.L, 1).model)
    reference = None
    for name, plan, kernel, chunk, change in dense_variants(g, full):
        with change, mock.patch.object(att, "CHUNK", chunk):
            module = layer(net, plan, kernel)
            run = lambda params, x, module=module: (module.apply(params, x, *args)[0], {})  # noqa: E731
            made, results = compiled(run, params, x, do)
        executed = block.attention_flops(g.width, g.L, g.L, plan) + block.ffn_flops(net, g.L) * (
            g.part == "block"
        )
        reference = same(name, results, reference)
        yield name, made._replace(executed=g.B * executed, model=model)

    layer = RoutedAttention if g.part == "attention" else cerebra.RoutedBlock

    def routed(k, kv, dispatch, tau):
        module, state = layer(net_of(g, k, kv, dispatch), g.L), (tau, 1.0, 0, build.neutral_knobs())
        run = lambda params, x: module.apply(params, x, *state, *args, None)  # noqa: E731
        return run, lambda key: module.init(key, x, *state, *args, None)

    run, init = routed(g.kept[0], "all", True, 0.0)
    params = jax.jit(init)(jax.random.key(0))
    score_BxL = np.asarray(jax.jit(lambda params, x: run(params, x)[1]["score"])(params, x))
    first = None
    for k, kv, dispatch in [(k, kv, True) for k in g.kept for kv in g.kv] + [
        (g.kept[0], g.kv[0], False)
    ]:
        tau = float(np.quantile(score_BxL, 1 - k / g.L))  # what top-k does not look at
        made, (out, _, y) = compiled(routed(k, kv, dispatch, tau)[0], params, x, do)
        if not np.isfinite(out).all():
            raise SystemExit(f"k={k}, keys={kv}: not finite")
        first = out if first is None else first
        if not dispatch and (
            g.mask == "encoder" or kv == "all"
        ):  # it keeps the tokens that overflow: not compared
            wanted_BxL = jnp.asarray(score_BxL > tau)
            kept_BxL = dispatching.assign(wanted_BxL, router.layout(net_of(g, k, kv), g.L)).kept_BxL
            fits_BxL = (kept_BxL == wanted_BxL) | (g.mask == "encoder")
            same("masked", out[fits_BxL], first[fits_BxL])
        cost = cerebra.cost(net_of(g, k, kv, dispatch), g.L, 1)
        made = made._replace(kept=k, kv=kv, executed=own(cost.executed), model=own(cost.model))
        name = f"k={k}, keys={kv}" if dispatch else "masked"
        yield (
            name,
            made._replace(share=float(y["kept"].mean()), overflow=float(y["overflow"].mean())),
        )


def _counts(g: Group, part: str) -> bool:
    """Whether that part of a model's cost belongs to the layer."""
    return part.startswith("layer_00/") and (g.part == "block" or not part.endswith("/ffn"))


def compiled(fn: Callable, params: Any, x: jax.Array, do: jax.Array) -> tuple[Program, Any]:
    """fn(params, x) -> (out, statistics), forward and backward for the gradient `do` of out, and its first results."""

    def both(params, x, do):
        out, back, y = jax.vjp(fn, params, x, has_aux=True)
        return out, back(do), y

    done = jax.jit(both).lower(params, x, do).compile()

    def run(n: int) -> None:
        for _ in range(n):
            results = done(params, x, do)
        jax.block_until_ready(results)

    forward = jaxpr.count(lambda params, x: fn(params, x)[0], params, x)
    train, temp = jaxpr.count(both, params, x, do), done.memory_analysis().temp_size_in_bytes
    return Program(run, None, "", 0, 0, forward, train, temp), done(params, x, do)


def same(name: str, results: Any, reference: Any) -> Any:
    """The first results; SystemExit where others are not the same."""
    if reference is None:
        return results
    for got, want in zip(jax.tree.leaves(results), jax.tree.leaves(reference), strict=True):
        if not np.abs(got - want).max() <= 1e-4 * np.abs(want).max():
            raise SystemExit(f"{name} does not compute what the variants before it do")
    return reference


@functools.cache
def _works() -> dict[str, tuple[Callable[[], Any], int]]:
    n = 1024
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.standard_normal((n, n)), jnp.float32)
    big = jnp.asarray(rng.standard_normal(1 << 24), jnp.float32)
    matmul, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    return {
        "matmul": (lambda: matmul(a, a).block_until_ready(), 2 * n**3),
        "copy": (lambda: copy(big).block_until_ready(), 2 * big.nbytes),
    }


def machine_rates() -> dict[str, float]:
    """FLOP/s of a large matmul and bytes/s, read and written, of a large copy, now."""
    return {name: best_rate(work, amount) for name, (work, amount) in _works().items()}


def versions() -> dict[str, str]:
    return {"jax": jax.__version__}
