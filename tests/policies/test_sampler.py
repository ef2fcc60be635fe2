"""The sampler's table and draws: probabilities, batches without repetition, weights that leave no
bias.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import SamplerCfg
from cerebra_jax.policies import sampler

N, B = 12, 4
CFG = SamplerCfg(beta=1.5, gamma=2.0, floor=0.05, clip=1e6)
KEY = jax.random.key(3)


def sampling(cfg: SamplerCfg = CFG, examples: int = N, first: int = 0, groups=None):
    """The policy for batches of B."""
    return sampler.Sampling(cfg, examples, B, first, groups)


def fresh_table(**given) -> sampler.Sampler:
    """The table before the first step."""
    return sampling(**given).init({}, KEY)


def table(cfg: SamplerCfg = CFG, seen: int = N) -> sampler.Sampler:
    """A table that knows the first `seen` examples."""
    rng = np.random.RandomState(0)
    s = fresh_table(cfg=cfg)
    known = jnp.arange(N) < seen
    loss, cost = rng.gamma(2.0, 1.0, N), rng.uniform(0.2, 1.0, N)
    return s._replace(loss_N=jnp.float32(loss), cost_N=jnp.float32(cost), seen_N=known)


def draws(cfg: SamplerCfg, s: sampler.Sampler, n: int) -> sampler.Drawn:
    """n draws, one for each step, as numpy."""
    policy = sampling(cfg, s.loss_N.size)
    many = jax.jit(jax.vmap(lambda step: policy.draw(s, KEY, step)))(jnp.arange(n))
    return sampler.Drawn(*map(np.asarray, many))


def test_probabilities_are_the_formula():
    s = table()
    loss, cost = np.float64(s.loss_N), np.float64(s.cost_N)
    raw = np.exp(1.5 * (loss - loss.mean()) / loss.std() - 2.0 * cost)
    want = 0.95 * raw / raw.sum() + 0.05 / N
    np.testing.assert_allclose(sampler.probs(CFG, s), want, rtol=1e-5)
    assert np.asarray(sampler.probs(CFG, s)).min() >= 0.05 / N
    fresh = fresh_table()
    np.testing.assert_allclose(sampler.probs(CFG, fresh), 1 / N, rtol=1e-6)
    half = np.asarray(sampler.probs(CFG, table(seen=6)))  # what was never seen is taken for average
    assert np.ptp(half[6:]) == 0 and half[:6].min() < half[6] < half[:6].max()


def test_a_batch_repeats_nothing_and_follows_the_step_alone():
    s = table()
    a, b = draws(CFG, s, 200), draws(CFG, s, 200)
    np.testing.assert_array_equal(a.index_B, b.index_B)
    assert all(len(set(row)) == B for row in a.index_B)
    assert len({tuple(row) for row in a.index_B}) > 100


@pytest.mark.parametrize("mode", ["importance", "curriculum"])
def test_the_weighted_gradient_is_the_plain_one_in_expectation(mode):
    """A linear model: the mean over draws of (Σ weight · gradient) / B against the gradient of the
    mean loss over all examples, in standard errors. B is a third of N, so inclusion is far from
    B·p; curriculum must be far off.
    """
    cfg = dataclasses.replace(CFG, mode=mode)
    rng = np.random.RandomState(1)
    x_NxD, y_N, theta_D = rng.randn(N, 3), rng.randn(N), rng.randn(3)
    grad_NxD = 2 * (x_NxD @ theta_D - y_N)[:, None] * x_NxD
    d = draws(cfg, table(), 20_000)
    each = (d.weight_B[..., None] * grad_NxD[d.index_B]).mean(1)
    error = np.abs(each.mean(0) - grad_NxD.mean(0)) / (each.std(0) / np.sqrt(len(each)))
    assert (error.max() < 4.0) == (mode == "importance")
    if mode == "importance":
        assert abs(d.weight_B.mean() - 1) < 4 * d.weight_B.mean(1).std() / np.sqrt(len(each))
        naive = (
            grad_NxD[d.index_B]
            / (N * np.asarray(sampler.probs(cfg, table())))[d.index_B][..., None]
        ).mean(1)
        assert (
            np.abs(naive.mean(0) - grad_NxD.mean(0)) / (naive.std(0) / np.sqrt(len(each)))
        ).max() > 8.0


GROUPS = np.array([0, 2, 2, 0, 2, 0, 2, 0, 2, 0, 2, 2], np.int32)  # five examples, none and seven


def grouped(cfg: SamplerCfg, s: sampler.Sampler, n: int) -> sampler.Drawn:
    """As `draws`, each of one group."""
    policy = sampling(cfg, groups=GROUPS)
    many = jax.jit(jax.vmap(lambda step: policy.draw(s, KEY, step)))(jnp.arange(n))
    return sampler.Drawn(*map(np.asarray, many))


def test_a_batch_of_one_group_is_drawn_by_its_mass_and_leaves_no_bias():
    """Groups of B + 1 and of B + 3 examples: the mean over draws of (Σ weight · gradient) / B, in
    standard errors.
    """
    s, n = table(), 20_000
    d, p = grouped(CFG, s, n), np.asarray(sampler.probs(CFG, s))
    assert (np.ptp(GROUPS[d.index_B], axis=1) == 0).all() and all(
        len(set(row)) == B for row in d.index_B[:200]
    )
    share, mass = (GROUPS[d.index_B[:, 0]] == 0).mean(), p[GROUPS == 0].sum()
    assert 0.1 < mass < 0.9 and abs(share - mass) < 4 * np.sqrt(mass * (1 - mass) / n)
    grad_NxD = np.random.RandomState(1).randn(N, 3) + 1.0
    each = (d.weight_B[..., None] * grad_NxD[d.index_B]).mean(1)
    error = np.abs(each.mean(0) - grad_NxD.mean(0)) / (each.std(0) / np.sqrt(n))
    assert error.max() < 4.0
    assert abs(d.weight_B.mean() - 1) < 4 * d.weight_B.mean(1).std() / np.sqrt(n)
    again, _ = sampling(groups=GROUPS).advance(s, KEY, 7)
    np.testing.assert_array_equal(again.drawn.index_B[1], grouped(CFG, s, 10).index_B[9])


def test_small_batches_of_many_weigh_one_over_n_p():
    """For B ≪ N the inclusion weight is 1/(N·p) up to a factor that all of a batch share."""
    s = fresh_table(examples=4000)
    loss = np.random.RandomState(2).uniform(size=4000)
    s = s._replace(loss_N=jnp.float32(loss), seen_N=jnp.ones(4000, bool))
    d, p = draws(CFG, s, 50), np.asarray(sampler.probs(CFG, s))
    ratio = d.weight_B * 4000 * p[d.index_B]
    assert np.abs(ratio / ratio.mean(1, keepdims=True) - 1).max() < 0.02
    clipped = draws(dataclasses.replace(CFG, clip=1.0), s, 50)
    assert clipped.weight_B.max() == 1.0 < d.weight_B.max()


def test_what_the_clip_cuts_off_is_the_weight_that_is_missing():
    """Without a clip the weights average 1: what is below is the share that was cut off."""
    s, n = table(), 4_000
    policy = sampling(dataclasses.replace(CFG, clip=1.5))
    steps = jnp.arange(n)
    cut = jax.jit(jax.vmap(lambda step: policy.clipped(s, KEY, step)))(steps)
    d = draws(policy.cfg, s, n)
    free = draws(CFG, s, n)
    assert d.weight_B.max() == 1.5 < free.weight_B.max()
    np.testing.assert_array_equal(d.index_B, free.index_B)
    np.testing.assert_allclose(cut, (free.weight_B - d.weight_B).mean(1), rtol=1e-4, atol=1e-6)
    assert float(cut.mean()) == pytest.approx(1 - d.weight_B.mean(), abs=0.02) and cut.mean() > 0.03
    assert float(sampling().clipped(s, KEY, 0)) == 0.0


def test_the_table_follows_what_steps_show():
    cfg = dataclasses.replace(CFG, decay=0.75)
    policy = sampling(cfg)
    s = policy.init({}, KEY)
    index = jnp.array([7, 2, 5, 0])
    real = jnp.array([True, True, True, False])
    for loss in (4.0, 8.0):
        each = sampler.Each(jnp.full(4, loss), jnp.full(4, loss / 10), real)
        s = policy.learn(s, index, each)
    want = np.zeros(N)
    want[[7, 2, 5]] = 0.75 * 4 + 0.25 * 8
    np.testing.assert_allclose(s.loss_N, want)
    np.testing.assert_allclose(s.cost_N, np.where(want > 0, want / 10, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(s.seen_N, want > 0)


def test_draws_wait_in_a_queue_of_two():
    s = table()
    policy, first = sampling(), s.drawn
    after, new = policy.advance(s, KEY, 0)
    np.testing.assert_array_equal(after.drawn.index_B, np.stack([first.index_B[1], new.index_B]))
    np.testing.assert_array_equal(new.index_B, policy.draw(s, KEY, 2).index_B)
    begun = fresh_table(first=10)
    np.testing.assert_array_equal(begun.drawn.index_B[1], policy.draw(begun, KEY, 11).index_B)


def test_hard_and_cheap_examples_come_more_often():
    flat = table()._replace(cost_N=jnp.ones(N))
    counts = np.bincount(draws(CFG, flat, 500).index_B.ravel(), minlength=N)
    assert np.corrcoef(counts, np.asarray(flat.loss_N))[0, 1] > 0.8
    flat = table()._replace(loss_N=jnp.ones(N))
    counts = np.bincount(draws(CFG, flat, 500).index_B.ravel(), minlength=N)
    assert np.corrcoef(counts, np.asarray(flat.cost_N))[0, 1] < -0.8
