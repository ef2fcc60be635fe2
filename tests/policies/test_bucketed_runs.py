"""Length buckets in the loop: short programs, priced one by one, exact on resume, with the sampler
and without.
"""

from __future__ import annotations

import dataclasses
import random

import jax
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.cli.sweep_price import price
from cerebra_jax.errors import Preempted, UserError
from cerebra_jax.layers.compressor import windows
from cerebra_jax.models import model as models
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import metrics
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.experiment import prepare
from cerebra_jax.training.programs import Program, Programs

TIMING = ("tokens_per_s", "step_ms")
NETS = {
    "transformer": {"name": "transformer"},
    "cerebra": {
        "name": "cerebra",
        "route": {"mode": "topk", "part": "block"},
        "compress": {"kind": "attention"},
    },
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "t.csv"
    rows = [
        f"{rng.choice('xyz')} {'me ' * rng.randint(0, 14)}{label},{label}" for label in "abc" * 60
    ]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def cfg_of(texts):
    def make(
        name: str = "transformer",
        buckets: int = 3,
        sampler: dict | None = None,
        task: dict | None = None,
        **more,
    ):
        shape = {
            "causal": False,
            "depth": 1,
            "width": 16,
            "heads": 2,
            "ffn_width": 16,
            "dropout": 0.1,
        }
        train = {
            "duration": "8 steps",
            "batch_size": 8,
            "eval_every": "4 steps",
            "checkpoint_every": "2 steps",
        }
        of = {
            "name": "intent",
            "path": str(texts),
            "tokenizer": "words",
            "seq_len": 0,
            "buckets": buckets,
            "subwords": 64,
        }
        net = shape | NETS.get(name, {"name": name}) | more.pop("net", {})
        return config.parse(
            {
                "task": of | (task or {}),
                "net": net,
                "train": train | {"devices": 1},
                "sampler": sampler or {},
            }
            | more
        )

    return make


@pytest.fixture
def go(Screen):
    def run(cfg, folder, stop=lambda: False):
        folder.mkdir(exist_ok=True)
        screen = Screen()
        found = loop.run(cfg, build(cfg, lambda line: None), folder, screen, stop)
        kept = [
            {k: v for k, v in x.items() if k not in TIMING}
            for x in metrics.read(folder / "metrics.jsonl")
        ]
        return found, kept, screen.lines

    return run


def flops_of(s, length: int = 0) -> int:
    """Forward FLOPs of an example of that length."""
    return s.sizes.model(0, length).cost.executed_flops


@pytest.mark.parametrize("case", ["transformer", "cerebra sampled"])
def test_every_step_is_charged_for_the_program_that_ran_it_and_resumes_exactly(
    go, case, cfg_of, tmp_path
):
    net, *sampled = case.split()
    on, n = (
        {"gamma": 2.0, "beta": 0.5, "start": "3 steps"} if sampled else None,
        2 if sampled else 3,
    )
    unit = "bytes" if sampled else "flops"
    cfg = cfg_of(net, n, on, objective={"unit": unit})
    want, kept, said = go(cfg, tmp_path / "whole")
    s = prepare(cfg, build(cfg, lambda line: None))
    known, B = s.task.shape.lengths, 8
    train = [x for x in kept if x["split"] == "train"]
    ran = [x["length"] for x in train]
    assert len(known) == n and len(set(ran)) > 1 and set(ran) <= set(known)
    for length, line in zip(ran, train, strict=True):
        of_dense = s.sizes.model(0, length).cost.executed_flops / s.model.dense.executed_flops
        assert line["executed_rel_flops"] == of_dense
        assert line[f"executed_rel_{unit}"] == s.sizes.model(0, length).executed <= s.model.executed
        if net == "transformer":
            assert line["hard_rel_flops"] == pytest.approx(of_dense)
    costs = want["costs"]
    passes = 3 * B * sum(flops_of(s, length) for length in ran)
    assert (
        costs["train_total"] == passes + costs["sampler"]["train_flops"] < 3 * B * 8 * flops_of(s)
    )
    assert want["tokens"] == B * sum(ran) and sum(want["steps_of_length"].values()) == 8
    rows = [int((s.task._groups("test") == i).sum()) for i in range(n)]
    mean = sum(n * flops_of(s, length) for n, length in zip(rows, known, strict=True)) / sum(rows)
    assert want["costs"]["executed_flops"] * s.model.L == pytest.approx(mean, abs=1)
    compiled = [line for line in said if "compiling" in line]
    programs = {(length, i >= 3 and bool(on)) for i, length in enumerate(ran)}
    assert len(compiled) == len(programs) - 1 and all(" tokens: " in line for line in compiled)
    if on:
        assert costs["sampler"]["train_flops"] > 0 and all("sampler_seen" in x for x in train[3:])
    else:
        assert price(cfg)["flops"] == costs["train_total"]

    asked = [0]

    def stop():
        asked[0] += 1
        return asked[0] == 9

    with pytest.raises(Preempted):
        go(cfg, tmp_path / "run", stop)
    got, again, _ = go(cfg, tmp_path / "run", stop)
    assert asked[0] > 9 and got["params_sha256"] == want["params_sha256"] and again == kept
    assert got["costs"] == costs and got["steps_of_length"] == want["steps_of_length"]


def test_draws_of_cheap_examples_are_short_programs(cfg_of):
    """Under a strong gamma the shortest program runs more often than its share.

    All its rows are of that length.
    """
    cfg = cfg_of(sampler={"gamma": 8.0, "start": "0 steps", "floor": 0.01})
    s = prepare(cfg, build(cfg, lambda line: None))
    programs, ran = Programs(s), []
    at = programs.place(s.fresh())
    drawn = s.drawn(jax.device_get(at), 0)
    for i in range(60):
        rows = drawn[i].index_B
        batch = s.batch(i, drawn)
        length = s.tokens(batch)
        assert {s.task.shape.lengths[g] for g in s.task.group_N[rows]} == {length}
        at, sums = programs.of(Program(0, length, draws=True)).step(
            at, programs.shard(batch), s.key
        )
        drawn[i + 2] = jax.device_get(sums["drawn"])
        ran.append(length)
    short = s.task.shape.lengths[0]
    assert ran[30:].count(short) / 30 > 0.5 > 0.45 > (s.task.group_N == 0).mean()


@pytest.mark.parametrize("net", ["transformer", "window", "lstm", "ssm", "cnn"])
def test_a_cut_batch_has_the_loss_of_the_whole_one(net, cfg_of):
    cfg = cfg_of(net, net={"dropout": 0.0, "depth": 2})
    s = prepare(cfg, build(cfg, lambda line: None))
    full = build(
        dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, buckets=0)), lambda line: None
    )
    rows = np.flatnonzero(s.task.group_N == 0)[:8]
    whole, cut = full.pick(0, 0, rows), s.task.pick(0, 0, rows)
    short, L = s.tokens(cut), s.model.L
    assert whole["inputs_BxL"].shape[1] == L > short
    state = s.fresh()
    variables = {"params": jax.tree.map(lambda x: 3 * x, state.params), "routing": state.routing}

    @jax.jit
    def loss(params, batch):
        model = s.sizes.model(0, batch["inputs_BxL"].shape[1])
        out, aux = model.apply(variables | {"params": params}, batch, models.neutral_knobs())
        return s.task.loss(out, batch, 64)[0], aux.hard_B

    (a, cost_a), grad_a = jax.value_and_grad(loss, has_aux=True)(variables["params"], whole)
    (b, cost_b), grad_b = jax.value_and_grad(loss, has_aux=True)(variables["params"], cut)
    np.testing.assert_allclose(b, a, rtol=1e-5)

    def alike(x, y):  # small numbers are what is left of sums of large ones
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(y).max())

    jax.tree.map(alike, grad_b, grad_a)
    dense = s.sizes.model(0, short).dense
    np.testing.assert_allclose(
        cost_b, s.sizes.model(0, short).cost.model_flops / dense.model_flops, rtol=1e-6
    )
    np.testing.assert_allclose(cost_a, s.model.cost.model_flops / dense.model_flops, rtol=1e-6)


def test_what_cannot_be_bucketed_is_one_line(cfg_of):
    for words, make in {
        "the examples of task.name=tabular are of one length": lambda: cfg_of(
            task={"name": "tabular", "subwords": 0}
        ),
        "a budget is one program's": lambda: cfg_of("cerebra", objective={"budget": 0.8}),
        "what mlp computes depends on the length": lambda: cfg_of("mlp"),
        "what fnet computes": lambda: cfg_of("fnet"),
        "every example costs it the same": lambda: cfg_of(buckets=0, sampler={"gamma": 1.0}),
    }.items():
        with pytest.raises(UserError, match=words):
            make()
    known = build(cfg_of(), lambda line: None).shape.lengths

    def widths(r):
        return {windows(length, r).idx_MxW.shape[1] for length in known}

    # windows whose width L decides
    r = next(r for r in (0.3, 0.4, 0.5, 0.6, 0.7) if len(widths(r)) > 1)
    cfg = cfg_of("cerebra", net={"compress": {"kind": "conv", "r": r}})
    with pytest.raises(
        UserError, match="cerebra has other parameters for .* use other task.buckets"
    ):
        prepare(cfg, build(cfg, lambda line: None))
