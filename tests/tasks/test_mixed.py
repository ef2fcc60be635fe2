"""Three tasks in one: rows are those of each task alone, answers and gates are told apart."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.tasks import mixed, registry
from cerebra_jax.training.objective import Conditions, Objective

L, B = 40, 7


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("mixed"), random.Random(1)
    for split in ("train", "valid", "test"):
        rows = (" ".join("".join(rng.choices("abcd", k=3)) for _ in range(9)) for _ in range(12))
        (folder / f"{split}.txt").write_text("\n".join(rows) + "\n")
    labelled = [
        "text,label",
        *(f"{word} {i},{word}" for i in range(30) for word in ("yes", "no", "perhaps")),
    ]
    (folder / "labelled.csv").write_text("\n".join(labelled) + "\n")
    task = {
        "name": "mixed",
        "data_dir": str(folder),
        "path": str(folder / "labelled.csv"),
        "cache_dir": str(folder / "cache"),
        "tokenizer": "bytes",
        "seq_len": L,
        "rows": 100,
        "shortest": 6,
    }
    net = {"depth": 3, "width": 16, "heads": 2, "ffn_width": 16, "route": {"meta": "task"}}
    return config.parse({"task": task, "net": net, "train": {"batch_size": B}})


@pytest.fixture(scope="module")
def task(cfg):
    return registry.build(cfg, lambda line: None)


def part(task, i):
    return task._parts[i]


def test_each_row_is_one_of_its_own_task_and_asks_for_one_answer(task):
    """Inputs and labels stand in rows of the table that no other task has.

    An answer is asked for at the last token.
    """
    batch = task.train_batch(0, 2, B)
    np.testing.assert_array_equal(batch["task_B"], np.arange(B) % 3)
    sizes = [part(task, i).shape.vocab_size for i in range(3)]
    heads = [part(task, i).shape.outputs for i in (1, 2)]
    assert task.shape.vocab_size == sum(sizes) + sum(heads) and task.shape.tasks == 3
    text = part(task, 0).train_batch(0, 2, 3)
    for name in ("inputs_BxL", "labels_BxL", "w_BxL"):
        np.testing.assert_array_equal(batch[name][0::3], text[name])
    for i in (1, 2):
        mine, own = {k: x[i::3] for k, x in batch.items()}, part(task, i).train_batch(0, 2, 2)
        np.testing.assert_array_equal(mine["inputs_BxL"] - sum(sizes[:i]), own["inputs_BxL"])
        last = own["mask_BxL"].sum(1) - 1
        np.testing.assert_array_equal(mine["at_B"], last)
        answers = mine["labels_BxL"][np.arange(2), last] - sum(sizes) - sum(heads[: i - 1])
        np.testing.assert_array_equal(answers, own["labels_BxL"][:, 0])
        np.testing.assert_array_equal(mine["w_BxL"], L * (np.arange(L)[None] == last[:, None]))
    halves = [task.train_batch(0, 2, 6, (i, 2)) for i in range(2)]
    whole = task.train_batch(0, 2, 6)
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])


def test_an_evaluation_asks_for_every_example_once(task):
    weight = np.zeros(3)
    for batch in task.eval_batches("valid", B):
        np.add.at(weight, batch["task_B"], batch["w_BxL"].sum(1))
    tokens = sum(b["w_BxL"].sum() for b in part(task, 0).eval_batches("valid", B))
    np.testing.assert_array_equal(
        weight, [tokens, *(L * part(task, i).size["valid"] for i in (1, 2))]
    )


def test_figures_are_of_each_task_and_an_answer_is_right_among_its_own_classes(task):
    batch, rng, D = task.train_batch(0, 0, B), np.random.RandomState(0), 6
    h, head = (rng.standard_normal(shape) for shape in ((B, L, D), (task.shape.vocab_size, D)))
    out = SimpleNamespace(h=jnp.float32(h), head_VxD=jnp.float32(head))
    total, sums = task.loss(out, batch, 16, each=True)
    logits = h @ head.T
    nats = (
        np.log(np.exp(logits).sum(-1))
        - np.take_along_axis(logits, batch["labels_BxL"][..., None], 2)[..., 0]
    )
    nats_B = (nats * batch["w_BxL"]).sum(1)
    np.testing.assert_allclose(total, nats_B.sum(), rtol=1e-4)
    np.testing.assert_allclose(sums["each"][0], nats_B, rtol=1e-4)
    first, right = task.shape.vocab_size - 13, np.zeros(3)  # three labels, ten results
    for b in range(B):
        if batch["task_B"][b]:
            own = slice(first, first + 3) if batch["task_B"][b] == 1 else slice(first + 3, None)
            at = batch["at_B"][b]
            said = own.start + logits[b, at, own].argmax()
            right[batch["task_B"][b]] += said == batch["labels_BxL"][b, at]
    np.testing.assert_array_equal(sums["right"][0], right)
    np.testing.assert_array_equal(sums["right"][1], [0, 2, 2])
    figures = task.report("valid", sums)
    assert figures["accuracy_listops"] == right[2] / 2
    np.testing.assert_allclose(
        figures["nats_text"], nats_B[0::3].sum() / batch["w_BxL"][0::3].sum(), rtol=1e-4
    )


def test_every_task_has_a_gate_of_its_own_which_is_logged(cfg, task):
    cfg = registry.fitted(cfg, task.shape)
    model, batch = models.build(cfg, task.shape.vocab_size), task.train_batch(0, 0, B)
    variables = model.init(jax.random.key(0), batch)
    params = variables["params"] | {"meta_router": {"bias": jnp.float32([0.0, 1.0, -2.0])}}
    knobs = models.neutral_knobs()

    def J(params, batch):
        now = variables | {"params": params}
        total, (metrics, *_) = Objective(model, task)(now, batch, Conditions(knobs, None, 1.0, 1.0))
        return total, metrics

    (_, metrics), slope = jax.jit(jax.value_and_grad(J, has_aux=True))(params, batch)
    gates = np.asarray(metrics["meta_gate_of_task"][0]) / np.asarray(
        metrics["meta_gate_of_task"][1]
    )
    np.testing.assert_allclose(gates, 1 / (1 + np.exp([0.0, -1.0, 2.0])), rtol=1e-5)
    assert (np.abs(slope["meta_router"]["bias"]) > 1e-6).all()
    rows = np.arange(B) % 3 == 1
    moved = params | {"meta_router": {"bias": jnp.float32([0.0, 3.0, -2.0])}}
    run = jax.jit(lambda p: model.apply(variables | {"params": p}, batch, knobs)[0].h)
    h, other = run(params), run(moved)
    changed = np.abs(np.asarray(h) - np.asarray(other)).max((1, 2)) > 1e-6
    np.testing.assert_array_equal(changed, rows)

    def forward(params, batch):
        out, aux = model.apply(variables | {"params": params}, batch, knobs)
        return jnp.einsum("bld,vd->blv", out.h, out.head_VxD).sum() + aux.hard_B.sum()

    assert jaxpr.count(forward, params, batch).flops == B * model.cost.executed_flops


def test_what_needs_several_tasks_says_so(cfg, task):
    one = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, name="text"))
    with pytest.raises(UserError, match="is one task; use task.name=mixed"):
        registry.fitted(one, part(task, 0).shape)
    with pytest.raises(UserError, match="train.batch_size is 2 for 3 tasks"):
        mixed.Mixed.build(
            dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, batch_size=2)), print
        )
    model = models.build(registry.fitted(cfg, task.shape), task.shape.vocab_size)
    assert model.token is None
    with pytest.raises(UserError, match="is of no task"):
        model.init_cache(np.arange(2))
    values = config.to_dict(cfg)
    values["net"]["route"]["tau"] = "calibrated"
    with pytest.raises(UserError, match="several tasks"):
        config.parse(values)
