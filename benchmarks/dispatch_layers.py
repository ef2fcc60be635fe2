"""The programs that benchmarks/dispatch.py times.

They are dense variants, routed ones, and masked ones, which save nothing. Import `common` before
this file, which finds the package.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import CompressCfg, NetCfg, RouteCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost.device import present_platform
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers.attention import Attention
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.rows import ranks
from cerebra_jax.models import cerebra, cerebra_block, dense_block
from cerebra_jax.models.model import cost_of, dense_of, neutral_knobs
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.models.stack import Own, Shared
from cerebra_jax.routing import dispatch as dispatching
from cerebra_jax.routing.routers import Thresholds


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


class Inputs(NamedTuple):
    """What every layer of a group gets, and the gradient of its output."""

    x_BxLxD: jax.Array
    dy_BxLxD: jax.Array
    shared: Shared


class Program(NamedTuple):
    """A compiled forward and backward pass, and what it costs. FLOPs are of the whole batch."""

    run: Callable[[int], None]
    kept: int | None  # None: dense
    kv: str
    executed: int  # analytic, forward
    model: int  # the same with causal attention as half the square, and every token kept
    counted: jaxpr.Counts  # forward
    train: jaxpr.Counts  # forward and backward, recomputation included
    temp: int  # bytes of temporary memory
    share: float | None = None  # of the tokens that were kept
    overflow: float | None = None


class DenseVariant(NamedTuple):
    """A way to compute dense attention, and what changes while it is traced."""

    name: str
    blocks: att.Blocks
    chunk: int
    change: contextlib.AbstractContextManager


def group(mask: str, part: str, L: int, args: argparse.Namespace) -> Group:
    """Returns the group of a mask, a part and a length, by the options of the benchmark."""
    counts = [L // int(word[2:]) if word.startswith("L/") else int(word) for word in args.kept]
    return Group(
        mask=mask,
        part=part,
        L=L,
        B=args.batch,
        kept=tuple(dict.fromkeys(counts)),
        kv=tuple(args.kv),
        width=args.width,
        heads=args.heads,
        r=args.r,
        s=args.s,
        light_heads=args.light_heads or max(1, round(args.heads * args.s)),
    )


class FixedAttention(Attention):
    """Attention whose blocks of scores are given."""

    given: att.Blocks | None = None

    def blocks(self, queries, keys) -> att.Blocks:
        """Returns the given ones."""
        return self.given


class DenseAttention(nn.Module):
    """x + attention(LN x): the first half of `dense_block.DenseBlock`."""

    attention: FixedAttention
    attention_norm: Norm
    length: int
    causal: bool

    def __call__(self, x_BxLxD, own: Own, shared: Shared):
        h_BxLxD = self.attention_norm(x_BxLxD)
        rows = shared.rows(h_BxLxD, self.length, self.causal, decoding=False)
        return x_BxLxD + self.attention(rows, rows), None


class RoutedAttention(cerebra_block.RoutedBlock):
    """A routed block without its FFN."""

    def _ffn(self, h_BxLxD, *_):
        return jnp.zeros((), h_BxLxD.dtype)


def dense_layer(g: Group, net: NetCfg, blocks: att.Blocks) -> nn.Module:
    """Returns the dense layer of a group, which computes these blocks of scores."""
    plain = Attention.of(net, net.heads, 1.0, present_platform())
    fields = {name: getattr(plain, name) for name in Attention.__dataclass_fields__}
    fields |= {"parent": None, "name": None, "given": blocks}
    attention = FixedAttention(**fields)
    if g.part == "attention":
        return DenseAttention(attention, Norm(parent=None), g.L, net.causal)
    shape = layer_shapes(dense_of(net))[0]
    dense = dense_block.block(dense_of(net), shape, g.L, present_platform())
    return dense.clone(attention=attention)


def net_of(g: Group, k: int, kv: str, dispatch: bool = True) -> NetCfg:
    """Returns Cerebra with k of L tokens on the heavy path, without slack."""
    route = RouteCfg(
        mode="threshold" if g.mask == "causal" else "topk",
        rate=k / g.L,
        k=k,
        capacity=1.0,
        kv=kv,
        part=g.part,
        noise=0.0,
        dispatch=dispatch,
    )
    return NetCfg(
        name="cerebra",
        causal=g.mask == "causal",
        depth=1,
        width=g.width,
        heads=g.heads,
        ffn_width=4 * g.width,
        route=route,
        compress=CompressCfg(r=g.r, s=g.s, heads=g.light_heads),
    )


def dense_variants(g: Group, every_variant: bool) -> Iterator[DenseVariant]:
    """Yields the dense layers to choose the best from, or one of them."""
    if g.mask == "causal":  # the whole square is never the best of them
        chunked = [(8, "blockwise", chunk) for chunk in (64, 128, 256)]
        variants = [(8, "full", att.CHUNK), *chunked, (16, "full", 128), (16, "blockwise", 128)]
    else:
        chunked = [(1, "blockwise", chunk) for chunk in (64, 128, 256)]
        variants = [(1, "full", att.CHUNK), *chunked]
    if not every_variant:
        variants = variants[2:3]

    for prefixes, kernel, chunk in variants:
        layout = tuple(att.Segment(a, b, 0, b) for a, b in att.segment_bounds(g.L, prefixes))
        name = "whole" if kernel == "full" else f"chunks of {chunk}"
        if g.mask == "causal":
            name = f"{prefixes} prefixes, {name}"
        yield DenseVariant(name, att.Blocks(layout, kernel), chunk, contextlib.nullcontext())

    if every_variant:
        attend = functools.partial(_library_attend, g.mask == "causal")
        change = mock.patch.object(att, "attend_blocks", attend)
        blocks = att.Blocks((att.Segment(0, g.L, 0, g.L),), "full")
        yield DenseVariant("dot_product_attention", blocks, att.CHUNK, change)


def _library_attend(causal: bool, queries: att.Queries, keys: att.Keys, *_):
    """Computes attention by jax.nn.dot_product_attention, in place of `attend_blocks`."""
    q, k, v = (x.swapaxes(1, 2) for x in (queries.x_BxHxQxC, keys.k_BxHxKxC, keys.v_BxHxKxC))
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal).swapaxes(1, 2)


def programs(g: Group, every_variant: bool) -> Iterator[tuple[str, Program]]:
    """Yields every program of the group, compiled; raises SystemExit if two disagree."""
    rng = np.random.default_rng(0)
    shape = (g.B, g.L, g.width)
    inputs = Inputs(
        x_BxLxD=jnp.asarray(rng.standard_normal(shape), jnp.float32),
        dy_BxLxD=jnp.asarray(rng.standard_normal(shape), jnp.float32),
        shared=Shared(
            *neutral_knobs()[1:],
            jnp.arange(g.L)[None],
            ranks(g.L, g.mask == "causal"),
            jnp.arange(g.B),
            None,
            None,
        ),
    )
    yield from dense_programs(g, inputs, every_variant)
    yield from routed_programs(g, inputs)


def dense_programs(g: Group, inputs: Inputs, every_variant: bool) -> Iterator[tuple[str, Program]]:
    """Yields the dense variants; raises SystemExit where two of them compute something else."""
    net = net_of(g, g.kept[0], "all")
    plain = dense_layer(g, net, att.Blocks((att.Segment(0, g.L, 0, g.L),), "full"))
    params = jax.jit(plain.init)(jax.random.key(0), inputs.x_BxLxD, _own(0.0), inputs.shared)
    model = g.B * _own_flops(g, cost_of(dense_of(net), g.L, 1, "cpu").model)
    reference = None
    for variant in dense_variants(g, every_variant):
        module = dense_layer(g, net, variant.blocks)
        run = _dense_run(module, inputs)
        with variant.change, mock.patch.object(att, "CHUNK", variant.chunk):
            made, results = compiled(run, params, inputs)
        if reference is None:
            reference = results
        require_same(variant.name, results, reference)
        yield variant.name, made._replace(executed=made.counted.flops, model=model)


def _own(threshold: float) -> Own:
    """Returns what a layer has of its own: its threshold, spread 1, number 0."""
    tau, one = jnp.float32(threshold), jnp.float32(1)
    return Own(Thresholds(tau, tau, one), jnp.int32(0))


def _dense_run(module: nn.Module, inputs: Inputs) -> Callable:
    def run(params, x_BxLxD):
        y_BxLxD, _ = module.apply(params, x_BxLxD, _own(0.0), inputs.shared)
        return y_BxLxD, {}

    return run


def routed_programs(g: Group, inputs: Inputs) -> Iterator[tuple[str, Program]]:
    """Yields the routed programs, then the masked twin of the first.

    Raises SystemExit where an output is not finite, or where the twins compute something else.
    """
    params = jax.jit(_routed_init(g, inputs))(jax.random.key(0))
    score_BxL = _scores(g, params, inputs)
    first = None
    for k in g.kept:
        for kv in g.kv:
            made, out = _routed(g, net_of(g, k, kv), params, score_BxL, inputs)
            if first is None:
                first = out
            yield f"k={k}, keys={kv}", made

    k = g.kept[0]
    kv = g.kv[0]
    masked, out = _routed(g, net_of(g, k, kv, dispatch=False), params, score_BxL, inputs)
    if g.mask == "encoder" or kv == "all":
        fits_BxL = _fitting(g, k, kv, score_BxL)
        require_same("masked", out[fits_BxL], first[fits_BxL])
    yield "masked", masked


def _layer(g: Group, net: NetCfg) -> nn.Module:
    """Returns the routed layer of a group."""
    (made,) = cerebra.Cerebra.blocks(net, g.L, present_platform())
    if g.part == "block":
        return made
    names = [name for name in made.__dataclass_fields__ if name not in ("parent", "name")]
    return RoutedAttention(**{name: getattr(made, name) for name in names})


def _routed_init(g: Group, inputs: Inputs) -> Callable:
    module = _layer(g, net_of(g, g.kept[0], "all"))

    def init(key):
        return module.init(key, inputs.x_BxLxD, _own(0.0), inputs.shared)

    return init


def _routed_run(g: Group, net: NetCfg, threshold: float, inputs: Inputs) -> Callable:
    module = _layer(g, net)

    def run(params, x_BxLxD):
        y_BxLxD, report = module.apply(params, x_BxLxD, _own(threshold), inputs.shared)
        return y_BxLxD, report.stats | {"score": report.scores["score"]}

    return run


def _scores(g: Group, params: Any, inputs: Inputs) -> np.ndarray:
    """Returns what the router looks at, (B, L)."""
    run = _routed_run(g, net_of(g, g.kept[0], "all"), 0.0, inputs)
    _, statistics = jax.jit(run)(params, inputs.x_BxLxD)
    return np.asarray(statistics["score"])


def _threshold(g: Group, k: int, score_BxL: np.ndarray) -> float:
    """Returns the threshold that keeps k of L tokens; top-k does not look at it."""
    return float(np.quantile(score_BxL, 1 - k / g.L))


def _routed(
    g: Group, net: NetCfg, params: Any, score_BxL: np.ndarray, inputs: Inputs
) -> tuple[Program, np.ndarray]:
    """Compiles a routed or masked layer; returns it with its output."""
    k = net.route.k
    kv = net.route.kv
    run = _routed_run(g, net, _threshold(g, k, score_BxL), inputs)
    made, (out, _, statistics) = compiled(run, params, inputs)
    if not np.isfinite(out).all():
        raise SystemExit(f"k={k}, keys={kv}: not finite")
    cost = cost_of(net, g.L, 1, "cpu")
    made = made._replace(
        kept=k,
        kv=kv,
        executed=g.B * _own_flops(g, cost.executed),
        model=g.B * _own_flops(g, cost.model),
        share=float(statistics["kept"].mean()),
        overflow=float(statistics["overflow"].mean()),
    )
    return made, out


def _fitting(g: Group, k: int, kv: str, score_BxL: np.ndarray) -> jax.Array:
    """Returns the tokens on which the masked layer and its dispatched twin must agree, (B, L).

    The masked layer keeps the tokens that overflow the twin's slots.
    """
    selected_BxL = jnp.asarray(score_BxL > _threshold(g, k, score_BxL))
    layout = _layer(g, net_of(g, k, kv)).capacity.layout
    dispatched_BxL = dispatching.assign(selected_BxL, layout).kept_BxL
    return (dispatched_BxL == selected_BxL) | (g.mask == "encoder")


def _own_flops(g: Group, components: Mapping[str, int]) -> int:
    """Returns the FLOPs of a model's cost that belong to the layer."""
    total = 0
    for name, flops in components.items():
        in_layer = name.startswith("layer_00/")
        in_part = g.part == "block" or not name.endswith("/ffn")
        if in_layer and in_part:
            total += flops
    return total


def compiled(fn: Callable, params: Any, inputs: Inputs) -> tuple[Program, Any]:
    """Compiles fn(params, x) -> (out, statistics), forward and backward.

    Returns the program, and its first results: out, the gradients, and statistics.
    """

    def both(params, x, dy):
        out, pull, statistics = jax.vjp(fn, params, x, has_aux=True)
        return out, pull(dy), statistics

    def forward(params, x):
        return fn(params, x)[0]

    # compile
    x = inputs.x_BxLxD
    dy = inputs.dy_BxLxD
    done = jax.jit(both).lower(params, x, dy).compile()

    def run(n: int) -> None:
        for _ in range(n):
            results = done(params, x, dy)
        jax.block_until_ready(results)

    # count
    program = Program(
        run=run,
        kept=None,
        kv="",
        executed=0,
        model=0,
        counted=jaxpr.count(forward, params, x),
        train=jaxpr.count(both, params, x, dy),
        temp=done.memory_analysis().temp_size_in_bytes,
    )
    return program, done(params, x, dy)


def require_same(name: str, results: Any, reference: Any) -> None:
    """Raises SystemExit where results are not the reference's, to 1e-4 of the largest."""
    leaves = zip(jax.tree.leaves(results), jax.tree.leaves(reference), strict=True)
    for found, expected in leaves:
        if not np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max():
            raise SystemExit(f"{name} does not compute what the variants before it do")
