"""Routers: exact counts, noise in training only, gates with a gradient, bounded thresholds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import NetCfg, RouteCfg
from cerebra_jax.kernels import dct as spectral
from cerebra_jax.layers.rows import ranks, tokens
from cerebra_jax.models.stack import capacity_of
from cerebra_jax.routing import thresholds
from cerebra_jax.routing.entropy_router import EntropyRouter
from cerebra_jax.routing.routers import Circumstances, Thresholds, router_of

B, L, D = 3, 40, 8
EX = jnp.arange(B)


def net_of(causal=False, **route):
    return NetCfg(name="cerebra", width=D, heads=2, depth=2, causal=causal, route=RouteCfg(**route))


def now(tau=0.0, ex=EX, layer=0, low=0.0, spread=1.0):
    """Returns what a router knows beside its tokens, at temperature 1."""
    found = Thresholds(*(jnp.float32(x) for x in (tau, low, spread)))
    return Circumstances(found, jnp.asarray(layer), jnp.float32(1), ex)


def decide(net, h, mask=None, key=None, tau=0.0, ex=EX):
    """Returns the decision of the router of a configuration, with parameters of its own."""
    module = router_of(D, net.route, net.causal)
    rows = tokens(h, ranks(h.shape[1], net.causal, mask), net.causal, mask)
    params = module.init(jax.random.key(1), rows, now(tau, ex))
    rngs = None if key is None else {"route": key}
    return module.apply(params, rows, now(tau, ex), rngs=rngs)


H = jnp.asarray(np.random.RandomState(0).standard_normal((B, L, D)), jnp.float32)


@pytest.mark.parametrize(
    ("route", "k"), [({"k": 8}, 8), ({"rate": 0.3}, 12), ({"k": 99}, 40), ({"rate": 0.0}, 1)]
)
def test_topk_keeps_exactly_k_and_has_exactly_k_slots(route, k):
    net = net_of(mode="topk", **route)
    for key in (None, jax.random.key(3)):
        np.testing.assert_array_equal(decide(net, H, key=key).wanted.sum(1), k)
    assert capacity_of(net, net.route, L, gathers=True).layout.K == k


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


def test_random_pays_for_as_many_tokens_as_it_selects():
    found = decide(net_of(mode="random", k=8), H)  # the rate is a quarter, 10 of 40
    np.testing.assert_array_equal(found.wanted.sum(1), 8)
    np.testing.assert_allclose(found.p.sum(1), 8, rtol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_a_learned_gate_leaves_the_decision_to_chance(causal):
    plain = net_of(causal, mode="random", rate=0.3)
    gated = net_of(causal, mode="random", rate=0.3, gate="learned")
    for x in (H, -3 * H):
        for key in (None, jax.random.key(5)):
            one, found = decide(plain, x, key=key), decide(gated, x, key=key)
            np.testing.assert_array_equal(found.wanted, one.wanted)
            np.testing.assert_array_equal(found.p, one.p)
    assert (one.gate == 1).all()
    np.testing.assert_allclose(found.gate, 1 / (1 + np.exp(-found.score)), rtol=1e-6)
    assert found.gate.min() < 0.3 and found.gate.max() > 0.7  # it looks at the tokens


def test_the_random_router_of_chiar_differs_from_layer_to_layer_and_ignores_the_tokens():
    chiar = EntropyRouter(RouteCfg(mode="random", rate=0.3), "fft")
    many, every = jnp.zeros((200, L, D)), jnp.arange(200)

    def wanted(x, layer):
        rows = tokens(x, ranks(L, True), True)
        return chiar.apply({}, rows, None, now(ex=every, layer=layer)).attention.wanted

    first = wanted(many, 0)
    np.testing.assert_array_equal(first, wanted(many + 1, 0))
    assert abs(float(first.mean()) - 0.3) < 0.02
    assert 0.3 < float((first != wanted(many, 1)).mean()) < 0.5


@pytest.mark.parametrize("mode", ["threshold", "topk", "soft", "random"])
def test_the_gate_carries_a_gradient_to_the_score(mode):
    net = net_of(mode=mode, k=8, gate="learned" if mode == "random" else "one")
    module = router_of(D, net.route, net.causal)
    v = np.random.RandomState(1).standard_normal((B, L))
    rows = tokens(H, ranks(L, False), False)
    params = module.init(jax.random.key(1), rows, now())

    def used(params):
        r = module.apply(params, rows, now())
        return (r.gate * r.wanted * v).sum()

    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(jax.grad(used)(params)))


def test_a_threshold_keeps_its_rate_and_a_learned_one_starts_there():
    many = jnp.asarray(np.random.RandomState(0).standard_normal((B, 4000, D)), jnp.float32)
    for tau in ("running", "learned"):
        net = net_of(True, rate=0.2, tau=tau)
        start = float(thresholds.initial([net.route])["tau"][0])
        score = decide(net, many, tau=start).score
        seen = thresholds.observe(net.route, score, None, 1.0)
        if tau == "running":
            np.testing.assert_allclose((score > seen["tau"][:, None]).mean(1), 0.2, atol=0.01)
            half = thresholds.observe(net.route, score, None, 0.5)["tau"]
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
            tau_B = thresholds.observe(net.route, moved, None, rate)["tau"]
            share = (moved > tau_B[:, None]).mean(1)
            np.testing.assert_allclose(share, want, atol=0.01)


def test_what_thresholds_follow_leaves_padding_out():
    score, mask = H[..., 0], np.arange(L)[None] < np.array([[20], [5], [0]])
    net = net_of(True, rate=0.25)
    seen = thresholds.observe(net.route, jnp.where(mask, score, 1e6), mask, 1.0)
    alone = thresholds.observe(net.route, score[:1, :20], None, 1.0)
    for name in ("tau", "spread"):
        assert np.isfinite(seen[name]).all()
        np.testing.assert_allclose(seen[name][0], alone[name][0], rtol=1e-5)


@pytest.mark.parametrize("dct", ["fft", "matmul"])
def test_the_controls_of_chiar_look_at_other_entropies(dct):
    """Each score is the entropy that its name says, in float64 without our operations.

    The order of the features is all that tells the first two apart.
    """
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
        module = EntropyRouter(RouteCfg(mode="threshold", score=score), dct)
        X = spectral.spectrum(x32, dct)
        rows = tokens(x32, ranks(60, True), True)
        known = now(0.87, jnp.zeros(1, int), low=0.87, spread=0.02)
        wanted, _, _, got = module.apply({}, rows, X, known).attention
        np.testing.assert_allclose(got, H_BxL, atol=2e-6)
        np.testing.assert_array_equal(wanted, got > 0.87)
    assert np.abs(np.corrcoef([H.ravel() for H in want.values()]) - np.eye(3)).max() < 0.5
