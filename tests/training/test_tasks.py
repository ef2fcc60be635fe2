"""Every task that is not a text, through the common loop: a run, resumed.

Its figures, its cost, its certificate.
"""

from __future__ import annotations

import json
import random

import jax
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.errors import Preempted, UserError
from cerebra_jax.report import runs, tables
from cerebra_jax.tasks.registry import build, fitted
from cerebra_jax.training import certificate, metrics
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.closing import closing
from cerebra_jax.training.experiment import prepare
from cerebra_jax.training.lines import Evaluated, evaluate
from cerebra_jax.training.programs import Programs


def _table(folder) -> dict:
    rng = random.Random(0)
    rows = [f"{rng.choice('abc')},{rng.gauss(0, 1):.3f},{rng.gauss(5, 2):.3f}" for _ in range(80)]
    (folder / "t.csv").write_text("kind,x,y\n" + "\n".join(rows) + "\n")
    return {"name": "tabular", "path": str(folder / "t.csv")}


def _texts(folder) -> dict:
    rng = random.Random(0)
    rows = [(rng.choice(["ask", "tell", "oos"]), rng.randint(1, 5)) for _ in range(80)]
    (folder / "t.csv").write_text(
        "text,label\n" + "\n".join(f"{a} {'me ' * n}now,{a}" for a, n in rows) + "\n"
    )
    return {"name": "intent", "path": str(folder / "t.csv"), "tokenizer": "words"}


TASKS = {
    "regression": lambda folder: _table(folder) | {"target": "y"},
    "classification": lambda folder: _table(folder) | {"target": "kind"},
    "intent": lambda folder: _texts(folder) | {"oos": True, "word_noise": 0.2},
}
NET = {
    "name": "cerebra",
    "causal": False,
    "depth": 2,
    "width": 16,
    "heads": 2,
    "ffn_width": 16,
    "dropout": 0.1,
    "route": {"mode": "topk", "part": "block", "kv": "routed"},
}


@pytest.fixture
def cfg_of(tmp_path):
    def make(kind: str, **net):
        train = {
            "duration": "6 steps",
            "batch_size": 8,
            "eval_every": "3 steps",
            "checkpoint_every": "2 steps",
        }
        return config.parse(
            {
                "task": {"seq_len": 0} | TASKS[kind](tmp_path),
                "net": NET | net,
                "train": train | {"devices": 1},
            }
        )

    return make


# a classification of a table differs from a regression in its loss, which resuming does not touch
@pytest.mark.parametrize("name", [name for name in TASKS if name != "classification"])
def test_a_run_resumes_exactly_and_reports_what_its_task_declares(name, cfg_of, tmp_path, Screen):
    cfg = cfg_of(name)
    task = build(cfg, lambda line: None)

    def go(folder, stop=lambda: False):
        folder.mkdir(exist_ok=True)
        result = loop.run(cfg, task, folder, Screen(), stop)
        (folder / "result.json").write_text(json.dumps(result, allow_nan=False))
        (folder / "config.json").write_text(json.dumps(config.to_dict(cfg)))
        return result

    want = go(tmp_path / "whole")
    asked = [0]

    def stop():
        asked[0] += 1
        return asked[0] == 6

    with pytest.raises(Preempted):
        go(tmp_path / "run", stop)
    got = go(tmp_path / "run", stop)
    assert (
        asked[0] > 6
        and got["params_sha256"] == want["params_sha256"]
        and got["test"] == want["test"]
    )

    for m in task.metrics:
        for split in ("val", "test"):
            assert np.isfinite(want[split].get(m.key, 0.0))
    assert task.metrics[0].key in want["test"] and want["seq_len"] == task.shape.seq_len
    lines = [x for x in metrics.read(tmp_path / "whole" / "metrics.jsonl") if x["split"] == "valid"]
    score = [(1 if task.choice.lower else -1) * x[task.choice.key] for x in lines]
    assert want["best_step"] in [
        x["step"] for x, s in zip(lines, score, strict=True) if s == min(score)
    ]
    assert task.metrics[0].name in "\n".join(closing(want, tmp_path))
    table = tables.markdown(tables.grid(runs.load([tmp_path / "run"]), {}), [])
    assert f"{task.metrics[0].name}, test" in table and "| cerebra |" in table


@pytest.mark.parametrize("name", TASKS)
def test_the_price_of_its_forward_pass_is_what_the_program_has(name, cfg_of):
    cfg = cfg_of(name)
    task = build(cfg, lambda line: None)
    s = prepare(cfg, task)
    batch = task.example(8)
    counted = jaxpr.count(certificate.forward_pass(s, s.model), s.like, batch)
    assert counted.flops == 8 * s.model.cost.executed_flops


@pytest.mark.parametrize("name", TASKS)
def test_sums_over_devices_are_sums_over_examples(name, cfg_of):
    """A last batch that is mostly padding, on four devices: figures are formed of sums, not of
    means.
    """
    cfg = cfg_of(name)
    task = build(cfg, lambda line: None)

    def figures(cfg, state):
        programs = Programs(prepare(cfg, task))
        what = Evaluated(programs.place(state), 0, programs.experiment.first)
        return evaluate(programs, what, "train", lambda: False)

    state = jax.device_get(prepare(cfg, task).fresh())
    want = figures(cfg, state)
    more = config.parse(
        config.to_dict(cfg) | {"train": config.to_dict(cfg)["train"] | {"devices": 4}}
    )
    got = figures(more, state)
    assert got.keys() == want.keys()
    for key in ("loss", *(m.key for m in task.metrics)):
        if key in want:
            np.testing.assert_allclose(got[key], want[key], rtol=1e-5)


def test_a_net_that_does_not_fit_its_task_is_refused(cfg_of):
    task = build(cfg_of("classification"), lambda line: None)
    with pytest.raises(UserError, match="net.outputs is 5, the task has 3"):
        fitted(cfg_of("classification", outputs=5), task.shape)
    with pytest.raises(UserError, match="chiar, a language model"):
        fitted(cfg_of("classification", name="chiar", causal=True, route={}), task.shape)
    again = fitted(fitted(cfg_of("classification"), task.shape), task.shape)
    assert (again.net.outputs, again.task.seq_len) == (3, 3)
