"""Schedules and thresholds: plain arithmetic, checked against plain arithmetic."""

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.policies import schedule, thresholds
from cerebra_jax.policies.schedule import Length

LENGTH = Length(total=100, per_epoch=50)


def objective(**values) -> config.ObjectiveCfg:
    return config.parse({"net": {"name": "chiar"}, "objective": values}).objective


def test_lambda_is_zero_while_warm_then_linear_then_constant():
    cfg = objective(lam=0.4, warm="10 steps", ramp="0.2 frac", temperature=2.0, temperature_end=0.5)
    knobs_at = schedule.schedule(cfg, LENGTH)
    lam = [float(knobs_at(s).lam) for s in range(100)]
    np.testing.assert_allclose(lam[:11], 0.0)
    np.testing.assert_allclose(np.diff(lam[10:31]), 0.4 / 20, rtol=1e-4)
    np.testing.assert_allclose(lam[30:], 0.4, rtol=1e-6)
    temperature = [float(knobs_at(s).temperature) for s in (0, 10, 20, 30, 99)]
    np.testing.assert_allclose(temperature, [2, 2, 1, 0.5, 0.5], rtol=1e-5)
    assert [schedule.phase(cfg, s, LENGTH) for s in (0, 9, 10, 29, 30)] == [
        "warm",
        "warm",
        "ramp",
        "ramp",
        "full",
    ]
    assert schedule.phase(objective(), 50, LENGTH) == "plain"
    told = [schedule.phase(cfg, s, LENGTH, (20, 40), s >= 30) for s in (10, 19, 20, 40, 41)]
    assert told == ["ramp", "ramp", "prune", "prune", "qat"]


@pytest.mark.parametrize(
    ("spec", "steps"),
    [("500 steps", 500), ("3 epochs", 150), ("0.1 frac", 100), ("1 epoch", 50), ("0 steps", 0)],
)
def test_durations_have_one_spelling(spec, steps):
    assert config.to_steps(spec, total=1000, per_epoch=50) == steps


@pytest.mark.parametrize(
    "spec", ["", "5", "5 miles", "x steps", "-3 steps", "nan steps", "inf steps", "1 2 steps"]
)
def test_other_spellings_are_refused(spec):
    with pytest.raises(UserError):
        config.to_steps(spec, 1000, 50)


def test_thresholds_start_at_the_first_observation_then_average_then_forget():
    rng = np.random.RandomState(0)
    seen = rng.standard_normal((200, 3)).astype(np.float32)
    state = {"tau": np.full(3, 1e6, np.float32)}
    history = []
    for i, x in enumerate(seen):
        state = thresholds.follow(state, {"tau": x}, i, decay=0.9)
        history.append(np.asarray(state["tau"]))
    np.testing.assert_allclose(history[0], seen[0], rtol=1e-6)
    np.testing.assert_allclose(history[7], seen[:8].mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        history[100], 0.9 * history[99] + 0.1 * seen[100], rtol=1e-4, atol=1e-6
    )


def middle_of_gap(scores, value) -> float:
    """Returns the middle between the scores just below and just above a value."""
    return (scores[scores < value].max() + scores[scores > value].min()) / 2


def test_calibration_goes_layer_by_layer_through_the_decisions_below():
    """Layer 1's scores move with layer 0's threshold: only in order does each τ fit the inputs it
    will see.
    """
    base = np.random.RandomState(1).random((4, 64)).astype(np.float32)

    def scores_of(routing, batch):
        return np.stack([base + batch, base * float(routing["tau"][0])])

    start = {"tau": np.zeros(2, np.float32), "spread": np.ones(2, np.float32)}
    got = thresholds.calibrate(scores_of, start, [np.float32(0), np.float32(1)])
    both = np.concatenate([base.ravel(), base.ravel() + 1])
    first = np.quantile(both, [1 / 3, 2 / 3]).mean()
    first = middle_of_gap(both, first)
    np.testing.assert_allclose(got["tau"][0], first, rtol=1e-5)
    second = np.quantile(base * first, [1 / 3, 2 / 3]).mean()
    np.testing.assert_allclose(got["tau"][1], middle_of_gap(base * first, second), rtol=1e-5)
    np.testing.assert_allclose(got["spread"], [both.std(), (base * first).std()], rtol=1e-4)


def test_two_thresholds_are_calibrated_at_the_two_percentiles():
    scores = np.random.RandomState(2).random((2, 900)).astype(np.float32)
    start = {
        "tau": np.zeros(2, np.float32),
        "low": np.zeros(2, np.float32),
        "spread": np.ones(2, np.float32),
    }
    got = thresholds.calibrate(lambda routing, batch: scores, start, [None])
    for name, below in (("low", 300), ("tau", 600)):
        both = np.sort(scores, axis=1)[:, below - 1 : below + 1]
        np.testing.assert_allclose(got[name], both.mean(1), rtol=1e-6)
