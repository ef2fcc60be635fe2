"""A threshold never equals a score, so that no decision hangs on how large a batch is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.models.model import build, neutral_knobs
from cerebra_jax.policies import thresholds
from cerebra_jax.routing.thresholds import exceeded_by
from cerebra_jax.training import frozen, step
from cerebra_jax.training.state import TrainState

EPS = np.finfo(np.float32).eps


def test_decisions_of_a_calibrated_model_are_equal_for_batches_of_any_size(tiny_cfg):
    """In the first routed layer equal tokens have equal scores, so a quantile is one of them."""
    cfg = tiny_cfg({"net": {"name": "chiar", "depth": 4}, "net.route.meta": "off"})
    model = build(cfg, 260)
    odds = 1 / np.arange(1, 257)
    ids = np.random.RandomState(0).choice(256, (32, 32), p=odds / odds.sum())
    ids = ids.astype(np.int32)
    everything = {"inputs_BxL": ids, "labels_BxL": ids, "w_BxL": np.ones(ids.shape, np.float32)}
    everything["ex_B"] = np.arange(32, dtype=np.int32)

    def batches(size):
        cuts = range(0, 32, size)
        return [{name: x[a : a + size] for name, x in everything.items()} for a in cuts]

    # the thresholds of batches of 8
    variables = model.init(jax.random.key(0), batches(8)[0])
    state = TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        opt_state=(),
        routing=variables["routing"],
        skipped=jnp.int32(0),
    )
    found = frozen.measure(model, state, batches(8), frozen.Quantiles(0.75, 0.75))
    routing = {name: jnp.asarray(found[name], jnp.float32) for name in variables["routing"]}

    @jax.jit
    def scores_of(batch):
        _, aux = model.apply(variables | {"routing": routing}, batch, neutral_knobs())
        return aux.scores

    scores = {n: [scores_of(batch) for batch in batches(n)] for n in (1, 2, 8)}
    kept, score = (
        {n: np.concatenate([x[name] for x in found], axis=1) for n, found in scores.items()}
        for name in ("kept", "score")
    )
    np.testing.assert_array_equal(kept[1], kept[8])
    np.testing.assert_array_equal(kept[2], kept[8])
    assert 0 < np.abs(score[1] - score[8]).max() < 1e-5  # they are not the same to the last bit


def test_rows_that_fill_up_a_batch_set_no_threshold(tiny_cfg):
    model = build(tiny_cfg({"net": {"name": "chiar", "depth": 4}, "net.route.meta": "off"}), 260)
    ids = np.random.RandomState(0).randint(0, 256, (8, 32)).astype(np.int32)
    ids[3:] = 7
    weight = np.ones(ids.shape, np.float32)
    weight[3:] = 0
    full = {"inputs_BxL": ids, "labels_BxL": ids, "w_BxL": weight}
    full["ex_B"] = np.arange(8, dtype=np.int32)
    state = TrainState(
        step=jnp.int32(0), opt_state=(), skipped=jnp.int32(0), **model.init(jax.random.key(0), full)
    )
    found, want = (
        step.calibrate(model, state, [batch]).routing
        for batch in (full, {name: x[:3] for name, x in full.items()})
    )
    for name in found:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-4)


def test_a_calibrated_threshold_stands_halfway_between_distinct_scores():
    twice = np.repeat(np.float32([0.1, 0.2, 0.4, 0.8]), [40, 30, 20, 10])
    shaken = twice * (1 + 4 * EPS * np.random.RandomState(0).uniform(-1, 1, twice.size))
    for scores in (twice, shaken.astype(np.float32)):
        for low, high, both, want in (
            (0.5, 0.5, False, {"tau": 0.15}),  # 0.5 of them are 0.2 or less: 0.4 is nearer than 0.7
            (0.8, 0.8, False, {"tau": 0.3}),
            (0.97, 0.97, False, {"tau": 0.8}),  # none is above
            (0.3, 0.8, False, {"tau": 0.3}),  # the mean of 0.1 and 0.4 is in the gap
            (0.3, 0.8, True, {"low": 0.15, "tau": 0.3}),
        ):
            found = thresholds.cuts(scores, low, high, both)
            assert found == pytest.approx(want, rel=1e-5)
            assert not np.isin(np.float32(list(found.values())), scores).any()


def test_a_gap_of_mere_rounding_is_left_for_a_wider_one_nearby():
    scores = np.float32([0.5, 0.5 + EPS, 0.5 + 2 * EPS, 0.6, 0.7])
    assert thresholds.cuts(scores, 0.4, 0.4, False)["tau"] == pytest.approx(0.55)


def test_among_scores_without_such_a_gap_the_share_is_kept():
    scores = np.float32(0.5) + EPS * np.arange(20_000, dtype=np.float32)
    scores[12_000:] += 3 * EPS
    scores[-1] = 0.9
    for share in (0.25, 0.4005):
        tau = np.float32(thresholds.cuts(scores, 1 - share, 1 - share, False)["tau"])
        assert (scores > tau).mean() == pytest.approx(share, abs=1.1e-3)
    assert np.float32(tau) not in scores  # of the gaps nearby it is the one of 4 roundings


def test_an_observed_threshold_never_equals_a_score_of_its_example():
    rng = np.random.RandomState(0)
    few = rng.choice(np.float32([0.1, 0.2, 0.7]), (6, 32), p=[0.2, 0.5, 0.3])
    many = rng.standard_normal((6, 33)).astype(np.float32)
    for score in (few, few * (1 + 4 * EPS * rng.uniform(-1, 1, few.shape)), many):
        score = score.astype(np.float32)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):  # of 33 scores each is a quantile
            tau_B = np.asarray(exceeded_by(jnp.asarray(score), share))
            assert (np.abs(score - tau_B[:, None]) > 8 * EPS * np.abs(score)).all()
            above_B = (score > tau_B[:, None]).mean(1)
            edges = [(score > np.float32(x)).mean(1) for x in (0.0, 0.15, 0.45, 0.75)]
            if score.shape[1] == 32:  # the share that is nearest of those that there are
                best = np.abs(np.array(edges) - share).min(0)
                np.testing.assert_allclose(np.abs(above_B - share), best, atol=1e-6)
            else:
                np.testing.assert_allclose(above_B, share, atol=0.5 / 33 + 1e-6)


def test_what_falls_into_a_gap_stays_the_quantile_and_padding_is_left_out():
    score = np.random.RandomState(1).standard_normal((5, 32)).astype(np.float32)
    found = exceeded_by(jnp.asarray(score), 0.3)
    np.testing.assert_allclose(found, np.quantile(score, 0.7, axis=1), rtol=1e-5)
    padded = np.where(np.arange(32)[None] < 20, score, np.nan)
    found = exceeded_by(jnp.asarray(padded), 0.3)
    np.testing.assert_allclose(found, np.nanquantile(padded, 0.7, axis=1), rtol=1e-5)
