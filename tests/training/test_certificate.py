"""The savings certificate: honest figures pass, every wrong claim is refused."""

from __future__ import annotations

import json

import pytest

from cerebra_jax import config
from cerebra_jax.cli.certify import show
from cerebra_jax.errors import NotCertified, UserError
from cerebra_jax.main import main
from cerebra_jax.models import model as models
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import certificate, finished
from cerebra_jax.training import trainer as loop

CEREBRA = {"net.name": "cerebra", "net.route": {"kv": "routed", "part": "block"}}


@pytest.fixture(scope="module")
def text(write_text, tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), train=60)


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """Makes the clock say that the model is faster: no time of this machine is looked at."""
    measured = certificate._timed

    def timed(*args):
        times = measured(*args)
        for found in times["model"].values():
            found["ratio"]["median"] = 0.9
        return times

    monkeypatch.setattr(certificate, "_timed", timed)


@pytest.fixture
def certify(tiny_cfg, text):
    def run(**more):
        base = CEREBRA | {"task.data_dir": str(text), "train.batch_size": 2}
        cfg = tiny_cfg(base | {k.replace("__", "."): v for k, v in more.items()}, blocks=1)
        return certificate.certify(cfg, build(cfg, print), None, rounds=1)

    return run


def test_a_routed_model_is_certified(certify):
    found = certify()
    assert found["certified"] and found["problems"] == []
    model, dense = found["rows"]["model"], found["rows"]["dense"]
    assert (
        model["counted_flops"]
        == model["executed_flops"]
        < dense["executed_flops"]
        == dense["counted_flops"]
    )
    assert dense["expected"] == dense["hard"] == 1.0 and 0 < model["hard"] < 1
    assert model["counted_train_flops"] < dense["counted_train_flops"] == 3 * dense["counted_flops"]
    assert (
        abs(dense["xla_flops"] / (dense["counted_flops"] + dense["elementwise"]) - 1) < 0.25
        and not dense["xla_note"]
    )
    for row in (model, dense):
        for kind in ("forward", "train"):
            assert (
                row["memory"][kind]["whole"] > row["memory"][kind]["temporary"] > 0
                and row["bytes"][kind] > 0
            )
            t = row["time"][kind]
            assert 0 < t["q1"] <= t["median"] <= t["q3"] and t["ratio"]["median"] > 0
    assert dense["time"]["train"]["ratio"]["median"] == 1.0
    json.dumps(found, allow_nan=False)
    shown = "\n".join(show(found))
    for words in (
        "hard cost",
        "counted in the jaxpr",
        "training step",
        "time against dense",
        "certified: yes, by the counted FLOPs and by the clock",
        "ms, modelled",
    ):
        assert words in shown

    # one that was written before times were judged is still read
    del found["target"]
    for row in found["rows"].values():
        del row["seconds"]
    assert "the clock is shown, not judged" in "\n".join(show(found))


@pytest.mark.parametrize(
    "extra",
    [{"net__name": "transformer"}, {"net__route__mode": "soft"}],  # masked: by the command, below
)
def test_what_saves_nothing_is_refused(certify, extra):
    found = certify(**extra)
    assert not found["certified"] and "saves nothing" in " ".join(found["problems"])
    assert "certified: NO" in "\n".join(show(found))


def test_a_wrong_price_is_refused(certify, monkeypatch):
    true_cost = models.cost_of

    def cheaper(net, *shape):
        cost = true_cost(net, *shape)
        if net.name != "cerebra":
            return cost
        return cost._replace(executed=cost.executed | {"head": cost.executed["head"] // 2})

    monkeypatch.setattr(models, "cost_of", cheaper)
    found = certify()
    assert not found["certified"] and "model: the price" in found["problems"][0]


def test_a_budget_is_certified_at_its_last_program(certify):
    found = certify(objective__budget=0.75, objective__buckets=2, task__seq_len=64)
    assert found["certified"]
    rows = found["rows"]
    assert abs(rows["model"]["executed_flops"] / rows["dense"]["executed_flops"] / 0.75 - 1) < 0.02


def test_a_finished_run_is_certified_as_trained(tiny_cfg, text, tmp_path, Screen, monkeypatch):
    monkeypatch.setattr(certificate, "ROUNDS", 1)
    train = {"batch_size": 4, "accum": 2, "devices": 2}
    cfg = tiny_cfg(CEREBRA | {"task.data_dir": str(text), "train": train}, blocks=1)
    task = build(cfg, print)
    with pytest.raises(UserError, match="train it first"):
        finished.load(cfg, task, tmp_path, print)
    result = loop.run(cfg, task, tmp_path, Screen())
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(cfg)))
    assert main(["certify", f"--workdir={tmp_path}"]) == 0
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert (
        found["certified"] and found["trained_steps"] == result["best_step"] and found["batch"] == 2
    )
    model, dense = found["rows"]["model"], found["rows"]["dense"]
    assert model["executed_flops"] / found["tokens"] == result["costs"]["executed_flops"]
    assert dense["executed_flops"] / found["tokens"] == result["costs"]["dense_executed"]
    assert abs(model["hard"] / result["val"]["hard_rel_flops"] - 1) < 0.05


def test_verdict_needs_both_programs_to_be_cheaper():
    row = {
        "counted_flops": 80,
        "executed_flops": 80,
        "counted_train_flops": 300,
        "masked_flops": 90,
    }
    dense = {"counted_flops": 100, "executed_flops": 100, "counted_train_flops": 300}
    assert certificate.verdict({"model": row | {"counted_train_flops": 299}, "dense": dense}) == []
    (problem,) = certificate.verdict({"model": row, "dense": dense})
    assert "training step" in problem
    (problem,) = certificate.verdict(
        {"model": row | {"counted_train_flops": 299, "masked_flops": 80}, "dense": dense}
    )
    assert "routing saves nothing" in problem


@pytest.mark.parametrize("here", [True, False])
def test_time_is_the_clocks_where_the_target_is_here_else_the_modelled_one(tiny_cfg, here):
    target = certificate.Target.of(tiny_cfg({"objective.device": "h100"}))
    assert (target.chip.name, target.platform, target.here) == ("h100", "gpu", False)
    quicker, slower = {"ratio": {"median": 0.9}}, {"ratio": {"median": 1.1}}
    rows = {
        "model": {
            "seconds": {"forward": 0.8, "train": 1.2},
            "time": {"forward": slower, "train": quicker},
        },
        "dense": {"seconds": {"forward": 1.0, "train": 1.0}},
    }
    (problem,) = certificate.too_slow(rows, target._replace(here=here))
    if here:
        assert problem.startswith("the forward pass takes 1.100") and "by the clock" in problem
    else:
        assert problem.startswith("the training step takes 1.200") and "for h100" in problem


def test_the_command_writes_it_and_ends_with_its_status(
    certify, text, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from cerebra_jax import config\n\n\ndef get_config():\n    c = config.defaults()\n"
        f"    c.task.data_dir, c.task.tokenizer, c.task.vocab_size = {str(text)!r}, 'bytes', 260\n"
        "    c.task.seq_len, c.train.batch_size, c.train.duration = 32, 2, '8 steps'\n"
        "    c.net.name, c.net.route.kv, c.net.route.part = 'cerebra', 'routed', 'block'\n"
        "    c.net.depth, c.net.width, c.net.heads = 1, 32, 2\n"
        "    c.net.ffn_width, c.net.loss_chunk = 64, 64\n"
        "    return c\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(certificate, "ROUNDS", 1)
    assert main(["certify", f"--config={file}", "--out=c.json", "-v"]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["certified"]
    status = main(["certify", f"--config={file}", "--config.net.route.dispatch=False", "-v"])
    assert status == NotCertified.status == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: not certified: ") and shown.err.count("\n") == 1
    assert "saves nothing" in shown.err and "certified: NO" in shown.out
    assert not json.loads(
        (tmp_path / "runs" / "tiny-s0" / "certificate-untrained.json").read_text()
    )["certified"]
