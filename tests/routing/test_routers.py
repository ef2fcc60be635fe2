"""Routers: exact counts, noise in training only, gates that carry a gradient, thresholds between floor and ceiling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.kernels import dct as spectral
from cerebra_jax.routing import routers as router
from cerebra_jax.routing.entropy_router import Decision

B, L, D = 3, 40, 8
EX = jnp.arange(B)


def net_of(causal=False, **route):
    return NetCfg(name="cerebra", width=D, heads=2, depth=2, causal=causal, route=RouteCfg(**route))


def decide(net, h, mask=None, key=None, tau=0.0, ex=EX):
    module = router.Router(net)
    params = module.init(jax.random.key(1), h, tau, 1.0, 1.0, 0, ex, mask)
    rngs = None if key is None else {"route": key}
    return module.apply(params, h, tau, 1.0, 1.0, 0, ex, mask, rngs=rngs)


H = jnp.asarray(np.random.RandomState(0).standard_normal((B, L, D)), jnp.float32)


@pytest.mark.parametrize(
    ("route", "k"), [({"k": 8}, 8), ({"rate": 0.3}, 12), ({"k": 99}, 40), ({"rate": 0.0}, 1)]
)
def test_topk_keeps_exactly_k_and_has_exactly_k_slots(route, k):
    net = net_of(mode="topk", **route)
    for key in (None, jax.random.key(3)):
        np.testing.assert_array_equal(decide(net, H, key=key).wanted.sum(1), k)
    assert router.layout(net, L).K == k


def test_topk_takes_padding_only_where_real_tokens_run_out():
    mask = np.arange(L)[None] < np.array([[20], [5], [0]])
    r = decide(net_of(mode="topk", k=8), H, mask)
    np.testing.assert_array_equal((r.wanted & mask).sum(1), [8, 5, 0])
    np.testing.assert_array_equal(r.wanted.sum(1), 8)


def test_noise_moves_choices_in_training_only_and_follows_the_example():
    net, key = net_of(mode="topk", k=8), jax.random.key(0)
    still, moved = decide(net, H), decide(net, H, key=key)
    np.testing.assert_array_equal(still.wanted, decide(net, H).wanted)
    assert (still.wanted != moved.wanted).any()
    np.testing.assert_array_equal(still.score, moved.score)
    np.testing.assert_array_equal(moved.wanted[1:], decide(net, H[1:], key=key, ex=EX[1:]).wanted)
    silent = dataclasses.replace(net, route=dataclasses.replace(net.route, noise=0.0))
    np.testing.assert_array_equal(still.wanted, decide(silent, H, key=key).wanted)


def test_random_ignores_the_tokens_and_keeps_its_rate():
    causal, exact = net_of(True, mode="random", rate=0.3), net_of(mode="random", rate=0.3)
    np.testing.assert_array_equal(decide(causal, H).wanted, decide(causal, -3 * H).wanted)
    np.testing.assert_array_equal(decide(exact, H).wanted.sum(1), 12)
    many = jnp.zeros((200, L, D))
    share = decide(causal, many, key=jax.random.key(5), ex=jnp.arange(200)).wanted.mean()
    assert abs(float(share) - 0.3) < 0.02  # 4 standard deviations of 8000 draws
    chiar, args = Decision(causal), (None, 1.0, 0.0, 0.0, 1.0)
    of = ((many, 0), (many + 1, 0), (many, 1))
    wanted = [chiar.apply({}, x, *args, layer, jnp.arange(200)).attention.wanted for x, layer in of]
    np.testing.assert_array_equal(wanted[0], wanted[1])
    assert (
        abs(float(wanted[0].mean()) - 0.3) < 0.02
        and 0.3 < float((wanted[0] != wanted[2]).mean()) < 0.5
    )


@pytest.mark.parametrize("mode", ["threshold", "topk", "soft"])
def test_the_gate_carries_a_gradient_to_the_score(mode):
    module, v = (
        router.Router(net_of(mode=mode, k=8)),
        np.random.RandomState(1).standard_normal((B, L)),
    )
    params = module.init(jax.random.key(1), H, 0.0, 1.0, 1.0, 0, EX, None)

    def used(params):
        r = module.apply(params, H, 0.0, 1.0, 1.0, 0, EX, None)
        return (r.gate * r.wanted * v).sum()

    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(jax.grad(used)(params)))


def test_a_threshold_keeps_its_rate_and_a_learned_one_starts_there():
    many = jnp.asarray(np.random.RandomState(0).standard_normal((B, 4000, D)), jnp.float32)
    for tau in ("running", "learned"):
        net = net_of(True, rate=0.2, tau=tau)
        start = float(router.init_routing(net)["tau"][0])
        score = decide(net, many, tau=start).score
        seen = router.observe(net, score, None, 1.0)
        if tau == "running":
            np.testing.assert_allclose((score > seen["tau"][:, None]).mean(1), 0.2, atol=0.01)
            half = router.observe(net, score, None, 0.5)["tau"]
            np.testing.assert_allclose((score > half[:, None]).mean(1), 0.1, atol=0.01)
        else:
            np.testing.assert_array_equal(seen["tau"], 0.0)
            # one draw of the weights: the spread of the scores is 1 only on average over draws
            assert 0.05 < float((score > 0).mean()) < 0.4


def test_floor_and_ceiling_bound_the_share_whatever_the_scores():
    score = jnp.asarray(np.random.RandomState(0).standard_normal((B, 1000)), jnp.float32)
    for tau in ("running", "learned"):
        net = net_of(True, rate=0.3, tau=tau, floor=0.1, ceiling=0.4)
        for shift, rate, want in ((5.0, 3.0, 0.4), (-5.0, 0.01, 0.1)):
            moved = score + shift
            share = (moved > router.observe(net, moved, None, rate)["tau"][:, None]).mean(1)
            np.testing.assert_allclose(share, want, atol=0.01)


def test_what_thresholds_follow_leaves_padding_out():
    score, mask = H[..., 0], np.arange(L)[None] < np.array([[20], [5], [0]])
    net = net_of(True, rate=0.25)
    seen = router.observe(net, jnp.where(mask, score, 1e6), mask, 1.0)
    alone = router.observe(net, score[:1, :20], None, 1.0)
    for name in ("tau", "spread"):
        assert np.isfinite(seen[name]).all()
        np.testing.assert_allclose(seen[name][0], alone[name][0], rtol=1e-5)


@pytest.mark.parametrize("dct", ["fft", "matmul"])
def test_the_controls_of_chiar_look_at_other_entropies(dct):
    """Each score is the entropy that its name says, of the same tokens, in float64 without our operations; the order of
    the features is all that tells the first two apart."""
    x = np.random.RandomState(2).standard_normal((1, 60, 64))
    k, n = np.arange(64)[:, None], np.arange(64)[None]
    basis = np.cos(np.pi * (2 * n + 1) * k / 128) * np.where(k == 0, 1, 2**0.5)

    def entropy(X):
        p = X**2 / (X**2).sum(-1, keepdims=True)
        return -(p * np.log(p)).sum(-1) / np.log(64)

    order = np.random.RandomState(0).permutation(64)
    want = {
        "spectral": entropy(x @ basis.T),
        "permuted": entropy(x[..., order] @ basis.T),
        "raw": entropy(x),
    }
    x32 = jnp.float32(x)
    for score, H_BxL in want.items():
        net = NetCfg(width=64, route=RouteCfg(mode="threshold", score=score, dct=dct))
        module, X = Decision(net), spectral.dct(x32, dct)
        wanted, _, _, got = module.apply(
            {}, x32, X, 1.0, 0.87, 0.87, 0.02, 0, jnp.zeros(1, int)
        ).attention
        np.testing.assert_allclose(got, H_BxL, atol=2e-6)
        np.testing.assert_array_equal(wanted, got > 0.87)
    assert np.abs(np.corrcoef([H.ravel() for H in want.values()]) - np.eye(3)).max() < 0.5
