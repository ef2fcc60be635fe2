"""Figures of each class against their definitions, by another way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cerebra_jax.tasks import judged


def test_figures_are_those_of_their_definitions():
    rng = np.random.RandomState(0)
    label_N = rng.randint(0, 3, 200)
    logits_NxC = rng.standard_normal((200, 4)) + 2 * np.eye(4)[label_N]
    found = judged.judge(logits_NxC, label_N, ["a", "b", "c", "never"])
    said_N = logits_NxC.argmax(1)
    for i, name in enumerate("abc"):
        for j in range(4):
            assert found["confusion"][i][j] == ((label_N == i) & (said_N == j)).sum()
        row = found["classes"][name]
        assert row["examples"] == (label_N == i).sum()
        assert row["precision"] == pytest.approx((label_N[said_N == i] == i).mean())
        assert row["recall"] == pytest.approx((said_N[label_N == i] == i).mean())
        p = np.exp(logits_NxC) / np.exp(logits_NxC).sum(1, keepdims=True)
        one, other = p[label_N == i, i], p[label_N != i, i]
        assert row["auc"] == pytest.approx((one[:, None] > other[None]).mean())
    never = found["classes"]["never"]
    assert never["examples"] == 0 and never["auc"] is None and never["recall"] is None
    shown = list(judged.lines(json.loads(json.dumps(found, allow_nan=False))))
    assert shown[0].split() == ["class", "examples", "precision", "recall", "AUC"]
    assert shown[4].split()[0] == "never" and shown[5].startswith("taken for")


def test_equal_scores_count_by_half_and_a_sure_fool_is_off_by_what_it_claims():
    assert judged.auc(np.ones(4), np.array([True, False, True, False])) == 0.5
    found = judged.judge(np.array([[9.0, 0.0]] * 4), np.array([0, 1, 0, 1]), ["a", "b"])
    assert found["calibration_error"] == pytest.approx(0.5, abs=1e-3)
    right = judged.judge(np.array([[0.0, 0.0]] * 4), np.array([0, 1, 0, 1]), ["a", "b"])
    assert right["calibration_error"] == pytest.approx(0.0)
