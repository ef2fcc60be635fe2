"""The recall task: pure batches, held-out examples for every seed, scores that NumPy counts too."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax.cli.flags import parse
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.models import model as models
from cerebra_jax.tasks import registry
from cerebra_jax.training.experiment import prepare
from cerebra_jax.types import Out


@pytest.fixture
def cfg(tiny_cfg):
    def make(**more):
        task = {"name": "longseq", "kind": "mqar", "seq_len": 40, "pairs": 5, "vocab_size": 30}
        return tiny_cfg({"task": task} | {k.replace("__", "."): v for k, v in more.items()})

    return make


@pytest.mark.parametrize("kind", ["mqar", "selective", "copy", "masked", "induction"])
def test_batches_are_pure_and_hosts_share_them(kind, cfg):
    task = registry.build(cfg(task__kind=kind))
    whole = task.train_batch(7, 3, 8)
    halves = [task.train_batch(7, 3, 8, (i, 2)) for i in range(2)]
    for name, x in whole.items():
        np.testing.assert_array_equal(x, np.concatenate([h[name] for h in halves]))
    assert not np.array_equal(whole["inputs_BxL"], task.train_batch(7, 4, 8)["inputs_BxL"])
    assert not np.array_equal(whole["inputs_BxL"], task.train_batch(8, 3, 8)["inputs_BxL"])


def test_every_held_out_example_counts_once_and_none_is_trained_on(cfg):
    task = registry.build(cfg())
    seen = {}
    for split, n in (("valid", 1000), ("test", 3000)):
        rows = [b["inputs_BxL"][b["w_BxL"].any(1)] for b in task.eval_batches(split, 64)]
        seen[split] = {x.tobytes() for x in np.concatenate(rows)}
        assert len(np.concatenate(rows)) == n
    train = {x.tobytes() for i in range(20) for x in task.train_batch(0, i, 64)["inputs_BxL"]}
    assert not (seen["valid"] & seen["test"]) and not (train & (seen["valid"] | seen["test"]))


def test_a_skewed_task_says_what_is_right_without_recall(cfg):
    notice = registry.build(cfg(task__skew=0.2)).notice
    assert notice.startswith("task.skew is 0.2: the rule that the j-th query has the j-th value")
    assert 1 / 5 < float(notice.split(" gives ")[1].split()[0]) < 1
    assert registry.build(cfg()).notice == ""
    assert registry.build(cfg(task__skew=0.2, task__kind="copy")).notice == ""


def test_scores_are_what_numpy_counts(cfg):
    task = registry.build(cfg())
    batch = task.train_batch(0, 0, 6)
    batch["w_BxL"][4:] = 0.0
    rng = np.random.RandomState(0)
    h, head = (
        rng.standard_normal((6, 5, 8)).astype(np.float32),
        rng.standard_normal((30, 8)).astype(np.float32),
    )
    logits = h @ head.T
    logits[0, :, :] = 0.0
    out = Out(jnp.asarray(h), jnp.asarray(head))
    nats, sums = task.loss(out, batch, 64)
    found = task.report("valid", {k: tuple(map(np.asarray, v)) for k, v in sums.items()})
    said = (h @ head.T).argmax(-1)
    right = (said == batch["labels_BxL"])[:4]
    p = np.exp(h @ head.T) / np.exp(h @ head.T).sum(-1, keepdims=True)
    want = -np.log(np.take_along_axis(p, batch["labels_BxL"][..., None], -1))[:4].sum()
    np.testing.assert_allclose(nats, want, rtol=1e-5)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["solved"] == pytest.approx(right.all(1).mean())
    for i in range(4):
        mine = batch["quarter_BxQ"][:4] == i
        assert (f"accuracy_q{i + 1}" in found) == mine.any()
        if mine.any():
            assert found[f"accuracy_q{i + 1}"] == pytest.approx(right[mine].mean())


@pytest.mark.parametrize("net", ["transformer", "cerebra", "chiar"])
def test_only_what_is_asked_gets_logits_and_is_paid_for(net, cfg):
    """The price of the head is that of Q positions, which the program reads and pays for."""
    s = prepare(cfg(net__name=net), registry.build(cfg()))
    assert s.model.net.answers == 5 and s.model.cost.executed["head"] == 5 * 2 * 32 * 30
    batch, state = s.task.example(3), s.fresh()

    def forward(params, batch):
        out, aux = s.model.apply(
            {"params": params, "routing": state.routing}, batch, models.neutral_knobs()
        )
        return s.task.loss(out, batch, 64)[0], aux.hard_B, out.h

    assert jaxpr.count(forward, state.params, batch).flops == 3 * s.model.cost.executed_flops
    plain = models.build(cfg(net__name=net), 30)
    variables = {"params": state.params, "routing": state.routing}
    whole = jax.jit(plain.apply)(variables, batch, models.neutral_knobs())[0].h
    asked = np.take_along_axis(np.asarray(whole), batch["at_BxQ"][..., None], axis=1)
    found = jax.jit(forward)(state.params, batch)[2]
    np.testing.assert_allclose(found, asked, rtol=1e-5, atol=1e-6)


def test_every_part_of_the_configuration_goes_with_every_task():
    parts = ("cerebra", "oracle", "random", "dense", "window", "ssm", "lstm")
    for kind, part in itertools.product(
        ("mqar", "selective", "masked", "induction", "mqar-encoder"), parts
    ):
        net = parse([f"--config=configs/longseq.py:{kind}-{part}-smoke"]).cfg.net
        assert net.causal == (kind not in ("masked", "mqar-encoder"))
        assert net.route.mode == part or part not in ("oracle", "random")
