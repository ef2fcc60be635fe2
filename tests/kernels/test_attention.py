"""Attention over static key prefixes against the textbook formula: values, gradients, memory and price."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.cost import count as jaxpr
from cerebra_jax.kernels import attention as att


def _plain(q, k, v, qpos, kpos):
    """All scores at once, mask kpos <= qpos; everything in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    s = jnp.einsum("bhqc,bhkc->bhqk", q, k) / q.shape[-1] ** 0.5
    s = jnp.where((kpos[:, None, :] <= qpos[:, :, None])[:, None], s, -jnp.inf)
    return jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(s, axis=-1), v)


def _random(seed, *shapes, dtype=jnp.float32):
    return [
        x.astype(dtype)
        for x in map(jax.random.normal, jax.random.split(jax.random.key(seed), len(shapes)), shapes)
    ]


def _with_gradients(f, q, k, v, do):
    out, back = jax.vjp(f, q, k, v)
    return dict(zip(("o", "dq", "dk", "dv"), (out, *back(do.astype(out.dtype))), strict=True))


def _assert_close(got, want, bound):
    for name, w in want.items():
        g, w = np.float32(got[name]), np.float32(w)
        assert np.isfinite(g).all() and np.abs(g - w).max() <= bound * np.abs(w).max(), name


def _dense(L, kernel):
    pos = jnp.arange(L)[None]
    plan = att.causal_plan(L)
    return (lambda q, k, v: att.attend(q, k, v, pos, pos, plan, kernel)), (
        lambda q, k, v: _plain(q, k, v, pos, pos)
    )


@pytest.fixture(params=["full", "blockwise", "blockwise, 24 queries at once"])
def kernel(request, monkeypatch):
    """Chunks of 24 leave a rest in most segments, and loop over whole ones."""
    name, *chunk = request.param.split(", ")
    if chunk:
        monkeypatch.setattr(att, "CHUNK", 24)
    return name


@pytest.mark.parametrize("L", [1, 37, 64, 200, 2048])
def test_dense_is_plain_causal_attention(L, kernel):
    mine, plain = _dense(L, kernel)
    q, k, v, do = _random(L, *[(2, 2, L, 8)] * 4)
    got, want = (
        jax.jit(lambda *a, f=f: _with_gradients(f, *a))(q, k, v, do) for f in (mine, plain)
    )
    _assert_close(got, want, 1e-5)


def test_bfloat16_stays_near_float32(kernel):
    mine, plain = _dense(200, kernel)
    args = _random(0, *[(2, 2, 200, 8)] * 4, dtype=jnp.bfloat16)
    got, want = (_with_gradients(f, *args) for f in (mine, plain))
    assert all(x.dtype == jnp.bfloat16 for x in got.values())
    _assert_close(got, want, 2e-2)


def test_gathered_queries_see_their_own_past(kernel):
    B, L, n = 2, 96, 40
    q, k, v, do = _random(3, (B, 2, n, 8), (B, 2, L, 8), (B, 2, L, 8), (B, 2, n, 8))
    rows = [np.random.default_rng(b).choice(L, n, replace=False) for b in range(B)]
    qpos = (
        jnp.sort(jnp.array(np.stack(rows)), axis=1).at[1, -3:].set(L)
    )  # the last three slots are empty
    kpos = jnp.arange(L)[None]
    plan = ((0, n, 0, L),)
    got = _with_gradients(lambda *a: att.attend(*a, qpos, kpos, plan, kernel), q, k, v, do)
    _assert_close(got, _with_gradients(lambda *a: _plain(*a, qpos, kpos), q, k, v, do), 1e-5)


def test_a_null_key_is_a_key_that_every_query_sees(kernel):
    """Also by the queries of the first segment, which sees no other key, and of the second, where the first queries do
    not either: no gradient is lost."""
    H, L, C, M = 2, 256, 8, 64
    q, k, v, do, k0, v0 = _random(
        7, (2, H, L, C), (2, H, M, C), (2, H, M, C), (2, H, L, C), (H, C), (H, C)
    )
    qpos, kpos = jnp.arange(L)[None], 80 + 2 * jnp.arange(M)[None]
    plan = ((0, 64, 0, 0), (64, 128, 0, 24), (128, 256, 0, M))

    def mine(q, k, v, k0, v0):
        return att.attend(q, k, v, qpos, kpos, plan, kernel, null=(k0, v0))

    def joined(q, k, v, k0, v0):
        k, v = (
            jnp.concatenate([jnp.broadcast_to(x0[None, :, None], (2, H, 1, C)), x], 2)
            for x0, x in ((k0, k), (v0, v))
        )
        return _plain(q, k, v, qpos, jnp.pad(kpos, ((0, 0), (1, 0)), constant_values=-1))

    got, want = (jax.vjp(f, q, k, v, k0, v0) for f in (jax.jit(mine), joined))
    names = ("dq", "dk", "dv", "dk0", "dv0")
    got, want = ({"o": o} | dict(zip(names, back(do), strict=True)) for o, back in (got, want))
    _assert_close(got, want, 1e-5)


def test_the_future_has_no_gradient(kernel):
    mine, _ = _dense(300, kernel)
    q, k, v = _random(4, *[(1, 2, 300, 8)] * 3)
    t = 130
    dk, dv = jax.grad(lambda k, v: mine(q, k, v)[:, :, :t].sum(), argnums=(0, 1))(k, v)
    assert not dk[:, :, t:].any() and not dv[:, :, t:].any()
    assert dk[:, :, :t].any(axis=-1).all() and dv[:, :, :t].any(axis=-1).all()


def test_large_scores_do_not_overflow(kernel):
    mine, plain = _dense(64, kernel)
    q, k, v, do = _random(5, *[(1, 1, 64, 8)] * 4)
    got, want = (_with_gradients(f, 100 * q, 100 * k, v, do) for f in (mine, plain))
    _assert_close(got, {name: want[name] for name in ("o", "dv")}, 1e-5)
    # the softmax is saturated: dq and dk are differences of equal numbers, times keys and queries of size 100
    assert max(np.abs(got[name] - want[name]).max() for name in ("dq", "dk")) < 100 * 1e-5


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_null_key_far_above_or_below_the_others_takes_all_or_nothing(sign, kernel):
    q, k, v, do = _random(6, *[(1, 1, 8, 8)] * 4)
    q, k, v0, pos = jnp.abs(q) + 1, jnp.abs(k), jnp.ones((1, 8)), jnp.arange(8)[None]
    null = (sign * jnp.full((1, 8), 1000.0), v0)
    o, back = jax.vjp(
        lambda *a: att.attend(*a, pos, pos, ((0, 8, 0, 8),), kernel, null=null), q, k, v
    )
    want = jnp.ones_like(o) if sign > 0 else _plain(q, k, v, pos, pos)
    np.testing.assert_allclose(o, want, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in back(do))


@pytest.mark.parametrize("L", [2048, 4096])
def test_long_sequences_never_hold_all_scores(L):
    B, H, C = 1, 2, 8
    kernel = att.score_kernel(att.causal_plan(L), "cpu")
    mine, plain = _dense(L, kernel)
    x = jax.ShapeDtypeStruct((B, H, L, C), jnp.float32)

    def temp(f):
        back = jax.jit(lambda q, k, v, do: jax.vjp(f, q, k, v)[1](do)).lower(x, x, x, x).compile()
        return back.memory_analysis().temp_size_in_bytes

    scores = 4 * B * H * L * L
    assert temp(plain) > scores
    assert temp(mine) < scores / 2
    largest = max(
        _sizes(jax.make_jaxpr(lambda q, k, v, do: jax.vjp(mine, q, k, v)[1](do))(x, x, x, x).jaxpr)
    )
    assert largest <= B * H * L * max(att.CHUNK, C)


def _sizes(jaxpr_):
    for eqn in jaxpr_.eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


@given(
    L=st.integers(1, 400),
    heads=st.sampled_from([1, 3]),
    kernel=st.sampled_from(["full", "blockwise"]),
)
@settings(max_examples=15, deadline=None)
def test_price_is_the_count(L, heads, kernel):
    mine, _ = _dense(L, kernel)
    x = jax.ShapeDtypeStruct((1, heads, L, 8), jnp.float32)
    assert jaxpr.count(mine, x, x, x).flops == att.scores_flops(att.causal_plan(L), heads * 8)


@pytest.mark.parametrize("L", [64, 256])
def test_the_backward_pass_costs_twice_the_forward_and_half_of_it_more_to_form_the_weights_again(
    L, kernel
):
    mine, _ = _dense(L, kernel)
    x = jax.ShapeDtypeStruct((1, 2, L, 8), jnp.float32)
    both = jaxpr.count(lambda q, k, v, do: _with_gradients(mine, q, k, v, do), x, x, x, x).flops
    assert both == (3 if kernel == "full" else 3.5) * att.scores_flops(att.causal_plan(L), 16)


def test_few_scores_are_kept_many_are_formed_again():
    kernels = [att.score_kernel(((0, L, 0, L),), "cpu") for L in (64, 1024, 1025, 8192)]
    assert kernels == ["full", "full", "blockwise", "blockwise"]
    assert att.score_kernel(((0, 2048, 0, 1024),), "cpu", heads=0.5) == "full"


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_pieces_tile_the_segments_in_whole_chunks(Q, K):
    plan = tuple((a, b, 0, K) for a, b in att.segment_bounds(Q, 3))
    got = att.pieces(plan, "blockwise")
    assert att.scores_flops(tuple(segment for segment, _ in got), 8) == att.scores_flops(plan, 8)
    assert [p[0] for p, _ in got] == [0, *(p[1] for p, _ in got[:-1])] and got[-1][0][1] == Q
    assert all((b - a) % chunk == 0 and chunk <= 4 * att.CHUNK and chunk * K <= att.CHUNK * max(Q, K)
               for (a, b, _, _), chunk in got if a < b)  # fmt: skip


@given(st.integers(1, 5000))
def test_causal_plans_tile_the_queries(L):
    plan = att.causal_plan(L)
    assert [p[0] for p in plan] == [0, *(p[1] for p in plan[:-1])] and plan[-1][1] == L
    assert all((k0, k1) == (0, q1) for _, q1, k0, k1 in plan)


@pytest.mark.parametrize("reach", [(2, 0), (64, 0), (9, 3)])
@pytest.mark.parametrize("L", [37, 700])
def test_a_window_is_masked_attention_and_its_plan_costs_what_it_visits(L, reach, kernel):
    back, ahead = reach
    pos, plan = jnp.arange(L)[None], att.window_plan(L, reach)
    mine = lambda q, k, v: att.attend(q, k, v, pos, pos, plan, kernel, reach)  # noqa: E731
    near = (
        jnp.abs(pos.T - pos + (ahead - back) / 2) <= (ahead + back) / 2
    )  # −ahead <= query − key <= back

    def plain(q, k, v):
        s = jnp.where(near, jnp.einsum("bhqc,bhkc->bhqk", q, k) / q.shape[-1] ** 0.5, -jnp.inf)
        return jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(s, axis=-1), v)

    q, k, v, do = _random(L, *[(1, 2, L, 8)] * 4)
    got, want = (
        jax.jit(lambda *a, f=f: _with_gradients(f, *a))(q, k, v, do) for f in (mine, plain)
    )
    _assert_close(got, want, 1e-5)
    assert jaxpr.count(mine, q, k, v).flops == att.scores_flops(plan, 16)
    if L == 700 and back < 64:  # far from the whole square, and from the causal half of it
        assert att.scores_flops(plan, 16) < 0.4 * att.scores_flops(att.causal_plan(L), 16)


def test_rope_sees_only_distances():
    q, k = _random(6, (1, 1, 1, 16), (1, 1, 1, 16))

    def score(i, j):
        at = lambda x, p: att.rope(x, jnp.full((1, 1), p))  # noqa: E731
        return float((at(q, i) * at(k, j)).sum())

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert abs(score(7, 3) - score(7, 5)) > 1e-3


@given(
    st.lists(st.integers(0, (1 << 20) - 1), min_size=2, max_size=2), st.sampled_from([2, 16, 64])
)
@settings(max_examples=20, deadline=None)
def test_rope_turns_each_pair_by_its_angle(positions, width):
    x = np.asarray(_random(7, (2, 1, 1, width))[0])
    half = width // 2
    pair = x[..., :half].astype(np.complex128) + 1j * x[..., half:]
    turned = pair * np.exp(
        1j * np.array(positions)[:, None, None, None] * 1e4 ** (-np.arange(half) / half)
    )
    want = np.concatenate([turned.real, turned.imag], axis=-1)
    got = att.rope(jnp.asarray(x), jnp.array(positions)[:, None])
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("keys", [129, 257, 512, 1024])
def test_chunks_of_more_queries_change_nothing(keys):
    """Few keys make longer chunks; scores stay CHUNK x Q at most, and the result is that of whole scores."""
    B, H, Q, C = 1, 2, 1024, 8
    rng = np.random.RandomState(keys)
    q, k, v = (jnp.asarray(rng.standard_normal((B, H, n, C)), jnp.float32) for n in (Q, keys, keys))
    qpos, kpos = jnp.arange(Q)[None], jnp.arange(keys)[None] * (Q // keys)
    plan = ((0, Q, 0, keys),)

    def run(kernel):
        f = lambda q, k, v: (att.attend(q, k, v, qpos, kpos, plan, kernel) ** 2).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(f, (0, 1, 2)))

    for a, b in zip(
        jax.tree.leaves(run("blockwise")(q, k, v)),
        jax.tree.leaves(run("full")(q, k, v)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    assert max(_sizes(jax.make_jaxpr(run("blockwise"))(q, k, v).jaxpr)) <= B * H * att.CHUNK * (
        Q + 4
    )
