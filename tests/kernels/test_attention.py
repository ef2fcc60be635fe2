"""Attention over static blocks against the textbook formula: values, gradients, memory, price."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.cost import count, prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.kernels.attention import Blocks, Keys, Queries
from cerebra_jax.kernels.fused_call import lowering_for
from cerebra_jax.layers.rows import block_layout, ranks, tokens


def causal_layout(L):
    """Returns the layout of all tokens of a causal model, as its layers make it."""
    x = jnp.zeros((1, L, 1))
    rows = tokens(x, ranks(L, True), True)
    return block_layout(rows, rows)


def plain(q, k, v, qrank, krank):
    """Returns all scores at once, mask krank <= qrank; everything in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    s = jnp.einsum("bhqc,bhkc->bhqk", q, k) / q.shape[-1] ** 0.5
    s = jnp.where((krank[:, None, :] <= qrank[:, :, None])[:, None], s, -jnp.inf)
    return jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(s, axis=-1), v)


def drawn(seed, *shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(*each).astype(dtype) for each in zip(keys, shapes, strict=True)]


def with_gradients(f, q, k, v, do):
    out, back = jax.vjp(f, q, k, v)
    return dict(zip(("o", "dq", "dk", "dv"), (out, *back(do.astype(out.dtype))), strict=True))


def compiled(f, *args):
    """Returns `with_gradients`, as one program."""
    return jax.jit(lambda *args: with_gradients(f, *args))(*args)


def assert_close(got, want, bound):
    for name, w in want.items():
        g, w = np.float32(got[name]), np.float32(w)
        assert np.isfinite(g).all() and np.abs(g - w).max() <= bound * np.abs(w).max(), name


def visited(layout) -> int:
    """Returns the pairs of a layout."""
    return sum((q1 - q0) * (k1 - k0) for q0, q1, k0, k1 in layout)


def of_ranks(qrank, krank, blocks, null=None):
    """Returns attention as a function of q, k and v."""
    return lambda q, k, v: att.attend_blocks(Queries(q, qrank), Keys(k, v, krank), blocks, null)


def dense(L, kernel):
    """Returns (causal attention of L tokens, the textbook's)."""
    rank = jnp.arange(L)[None]
    mine = of_ranks(rank, rank, Blocks(causal_layout(L), kernel))
    return mine, lambda q, k, v: plain(q, k, v, rank, rank)


@pytest.fixture(params=["full", "blockwise", "blockwise, 24 queries at once"])
def kernel(request, monkeypatch):
    """Gives the kernels; chunks of 24 leave a rest in most segments, and loop over whole ones."""
    name, *chunk = request.param.split(", ")
    if chunk:
        monkeypatch.setattr(att, "CHUNK", 24)
    return name


# values and gradients


@pytest.mark.parametrize("L", [1, 37, 200, 2048])
def test_dense_is_plain_causal_attention_whose_future_has_no_gradient(L, kernel):
    mine, textbook = dense(L, kernel)
    q, k, v, do = drawn(L, *[(2, 2, L, 8)] * 4)
    future = slice(2 * L // 3 + 1, None)
    do = do.at[:, :, future].set(0)  # of the last third nothing is wanted
    got = compiled(mine, q, k, v, do)
    assert_close(got, compiled(textbook, q, k, v, do), 1e-5)
    assert not got["dk"][:, :, future].any() and not got["dv"][:, :, future].any()


def test_bfloat16_stays_near_float32(kernel):
    mine, textbook = dense(200, kernel)
    args = drawn(0, *[(2, 2, 200, 8)] * 4, dtype=jnp.bfloat16)
    got = compiled(mine, *args)
    assert all(x.dtype == jnp.bfloat16 for x in got.values())
    assert_close(got, compiled(textbook, *args), 2e-2)


def test_gathered_queries_see_their_own_past(kernel):
    B, L, n = 2, 96, 40
    q, k, v, do = drawn(3, (B, 2, n, 8), (B, 2, L, 8), (B, 2, L, 8), (B, 2, n, 8))
    rows = [np.random.default_rng(b).choice(L, n, replace=False) for b in range(B)]
    qrank = jnp.sort(jnp.array(np.stack(rows)), axis=1)
    qrank = qrank.at[1, -3:].set(L)  # the last three slots are empty
    krank = jnp.arange(L)[None]
    mine = of_ranks(qrank, krank, Blocks(((0, n, 0, L),), kernel))
    want = compiled(lambda *a: plain(*a, qrank, krank), q, k, v, do)
    assert_close(compiled(mine, q, k, v, do), want, 1e-5)


def test_a_null_key_is_a_key_that_every_query_sees(kernel):
    """Also the queries of the first segment see it, which see no other key, and the first ones of
    the second: no gradient is lost."""
    H, L, C, M = 2, 256, 8, 64
    shapes = (2, H, L, C), (2, H, M, C), (2, H, M, C), (H, C), (H, C), (2, H, L, C)
    *args, do = drawn(7, *shapes)
    qrank = jnp.arange(L)[None]
    krank = 80 + 2 * jnp.arange(M)[None]
    blocks = Blocks(((0, 64, 0, 0), (64, 128, 0, 24), (128, 256, 0, M)), kernel)

    def mine(q, k, v, k0, v0):
        return of_ranks(qrank, krank, blocks, (k0, v0))(q, k, v)

    def joined(q, k, v, k0, v0):
        first = [jnp.broadcast_to(x[None, :, None], (2, H, 1, C)) for x in (k0, v0)]
        k, v = (jnp.concatenate(pair, 2) for pair in zip(first, (k, v), strict=True))
        return plain(q, k, v, qrank, jnp.pad(krank, ((0, 0), (1, 0)), constant_values=-1))

    found = []
    for f in (mine, joined):
        o, back = jax.vjp(jax.jit(f), *args)
        found.append({"o": o} | dict(zip("qkv01", back(do), strict=True)))
    assert_close(*found, 1e-5)


def test_large_scores_do_not_overflow(kernel):
    mine, textbook = dense(64, kernel)
    q, k, v, do = drawn(5, *[(1, 1, 64, 8)] * 4)
    got, want = (with_gradients(f, 100 * q, 100 * k, v, do) for f in (mine, textbook))
    assert_close(got, {name: want[name] for name in ("o", "dv")}, 1e-5)
    # the softmax is saturated: dq and dk are differences of equal numbers, times queries and keys
    # of size 100
    assert max(np.abs(got[name] - want[name]).max() for name in ("dq", "dk")) < 100 * 1e-5


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_null_key_far_above_or_below_the_others_takes_all_or_nothing(sign, kernel):
    q, k, v, do = drawn(6, *[(1, 1, 8, 8)] * 4)
    q = jnp.abs(q) + 1
    k = jnp.abs(k)
    rank = jnp.arange(8)[None]
    null = (sign * jnp.full((1, 8), 1000.0), jnp.ones((1, 8)))
    mine = of_ranks(rank, rank, Blocks(((0, 8, 0, 8),), kernel), null)
    o, back = jax.vjp(mine, q, k, v)
    want = jnp.ones_like(o) if sign > 0 else plain(q, k, v, rank, rank)
    np.testing.assert_allclose(o, want, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in back(do))


@pytest.mark.parametrize("reach", [(2, 0), (64, 0), (9, 3)])
@pytest.mark.parametrize("L", [37, 700])
def test_a_window_is_masked_attention_and_costs_what_its_layout_visits(L, reach, kernel):
    back, ahead = reach
    rank = jnp.arange(L)[None]
    layout = att.window_layout(L, reach)
    mine = of_ranks(rank, rank, Blocks(layout, kernel, reach))
    # −ahead <= query − key <= back
    near = jnp.abs(rank.T - rank + (ahead - back) / 2) <= (ahead + back) / 2

    def textbook(q, k, v):
        s = jnp.where(near, jnp.einsum("bhqc,bhkc->bhqk", q, k) / q.shape[-1] ** 0.5, -jnp.inf)
        return jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(s, axis=-1), v)

    q, k, v, do = drawn(L, *[(1, 2, L, 8)] * 4)
    assert_close(compiled(mine, q, k, v, do), compiled(textbook, q, k, v, do), 1e-5)
    assert count.count(mine, q, k, v).flops == 4 * 16 * visited(layout)
    if L == 700 and back < 64:  # far from the whole square, and from the causal half of it
        assert visited(layout) < 0.4 * visited(causal_layout(L))


@pytest.mark.parametrize("keys", [129, 257, 512, 1024])
def test_chunks_of_more_queries_change_nothing(keys):
    """Few keys make longer chunks; scores stay CHUNK x Q at most, and the result is the same."""
    B, H, Q, C = 1, 2, 1024, 8
    q, k, v, do = drawn(keys, (B, H, Q, C), (B, H, keys, C), (B, H, keys, C), (B, H, Q, C))
    qrank = jnp.arange(Q)[None]
    krank = jnp.arange(keys)[None] * (Q // keys)
    full, blockwise = (
        of_ranks(qrank, krank, Blocks(((0, Q, 0, keys),), kernel))
        for kernel in ("full", "blockwise")
    )
    assert_close(compiled(blockwise, q, k, v, do), compiled(full, q, k, v, do), 2e-4)
    program = jax.make_jaxpr(lambda *args: with_gradients(blockwise, *args))(q, k, v, do)
    assert max(sizes(program.jaxpr)) <= B * H * att.CHUNK * (Q + 4)


# memory


@pytest.mark.parametrize("L", [2048, 4096])
def test_long_sequences_never_hold_all_scores(L):
    B, H, C = 1, 2, 8
    kernel = att.score_kernel(causal_layout(L), "cpu")
    mine, textbook = dense(L, kernel)
    x = jax.ShapeDtypeStruct((B, H, L, C), jnp.float32)

    def gradient(f):
        return lambda q, k, v, do: jax.vjp(f, q, k, v)[1](do)

    def temp(f):
        program = jax.jit(gradient(f)).lower(x, x, x, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    scores = 4 * B * H * L * L
    assert temp(textbook) > scores
    assert temp(mine) < scores / 2
    largest = max(sizes(jax.make_jaxpr(gradient(mine))(x, x, x, x).jaxpr))
    assert largest <= B * H * L * max(att.CHUNK, C)


def sizes(jaxpr):
    """Yields the size of every intermediate array."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


# price


@given(
    L=st.integers(1, 400),
    heads=st.sampled_from([1, 3]),
    kernel=st.sampled_from(["full", "blockwise"]),
)
@settings(max_examples=15, deadline=None)
def test_the_pairs_of_its_layout_are_counted(L, heads, kernel):
    mine, _ = dense(L, kernel)
    x = jax.ShapeDtypeStruct((1, heads, L, 8), jnp.float32)
    assert count.count(mine, x, x, x).flops == 4 * heads * 8 * visited(causal_layout(L))


@pytest.mark.parametrize("L", [64, 256])
def test_the_backward_pass_costs_two_forward_ones_and_half_of_one_to_form_the_weights_again(
    L, kernel
):
    mine, _ = dense(L, kernel)
    x = jax.ShapeDtypeStruct((1, 2, L, 8), jnp.float32)
    both = count.count(lambda *args: with_gradients(mine, *args), x, x, x, x).flops
    assert both == (3 if kernel == "full" else 3.5) * 4 * 16 * visited(causal_layout(L))


def test_few_scores_are_kept_many_are_formed_again():
    kernels = [att.score_kernel(((0, L, 0, L),), "cpu") for L in (64, 1024, 1025, 8192)]
    assert kernels == ["full", "full", "blockwise", "blockwise"]
    assert att.score_kernel(((0, 2048, 0, 1024),), "cpu", heads=0.5) == "full"


# cuDNN's kernel


def test_without_a_gpu_cudnn_is_its_formula_and_has_its_price():
    L, H, C = 48, 2, 8
    mine, textbook = dense(L, "cudnn")
    args = drawn(8, *[(2, H, L, C)] * 4)
    assert_close(compiled(mine, *args), compiled(textbook, *args), 1e-5)
    (forward,) = count.operations(lambda _, *a: mine(*a), {}, *args[:3])
    pairs = prices.attention_pairs_flops(prices.causal_pairs(L), H * C)
    assert forward.op == (2 * pairs, 4 * 2 * 4 * H * L * C, 0, 0)  # q, k, v and the result
    both = count.count(lambda *a: with_gradients(mine, *a), *args)
    assert both.by == {"attention": 2 * pairs * 7 // 2}


def test_a_program_for_a_gpu_holds_cudnn_and_has_the_same_price():
    x = jax.ShapeDtypeStruct((2, 2, 64, 16), jnp.bfloat16)
    mine, _ = dense(64, "cudnn")

    here = count.count(mine, x, x, x)
    with lowering_for("gpu"):
        traced = jax.jit(with_gradients, static_argnums=0).trace(mine, x, x, x, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        there = count.count_jaxpr(jax.make_jaxpr(mine)(x, x, x))
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert (here.flops, here.bytes) == (there.flops, there.bytes)


def test_arrays_of_other_shapes_are_refused():
    rank = jnp.arange(8)[None]
    mine = of_ranks(rank, rank, Blocks(((0, 8, 0, 8),), "full"))
    q, k = drawn(9, (1, 2, 8, 4), (1, 2, 8, 4))
    with pytest.raises(AssertionError):
        mine(q, k, k[:, :, :7])
    with pytest.raises(AssertionError):
        mine(q[0], k, k)


# layouts


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_pieces_tile_the_segments_in_whole_chunks(Q, K):
    layout = tuple((a, b, 0, K) for a, b in att.segment_bounds(Q, 3))
    got = att.pieces(layout, "blockwise")
    assert visited(segment for segment, _ in got) == visited(layout)
    ends = [segment.q1 for segment, _ in got]
    assert [segment.q0 for segment, _ in got] == [0, *ends[:-1]] and ends[-1] == Q
    for segment, chunk in got:
        assert segment.queries % chunk == 0
        assert chunk <= 4 * att.CHUNK and chunk * K <= att.CHUNK * max(Q, K)


@given(st.integers(1, 5000))
def test_causal_layouts_tile_the_queries(L):
    layout = causal_layout(L)
    ends = [segment.q1 for segment in layout]
    assert [segment.q0 for segment in layout] == [0, *ends[:-1]] and ends[-1] == L
    assert all((k0, k1) == (0, q1) for _, q1, k0, k1 in layout)


# rotary positions


def test_rope_sees_only_distances():
    q, k = drawn(6, (1, 1, 1, 16), (1, 1, 1, 16))

    def score(i, j):
        q_i = att.rope(q, jnp.full((1, 1), i))
        k_j = att.rope(k, jnp.full((1, 1), j))
        return float((q_i * k_j).sum())

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert abs(score(7, 3) - score(7, 5)) > 1e-3


@given(
    st.lists(st.integers(0, (1 << 20) - 1), min_size=2, max_size=2), st.sampled_from([2, 16, 64])
)
@settings(max_examples=20, deadline=None)
def test_rope_turns_each_pair_by_its_angle(positions, width):
    x = np.asarray(drawn(7, (2, 1, 1, width))[0])
    half = width // 2
    pair = x[..., :half].astype(np.complex128) + 1j * x[..., half:]
    angle = np.array(positions)[:, None, None, None] * 1e4 ** (-np.arange(half) / half)
    turned = pair * np.exp(1j * angle)
    want = np.concatenate([turned.real, turned.imag], axis=-1)
    got = att.rope(jnp.asarray(x), jnp.array(positions)[:, None])
    np.testing.assert_allclose(got, want, atol=2e-6)
