"""The compressor: exact windows for any r and s, padding that never enters, and an attention that waits for windows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.config import CompressCfg, NetCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.layers import block, compressor
from cerebra_jax.models import model as build

KINDS = ("conv", "attention", "hybrid")
RATIOS = (0.01, 0.07, 0.25, 0.3, 0.5, 0.6, 0.75, 1.0)
L, D = 13, 8


def net_of(kind="conv", r=0.3, s=0.6, causal=True, reconstruct=0.0):
    return NetCfg(width=D, heads=2, causal=causal, compress=CompressCfg(kind, r, s, reconstruct))


def made(module, *args):
    """Parameters drawn at random, and the module's forward pass with them."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    rng = np.random.RandomState(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), jnp.float32), shapes
    )
    return lambda *args: module.apply({"params": params}, *args), params


def x_of(seed=0, n=L):
    return np.random.RandomState(seed).standard_normal((2, n, D)).astype(np.float32)


@pytest.mark.parametrize("r", RATIOS)
@pytest.mark.parametrize("n", [2, 13, 64, 100])
def test_windows_are_the_published_ones(n, r):
    win = compressor.windows(n, r)
    M = len(win.last_M)
    assert M == max(1, -(-round(r * 100) * n // 100))  # ceil(r n), in integers: 0.07 of 100 is 7
    for j in range(M):
        tokens = list(win.idx_MxW[j][win.inside_MxW[j]])
        assert (
            tokens == list(range(j * n // M, -(-(j + 1) * n // M))) and tokens[-1] == win.last_M[j]
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("r", [0.25, 0.3, 1.0])
def test_a_compressed_token_holds_its_window_and_nothing_else(kind, r):
    net = net_of(kind, r, 0.6)
    x, win = x_of(), compressor.windows(L, r)
    run, _ = made(compressor.Compressor(net, L), x)
    jacobian = jax.jacobian(lambda x: run(x)[0][0].sum(-1))(jnp.asarray(x))[:, 0]  # (M, L, D)
    reached = np.abs(np.asarray(jacobian)).max(-1) > 1e-6
    for j in range(len(win.last_M)):
        assert set(np.flatnonzero(reached[j])) == set(win.idx_MxW[j][win.inside_MxW[j]])
    assert run(x)[0].shape == (2, len(win.last_M), -(-6 * D // 10))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_enters_a_window(kind):
    x, mask = x_of(), np.arange(L)[None] < np.array([[7], [0]])
    run, _ = made(compressor.Compressor(net_of(kind, reconstruct=1.0), L), x, mask)
    got, seen, loss = run(x, mask)
    other = np.where(mask[..., None], x, 1e4 * x_of(1))
    after, _, loss_after = run(other, mask)
    np.testing.assert_array_equal(got, after)
    np.testing.assert_array_equal(loss, loss_after)
    last = compressor.windows(L, 0.3)
    np.testing.assert_array_equal(
        seen[0], [(t[i] < 7).any() for t, i in zip(last.idx_MxW, last.inside_MxW, strict=True)]
    )
    assert not seen[1].any() and np.isfinite(got).all() and loss[1] == 0 < loss[0]


def test_conv_with_equal_taps_is_the_mean_of_the_real_tokens():
    x, mask = x_of(n=12), np.arange(12)[None] < np.array([[7], [12]])
    module = compressor.Compressor(net_of(r=0.25, s=1.0), 12)
    got = module.apply({"params": {"kernel": jnp.broadcast_to(jnp.eye(D), (4, D, D))}}, x, mask)[0]
    np.testing.assert_allclose(got[0, 1], x[0, 4:7].mean(0), rtol=1e-5)
    np.testing.assert_allclose(got[1], x[1].reshape(3, 4, D).mean(1), rtol=1e-5)


def test_reconstruction_learns_the_decoder_and_the_compressor_but_not_its_target():
    x = x_of()
    module = compressor.Compressor(net_of(reconstruct=1.0), L)
    _, params = made(module, x)
    loss = lambda params, x: module.apply({"params": params}, x)[2].sum()  # noqa: E731
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(jax.grad(loss)(params, x)))
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(zero, jnp.asarray(x)), 0)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "encoder"])
@pytest.mark.parametrize(
    ("r", "s"), [(0.3, 0.6), (0.25, 0.9), (1.0, 1.0)]
)  # s 0.9: 8 of 8; heads of even and odd width
def test_a_query_sees_exactly_the_windows_that_have_ended(causal, r, s):
    net = net_of(r=r, s=s, causal=causal)
    x, pos, order = x_of(), jnp.arange(L)[None], block.orders(net_of(causal=causal), L)
    M, E = len(compressor.windows(L, r).last_M), compressor.light_width(net.compress, D)
    c = np.random.RandomState(1).standard_normal((2, M, E)).astype(np.float32)
    seen = jnp.ones((1, M), bool)
    run, _ = made(compressor.CompressedAttention(net, L), x, c, seen, pos, order)
    jacobian = jax.jacobian(lambda c: run(x, c, seen, pos, order)[0].sum(-1))(jnp.asarray(c))[
        :, 0
    ]  # (L, M, E)
    reached = np.abs(np.asarray(jacobian)).max(-1) > 1e-7
    ended = compressor.windows(L, r).last_M[None] <= np.arange(L)[:, None]
    np.testing.assert_array_equal(reached, ended if causal else np.ones((L, M), bool))
    assert np.isfinite(run(x, c, jnp.zeros((1, M), bool), pos, order)).all()  # the null key is left


@pytest.mark.parametrize("n", [64, 200, 1000])
def test_each_segment_visits_the_windows_that_its_last_query_sees(n):
    for r in RATIOS:
        last_M = compressor.windows(n, r).last_M
        plan = compressor.light_plan(net_of(r=r), n)
        assert [(k0, k1) for *_, k0, k1 in plan] == [
            (0, sum(t <= b - 1 for t in last_M)) for _, b, *_ in plan
        ]
        assert plan[-1][1:] == (n, 0, len(last_M))
        model, executed = compressor.light_flops(net_of(r=r), n)
        assert model <= executed <= compressor.light_flops(net_of(r=r, causal=False), n)[1]


@pytest.mark.parametrize(("kind", "r", "s", "scan"), [("conv", 1.0, 0.6, False), ("conv", 0.5, 1.0, True),
                                                      ("hybrid", 0.3, 1.0, False)])  # fmt: skip
def test_two_maps_become_one_where_that_is_no_more_work(kind, r, s, scan):
    """Keys and values of a window straight from its tokens: the same features, fewer products, no more FLOPs."""
    net = {"name": "cerebra", "depth": 2, "width": D, "heads": 2, "ffn_width": 8, "scan": scan,
           "compress": {"kind": kind, "r": r, "s": s}}  # fmt: skip
    model = build.build(config.parse({"task": {"seq_len": 12}, "net": net}), 20)
    batch = {"inputs_BxL": np.random.RandomState(0).randint(0, 20, (2, 12)), "ex_B": np.arange(2)}
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch))()
    folded = compressor.fold(model.net, variables["params"])
    assert len(folded) == (1 if scan else 2)

    def features(variables):
        return model.apply(variables, batch, build.neutral_knobs())[0].h

    want, got = jax.jit(features)(variables), jax.jit(features)(variables | {"folded": folded})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    before, after = (jaxpr.count(features, v) for v in (variables, variables | {"folded": folded}))
    assert after.flops <= before.flops and after.bytes < before.bytes
    spoilt = jax.tree.map(lambda x: x * 1.1, folded)
    assert np.abs(jax.jit(features)(variables | {"folded": spoilt}) - want).max() > 1e-4
    few = dataclasses.replace(model.net, compress=CompressCfg("conv", 0.25, 0.5))
    layer = {
        "compressor": {"kernel": np.zeros((4, D, 4))},
        "light": {"kv": {"kernel": np.zeros((4, 8))}},
    }
    assert compressor.fold(few, {"layer_00": layer, "norm": {}}) == {}
