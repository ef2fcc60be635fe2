"""Figures of pooled heads against their definitions, and against sums taken in pieces."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.config import TaskCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import scores
from cerebra_jax.tasks.tabular.target import Target
from cerebra_jax.types import Out

C, D = 5, 4


def made(n: int, outputs: int):
    """(Out whose outputs are known, those outputs)."""
    rng = np.random.RandomState(n)
    h, head = (
        rng.standard_normal((n, 1, D)).astype(np.float32),
        rng.standard_normal((outputs, D)).astype(np.float32),
    )
    return Out(jnp.asarray(h), jnp.asarray(head)), h[:, 0] @ head.T


def total(parts):
    found = {}
    for key in parts[0]:
        sums = [np.asarray(part[key][0], np.float64) for part in parts]
        found[key] = (sum(sums), sum(float(part[key][1]) for part in parts))
    return found


def batches(labels, w):
    thirds = zip(np.split(labels, 3), np.split(w, 3), strict=True)
    return [
        {"labels_BxL": jnp.asarray(y[:, None]), "w_BxL": jnp.asarray(v[:, None])} for y, v in thirds
    ]


def pieces(out):
    return [Out(h, out.head_VxD) for h in jnp.split(out.h, 3)]


def test_classification_figures_are_their_definitions():
    rng = np.random.RandomState(0)
    out, logits = made(60, C)
    labels = rng.randint(0, C - 1, 60).astype(
        np.int32
    )  # the last class never occurs, but is predicted
    w = (rng.rand(60) < 0.8).astype(np.float32)
    parts = [scores.classify(o, b) for o, b in zip(pieces(out), batches(labels, w), strict=True)]
    real, said = w > 0, logits.argmax(1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert sum(float(p[0]) for p in parts) == pytest.approx(
        -log_p[np.arange(60), labels][real].sum(), rel=1e-5
    )
    f1 = []
    for c in range(C):
        tp = (real & (labels == c) & (said == c)).sum()
        precision, recall = (
            tp / max(1, (real & (said == c)).sum()),
            tp / max(1, (real & (labels == c)).sum()),
        )
        f1.append(2 * precision * recall / (precision + recall) if tp else 0.0)
    got = scores.classes(total([p[1] for p in parts]))
    assert got["accuracy"] == pytest.approx((labels == said)[real].mean(), rel=1e-6)
    assert got["macro_f1"] == pytest.approx(np.mean(f1), rel=1e-6)
    assert 0 < got["macro_f1"] < 1


def test_regression_figures_are_their_definitions():
    rng = np.random.RandomState(1)
    out, y = made(60, 1)
    labels, w = rng.standard_normal(60).astype(np.float32), (rng.rand(60) < 0.7).astype(np.float32)
    parts = [scores.regress(o, b) for o, b in zip(pieces(out), batches(labels, w), strict=True)]
    miss, real = (y[:, 0] - labels).astype(np.float64), w > 0
    got = scores.errors(
        total([p[1] for p in parts]), unit=1000.0, variance=float(labels[real].var())
    )
    assert got["rmse"] == pytest.approx(1000 * np.sqrt((miss[real] ** 2).mean()), rel=1e-5)
    assert got["mae"] == pytest.approx(1000 * np.abs(miss[real]).mean(), rel=1e-5)
    assert got["r2"] == pytest.approx(1 - (miss[real] ** 2).mean() / labels[real].var(), rel=1e-4)
    assert "r2" not in scores.errors(total([p[1] for p in parts]), 1.0, None)


def test_classes_count_by_their_weights_in_the_total_alone():
    out, logits = made(60, C)
    labels = np.random.RandomState(2).randint(0, C, 60).astype(np.int32)
    batch = {"labels_BxL": jnp.asarray(labels[:, None]), "w_BxL": jnp.ones((60, 1))}
    cfg = TaskCfg(class_weights=("balanced",))
    weight_C = scores.weights(cfg, list("abcdefgh"[:C]), labels)
    nats, sums = scores.classify(out, batch, True, weight_C)
    _, alike = scores.classify(out, batch)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    nats_N = -log_p[np.arange(60), labels]
    # balanced: the sum is that of the means of the classes, each as large as any other
    means = [nats_N[labels == c].mean() for c in range(C)]
    assert float(nats) == pytest.approx(60 * np.mean(means), rel=1e-5)
    np.testing.assert_allclose(sums["each"][0], weight_C[labels] * nats_N, rtol=1e-4)
    assert all(np.array_equal(sums[name][0], alike[name][0]) for name in alike)

    named = TaskCfg(class_weights=("b:3",))
    assert scores.weights(named, ["a", "b"], labels).tolist() == [1, 3]
    with pytest.raises(UserError, match="'x', which is no class"):
        scores.weights(TaskCfg(class_weights=("x:3",)), ["a", "b"], labels)
    with pytest.raises(UserError, match="names 'b' twice"):
        scores.weights(TaskCfg(class_weights=("b:3", "b:4")), ["a", "b"], labels)
    assert scores.check_weights(TaskCfg(class_weights=("b:0",)))


@pytest.mark.parametrize("scale", ["standard", "log", "quantile"])
def test_a_target_comes_back_in_its_own_unit(scale):
    y_N = np.exp(np.random.RandomState(3).standard_normal(500)) * 1e5
    target = Target.fit("y", y_N, scale)
    label_N = target.labels(y_N)
    assert abs(label_N.mean()) < 1e-3 and label_N.std() == pytest.approx(1, abs=0.02)
    inner_N = np.argsort(y_N)[5:-5]  # quantiles end at the training rows
    back_N = target.values(label_N.astype(np.float64))
    np.testing.assert_allclose(back_N[inner_N], y_N[inner_N], rtol=5e-2)
    assert Target.restored(json.loads(json.dumps(target.learnt()))) == target
    # in the step as on the host
    z_N = np.linspace(-2, 2, 50, dtype=np.float32)
    inside_N = target.values(jnp.asarray(z_N), jnp)
    np.testing.assert_allclose(inside_N, target.values(z_N.astype(np.float64)), rtol=1e-4)
    # figures are errors of the numbers, whatever the loss is of
    out, z = made(60, 1)
    batch = {"labels_BxL": jnp.asarray(label_N[:60, None]), "w_BxL": jnp.ones((60, 1))}
    _, sums = scores.regress(out, batch, value=lambda z: target.values(z, jnp) / target.unit)
    miss_N = target.values(z[:, 0].astype(np.float64)) - target.values(label_N[:60].astype(float))
    got = scores.errors(total([sums]), target.unit, None)
    assert got["rmse"] == pytest.approx(np.sqrt((miss_N**2).mean()), rel=1e-4)
    assert got["mae"] == pytest.approx(np.abs(miss_N).mean(), rel=1e-4)


def test_what_is_not_finite_shows_in_the_loss():
    out, _ = made(6, C)
    batch = {"labels_BxL": jnp.zeros((6, 1), jnp.int32), "w_BxL": jnp.full((6, 1), jnp.nan)}
    assert np.isnan(scores.classify(out, batch)[0])
    broken = out._replace(h=out.h.at[2].set(jnp.inf))
    fine = {"labels_BxL": jnp.zeros((6, 1), jnp.int32), "w_BxL": jnp.ones((6, 1))}
    assert not np.isfinite(scores.classify(broken, fine)[0])


@pytest.mark.parametrize("name", ["classify", "regress"])
def test_the_losses_of_single_examples_are_those_of_batches_of_one(name):
    """Also under the weights of a sampler; padding has weight 0."""
    loss, outputs = getattr(scores, name), C if name == "classify" else 1
    out, _ = made(6, outputs)
    labels = np.arange(6, dtype=np.int32 if outputs > 1 else np.float32)[:, None] % C
    batch = {
        "labels_BxL": jnp.asarray(labels),
        "w_BxL": jnp.asarray([[1.0], [0.5], [3.0], [0.0], [1.0], [2.0]]),
    }
    total, sums = loss(out, batch, each=True)
    ones = [
        loss(Out(out.h[i : i + 1], out.head_VxD), {k: x[i : i + 1] for k, x in batch.items()})[0]
        for i in range(6)
    ]
    np.testing.assert_allclose(sums["each"][0], ones, rtol=1e-6)
    np.testing.assert_array_equal(sums["each"][1], batch["w_BxL"][:, 0])
    assert "each" not in loss(out, batch)[1] and float(total) == float(loss(out, batch)[0])
