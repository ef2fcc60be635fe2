"""Attention by fused kernels: each form is what masks compute, and a kernel in the program."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.cost import count
from cerebra_jax.cost.device import platform_of
from cerebra_jax.errors import UserError
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels import fused_attention as fused
from cerebra_jax.kernels import splash
from cerebra_jax.kernels.attention import Blocks, Keys, Queries
from cerebra_jax.kernels.fused_call import lowering_for
from cerebra_jax.layers import rows
from cerebra_jax.layers.compressor import CompressedAttention
from cerebra_jax.routing import dispatch

B, H, C = 2, 3, 8


def drawn(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def case(form, Q, K, padding="none", null=False):
    """Returns (blocks, ranks of the queries, ranks of the keys, whether there is a null key)."""
    layout = ((0, Q, 0, K),)
    q, k = jnp.arange(Q)[None], jnp.arange(K)[None]
    if form == "windows":
        k = (k + 1) * (Q // K) - 1
    if form == "all":
        q, k = 0 * q, 0 * k
        if padding == "last":
            k = jnp.where(jnp.arange(K)[None] < jnp.array([[K - 3], [1]]), 0, Q)
        elif padding == "anywhere":
            k = jnp.where(jax.random.uniform(jax.random.key(1), (B, K)) < 0.4, Q, 0)
    return Blocks(layout, "cudnn", form=form, padding=padding), q, k, null


def made(*args, **kwargs):
    return functools.partial(case, *args, **kwargs)  # arrays are made when a test runs


CASES = {
    "causal": made("causal", 24, 24),
    "causal, an odd length": made("causal", 27, 27),
    "windows of 4": made("windows", 32, 8, null=True),
    "windows of 3, an odd number of rows": made("windows", 30, 10, null=True),
    "windows of one": made("windows", 9, 9, null=True),
    "all": made("all", 24, 16),
    "all, odd lengths": made("all", 21, 17),
    "all, a null key": made("all", 24, 16, null=True),
    "all, padding last": made("all", 24, 16, "last"),
    "all, padding anywhere": made("all", 24, 17, "anywhere"),
    "all, padding anywhere, a null key": made("all", 24, 17, "anywhere", null=True),
}


def both(blocks, q_rank, k_rank, null):
    """Returns (the fused form, masks) as functions that give results and all gradients."""

    def of(blocks):
        def run(q, k, v, null, do):
            def f(q, k, v, null):
                return att.attend_blocks(Queries(q, q_rank), Keys(k, v, k_rank), blocks, null)

            o, back = jax.vjp(f, q, k, v, null)
            return o, *back(do)

        return run

    return of(blocks), of(Blocks(blocks.layout, "full"))


def gathered(L, segments, per_segment, kept):
    """Returns (blocks, queries without their features, ranks of the keys) of gathered tokens."""
    token_ends = [round((i + 1) * L / segments) for i in range(segments)]
    lay = dispatch.Layout(
        tuple(zip([0, *token_ends[:-1]], token_ends, strict=True)),
        tuple((i * per_segment, (i + 1) * per_segment) for i in range(segments)),
    )
    keep = jax.random.uniform(jax.random.key(5), (B, L)) < kept
    slots = dispatch.assign(keep, lay)
    layout = tuple((c0, c1, 0, b) for (c0, c1), (_, b) in zip(lay.slots, lay.tokens, strict=True))
    blocks = Blocks(layout, "cudnn", form="gathered")
    return blocks, Queries(None, slots.idx_BxK, slots.slot_BxL), jnp.arange(L)[None]


GATHERED = {
    "one segment": functools.partial(gathered, 40, 1, 12, 0.25),
    "one segment, an odd length": functools.partial(gathered, 33, 1, 12, 0.25),
    "two segments, an odd number of slots": functools.partial(gathered, 64, 2, 9, 0.25),
    "eight segments": functools.partial(gathered, 128, 8, 6, 0.3),
    "six segments": functools.partial(gathered, 96, 6, 7, 0.3),
    "segments of other sizes": functools.partial(gathered, 90, 4, 8, 0.3),
}


def gathered_both(name):
    blocks, queries, k_rank = GATHERED[name]()

    def of(blocks):
        def run(q, k, v, do):
            def f(q, k, v):
                slots = queries._replace(x_BxHxQxC=q)
                o = att.attend_blocks(slots, Keys(k, v, k_rank), blocks)
                # what an empty slot holds is thrown away
                return jnp.where((queries.rank_BxQ < k_rank.shape[1])[:, None, :, None], o, 0)

            o, back = jax.vjp(f, q, k, v)
            return o, *back(do)

        return run

    return of(blocks), of(Blocks(blocks.layout, "full"))


def gathered_args(name, dtype):
    blocks, queries, k_rank = GATHERED[name]()
    Q, K = queries.rank_BxQ.shape[1], k_rank.shape[1]
    args = drawn(3, *[(B, H, Q, C), (B, H, K, C), (B, H, K, C), (B, H, Q, C)])
    empty = (queries.rank_BxQ == K)[:, None, :, None]
    args[0] = jnp.where(empty, 0, args[0])  # as the gather leaves them
    return [x.astype(dtype) for x in args]


@functools.cache
def gathered_by_masks(name):
    return jax.jit(gathered_both(name)[1])(*gathered_args(name, jnp.float32))


@pytest.mark.parametrize("name", GATHERED)
@pytest.mark.parametrize("implementation", ["", "xla"])
def test_gathered_queries_see_what_masks_show_them(name, implementation):
    mine, _ = gathered_both(name)
    args = gathered_args(name, jnp.float32)
    with lowering_for("gpu", "xla") if implementation else contextlib.nullcontext():
        found = jax.jit(mine)(*args)
    assert_close(found, gathered_by_masks(name), 5e-6)


def test_the_merge_is_exact():
    """In float64 its gradient is the gradient, to rounding: nothing of it is left out."""
    with jax.enable_x64(True):
        blocks, queries, _ = GATHERED["eight segments"]()
        assert fused.halvings(blocks) == 3
        q, k, v, do = gathered_args("eight segments", jnp.float64)
        mine, _ = gathered_both("eight segments")

        def textbook(q, k, v):
            score = jnp.einsum("bhqc,bhkc->bhqk", q, k) / C**0.5
            seen = jnp.arange(k.shape[2])[None, None, None] <= queries.rank_BxQ[:, None, :, None]
            weight = jax.nn.softmax(jnp.where(seen, score, -jnp.inf), axis=-1)
            real = (queries.rank_BxQ < k.shape[2])[:, None, :, None]
            return jnp.where(real, jnp.einsum("bhqk,bhkc->bhqc", weight, v), 0)

        o, back = jax.vjp(textbook, q, k, v)
        assert_close(jax.jit(mine)(q, k, v, do), (o, *back(do)), 1e-13)


@pytest.mark.parametrize("name", ["one segment", "eight segments"])
def test_on_a_gpu_they_are_calls_of_cudnn_alone(name):
    mine, _ = gathered_both(name)
    args = gathered_args(name, jnp.bfloat16)
    calls = 1 + fused.halvings(GATHERED[name]()[0])
    with lowering_for("gpu"):
        text = jax.jit(mine).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("Backward(") == calls
    assert "dot_general" not in text and "scatter" not in text


def test_what_was_counted_is_not_what_runs():
    """The formula that a count has traced is not kept for the program."""
    mine, _ = gathered_both("eight segments")
    args = gathered_args("eight segments", jnp.bfloat16)

    def calls():
        text = jax.jit(lambda *a: mine(*a)).trace(*args).lower(lowering_platforms=("cuda",))
        return text.as_text().count("@__cudnn$fmhaSoftmax(")

    with lowering_for("gpu"):
        counted = count.count(mine, *args)
        assert calls() == 4
        assert count.count(mine, *args) == counted and counted.by["attention"] == counted.flops


def args_of(blocks, null, seed=0):
    (_, Q, _, K), W = blocks.layout[0], (H, C)
    q, k, v, do, *nulls = drawn(seed, (B, H, Q, C), *[(B, H, K, C)] * 2, (B, H, Q, C), W, W)
    return q, k, v, tuple(nulls) if null else None, do


def assert_close(got, want, bound):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        error = np.abs(np.float64(one) - np.float64(other)).max()
        assert error <= bound * max(1, np.abs(other).max())


@functools.cache
def by_masks(name):
    """Returns what masks compute for a case, and all gradients."""
    blocks, *ranks, null = CASES[name]()
    return jax.jit(both(blocks, *ranks, null)[1])(*args_of(blocks, null))


@pytest.mark.parametrize("name", CASES)
def test_each_form_is_what_masks_compute_with_its_gradients(name):
    blocks, *ranks, null = CASES[name]()
    mine, _ = both(blocks, *ranks, null)
    assert_close(jax.jit(mine)(*args_of(blocks, null)), by_masks(name), 5e-6)


@pytest.mark.parametrize("name", CASES)
def test_so_is_the_call_for_a_gpu_as_jax_computes_it_elsewhere(name):
    blocks, *ranks, null = CASES[name]()
    mine, _ = both(blocks, *ranks, null)
    with lowering_for("gpu", "xla"):
        found = jax.jit(mine)(*args_of(blocks, null))
    assert_close(found, by_masks(name), 5e-6)


@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_each_form_is_one_call_of_cudnn_and_one_back(name):
    blocks, *ranks, null = CASES[name]()
    mine, _ = both(blocks, *ranks, null)
    args = jax.tree.map(lambda x: x.astype(jnp.bfloat16), args_of(blocks, null))
    with lowering_for("gpu"):
        text = jax.jit(mine).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert "dot_general" not in text


def test_a_kernel_is_chosen_for_the_platform_that_is_asked_about():
    def chosen(rows: int) -> dict[str, str]:
        platforms = ("cpu", "gpu", "old_gpu", "tpu")
        return {p: fused.fused_kernel("auto", "bfloat16", 64, p, rows) for p in platforms}

    none = {"cpu": "", "old_gpu": ""}
    assert chosen(fused.SPLASH_ROWS) == none | {"gpu": "cudnn", "tpu": "splash"}
    assert chosen(fused.SPLASH_ROWS - 1) == none | {"gpu": "cudnn", "tpu": ""}
    assert not fused.fused_kernel("auto", "float32", 64, "gpu", 256)
    assert not any(fused.fused_kernel("auto", "bfloat16", width, "gpu", 256) for width in (60, 136))
    assert fused.fused_kernel("cudnn", "bfloat16", 64, "cpu", 256) == "cudnn"
    assert not fused.fused_kernel("full", "bfloat16", 64, "gpu", 256)


@pytest.mark.parametrize("causal", [True, False])
def test_windows_take_splash_later_than_tokens_and_cudnn_at_once(causal):
    def taken(platform: str, windows: int) -> tuple[str, str]:
        light = CompressedAttention(64, 64, 1, "bfloat16", platform=platform)
        tokens = rows.tokens(jnp.zeros((1, 4 * windows, 1)), jnp.zeros((1, 1)), causal)
        keys = tokens._replace(x=tokens.x[:, :windows], plain=False)
        found = light.blocks(tokens, keys)
        return found.kernel, found.form

    form = "windows" if causal else "all"
    assert taken("gpu", 64) == ("cudnn", form) and taken("tpu", 2048) == ("splash", form)
    assert taken("tpu", 2047)[0] in ("full", "blockwise")


def test_one_that_is_asked_for_and_does_not_fit_is_refused():
    with pytest.raises(UserError, match="16 bits, and net.dtype is float32"):
        fused.fused_kernel("cudnn", "float32", 64, "gpu", 256)
    with pytest.raises(UserError, match="a head is 60 wide"):
        fused.fused_kernel("cudnn", "bfloat16", 60, "gpu", 256)


def test_an_old_gpu_has_none():
    assert not fused.fused_kernel("auto", "bfloat16", 64, platform_of("t4"), 256)
    with pytest.raises(UserError, match="compute capability 8.0"):
        fused.fused_kernel("cudnn", "bfloat16", 64, platform_of("t4"), 256)


SPLASH = ["causal, an odd length", "windows of 3, an odd number of rows", "all, padding last"]


@pytest.mark.parametrize("name", SPLASH)
def test_on_a_tpu_splash_computes_the_same(name, monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)
    blocks, *ranks, null = CASES[name]()
    mine, _ = both(blocks._replace(kernel="splash"), *ranks, null)
    with lowering_for("tpu"):
        found = jax.jit(mine)(*args_of(blocks, null))
    assert_close(found, by_masks(name), 5e-6)


def test_its_program_for_a_tpu_holds_splash_forward_and_back():
    blocks, *ranks, null = CASES["windows of 4"]()
    mine, _ = both(blocks._replace(kernel="splash"), *ranks, null)
    args = jax.tree.map(lambda x: x.astype(jnp.bfloat16), args_of(blocks, null))
    with lowering_for("tpu"):
        text = jax.jit(mine).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
        there = count.count(mine, *args)
    assert there == count.count(mine, *args) and there.by["attention"] > 0
    assert text.count("tpu_custom_call") == 3  # forward; dq; dk and dv
