"""The compressor: exact windows for any r and s, no padding, attention that waits for windows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.config import CompressCfg, NetCfg
from cerebra_jax.cost import count
from cerebra_jax.layers import compressor
from cerebra_jax.layers.rows import Rows, ranks, tokens
from cerebra_jax.models.model import build, cost_of, neutral_knobs

KINDS = ("conv", "attention", "hybrid")
RATIOS = (0.01, 0.07, 0.25, 0.3, 0.5, 0.6, 0.75, 1.0)
L, D = 13, 8


def compressor_of(kind="conv", r=0.3, s=0.6, reconstruct=False, n=L):
    return compressor.Compressor(n, r, compressor.ceil_share(s, D), 2, kind, reconstruct)


def made(module, *args):
    """Returns the module's forward pass with random parameters, and these."""
    params = drawn(jax.eval_shape(module.init, jax.random.key(0), *args)["params"])
    return jax.jit(lambda *args: module.apply({"params": params}, *args)), params


def drawn(shapes):
    rng = np.random.RandomState(0)
    return jax.tree.map(lambda s: jnp.float32(0.5 * rng.standard_normal(s.shape)), shapes)


def x_of(seed=0, n=L):
    return np.random.RandomState(seed).standard_normal((2, n, D)).astype(np.float32)


@pytest.mark.parametrize("r", RATIOS)
@pytest.mark.parametrize("n", [2, 13, 64, 100])
def test_windows_are_the_published_ones(n, r):
    win = compressor.windows(n, r)
    M = len(win.last_M)
    assert M == max(1, -(-round(r * 100) * n // 100))  # ceil(r n), in integers: 0.07 of 100 is 7
    for j in range(M):
        found = list(win.idx_MxW[j][win.inside_MxW[j]])
        assert found == list(range(j * n // M, -(-(j + 1) * n // M)))
        assert found[-1] == win.last_M[j]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [0.25, 0.3, 1.0])
def test_a_compressed_token_holds_its_window_and_nothing_else(kind, r):
    x, win = x_of(), compressor.windows(L, r)
    run, _ = made(compressor_of(kind, r), x)
    jacobian = jax.jacobian(lambda x: run(x)[0][0].sum(-1))(jnp.asarray(x))[:, 0]  # (M, L, D)
    reached = np.abs(np.asarray(jacobian)).max(-1) > 1e-6
    for j in range(len(win.last_M)):
        assert set(np.flatnonzero(reached[j])) == set(win.idx_MxW[j][win.inside_MxW[j]])
    assert run(x)[0].shape == (2, len(win.last_M), -(-6 * D // 10))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_enters_a_window(kind):
    x, mask = x_of(), np.arange(L)[None] < np.array([[7], [0]])
    run, _ = made(compressor_of(kind, reconstruct=True), x, mask)
    got, seen, loss = run(x, mask)
    other = np.where(mask[..., None], x, 1e4 * x_of(1))
    after, _, loss_after = run(other, mask)
    np.testing.assert_array_equal(got, after)
    np.testing.assert_array_equal(loss, loss_after)
    win = compressor.windows(L, 0.3)
    real = [(t[i] < 7).any() for t, i in zip(win.idx_MxW, win.inside_MxW, strict=True)]
    np.testing.assert_array_equal(seen[0], real)
    assert not seen[1].any()
    assert np.isfinite(got).all()
    assert loss[1] == 0 < loss[0]


def test_conv_with_equal_taps_is_the_mean_of_the_real_tokens():
    x, mask = x_of(n=12), np.arange(12)[None] < np.array([[7], [12]])
    module = compressor_of(r=0.25, s=1.0, n=12)
    params = {"kernel": jnp.broadcast_to(jnp.eye(D), (4, D, D))}
    got = module.apply({"params": params}, x, mask)[0]
    np.testing.assert_allclose(got[0, 1], x[0, 4:7].mean(0), rtol=1e-5)
    np.testing.assert_allclose(got[1], x[1].reshape(3, 4, D).mean(1), rtol=1e-5)


def test_reconstruction_learns_the_decoder_and_the_compressor_but_not_its_target():
    x = x_of()
    module = compressor_of(reconstruct=True)
    _, params = made(module, x)

    def loss(params, x):
        return module.apply({"params": params}, x)[2].sum()

    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(jax.grad(loss)(params, x)))
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(zero, jnp.asarray(x)), 0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
@pytest.mark.parametrize(
    ("r", "s"), [(0.3, 0.6), (0.25, 0.9), (1.0, 1.0)]
)  # s 0.9: 8 of 8; heads of even and odd width
def test_a_query_sees_exactly_the_windows_that_have_ended(causal, r, s):
    queries = tokens(jnp.asarray(x_of()), ranks(L, causal), causal)
    last_M = compressor.windows(L, r).last_M
    M, E = len(last_M), compressor.ceil_share(s, D)
    pair = compressor.Compressed(compressor_of(r=r, s=s), None, causal)
    attend = compressor.CompressedAttention(D, E, math.gcd(2, E))
    c = jnp.float32(np.random.RandomState(1).standard_normal((2, M, E)))

    def windows(c, seen) -> Rows:
        return pair.window_rows(queries, c, seen)

    every = jnp.ones((1, M), bool)
    shapes = jax.eval_shape(lambda: attend.init(jax.random.key(0), queries, windows(c, every)))
    params = drawn(shapes["params"])

    @jax.jit
    def run(c, seen):
        return attend.apply({"params": params}, queries, windows(c, seen))

    slope = jax.jacobian(lambda c: run(c, every)[0].sum(-1))
    reached = np.abs(np.asarray(slope(c)[:, 0])).max(-1) > 1e-7  # (L, M)
    ended = last_M[None] <= np.arange(L)[:, None]
    np.testing.assert_array_equal(reached, ended if causal else np.ones((L, M), bool))
    # where no window is seen, the null key is left
    assert np.isfinite(run(c, ~every)).all()


@pytest.mark.parametrize("n", [64, 200, 1000])
def test_each_segment_visits_the_windows_that_its_last_query_sees(n):
    for r in RATIOS:
        last_M = compressor.windows(n, r).last_M
        queries = tokens(jnp.zeros((1, n, 1)), ranks(n, True), True)
        keys = compressor.window_segments(queries.segments, last_M, True)
        ends = [end for _, end in queries.segments]
        assert [k1 for _, k1 in keys] == [sum(t <= end - 1 for t in last_M) for end in ends]
        assert (ends[-1], keys[-1][1]) == (n, len(last_M))
        assert compressor.window_segments(queries.segments, last_M, False) == ((0, len(last_M)),)

        net = NetCfg(name="cerebra", width=D, heads=2, depth=1, compress=CompressCfg("conv", r))
        cost = cost_of(net, n, 9, "cpu")
        wide = cost_of(dataclasses.replace(net, causal=False), n, 9, "cpu")
        light = "layer_00/light"
        assert cost.model[light] <= cost.executed[light] <= wide.executed[light]


@pytest.mark.parametrize(
    ("kind", "r", "s", "scan"),
    [("conv", 1.0, 0.6, False), ("conv", 0.5, 1.0, True), ("hybrid", 0.3, 1.0, False)],
)
def test_two_maps_become_one_where_that_is_no_more_work(kind, r, s, scan):
    """Keys and values come straight from a window's tokens: fewer products, no more FLOPs."""
    net = {"name": "cerebra", "depth": 2, "width": D, "heads": 2, "ffn_width": 8, "scan": scan}
    net["compress"] = {"kind": kind, "r": r, "s": s}
    model = build(config.parse({"task": {"seq_len": 12}, "net": net}), 20)
    ids = np.random.RandomState(0).randint(0, 20, (2, 12))
    batch = {"inputs_BxL": ids, "ex_B": np.arange(2)}
    variables = model.init(jax.random.key(0), batch)
    folded = compressor.fold(kind, variables["params"])
    assert len(folded) == (1 if scan else 2)

    def features(variables):
        return model.apply(variables, batch, neutral_knobs())[0].h

    want, got = jax.jit(features)(variables), jax.jit(features)(variables | {"folded": folded})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    before, after = (count.count(features, v) for v in (variables, variables | {"folded": folded}))
    assert after.flops <= before.flops
    assert after.bytes < before.bytes
    spoilt = jax.tree.map(lambda x: x * 1.1, folded)
    assert np.abs(jax.jit(features)(variables | {"folded": spoilt}) - want).max() > 1e-4
    layer = {
        "compressor": {"kernel": np.zeros((4, D, 4))},
        "light": {"kv": {"kernel": np.zeros((4, 8))}},
    }
    assert compressor.fold("conv", {"layer_00": layer, "norm": {}}) == {}
