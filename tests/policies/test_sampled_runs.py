"""The sampler in the loop: exact before its start and on resume, the same on any number of devices,
in the books.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import Preempted, UserError
from cerebra_jax.tasks.registry import build
from cerebra_jax.training.experiment import prepare
from cerebra_jax.training.programs import Program, Programs

ON = {"beta": 1.0, "gamma": 3.0, "start": "3 steps", "floor": 0.2}


@pytest.fixture(scope="module")
def cfg_of(table):
    """A table, and a router whose expected cost differs from row to row."""

    def make(sampler: dict | None = None, **train):
        net = {
            "name": "cerebra",
            "causal": False,
            "depth": 1,
            "width": 16,
            "heads": 2,
            "ffn_width": 16,
            "dropout": 0.1,
        }
        every = {
            "duration": "8 steps",
            "batch_size": 8,
            "eval_every": "4 steps",
            "checkpoint_every": "2 steps",
        }
        return config.parse(
            {
                "task": {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0},
                "net": net,
                "train": every | {"devices": 1} | train,
                "sampler": sampler or {},
            }
        )

    return make


@pytest.fixture(scope="module")
def plain(go, cfg_of, tmp_path_factory):
    return go(cfg_of(), tmp_path_factory.mktemp("plain") / "run")


def test_a_sampled_run_is_plain_until_it_starts_and_resumes_exactly(go, cfg_of, plain, tmp_path):
    want, kept, _ = go(cfg_of(ON), tmp_path / "whole")
    train = [x for x in kept if x["split"] == "train"]
    for ours, theirs in zip(train[:3], plain[1][:3], strict=True):
        assert ours == theirs  # losses, gradient norms: bit for bit
    assert all("sampler_seen" in x and x["loss"] > 0 for x in train[3:])
    seen = [x["sampler_seen"] for x in train[3:]]
    assert seen == sorted(seen) and 8 / 48 <= seen[0] < seen[-1] <= 40 / 48
    effective = [x["sampler_effective"] for x in train[3:]]  # the first two draws know nothing
    assert effective[:2] == pytest.approx([1, 1], abs=1e-5) and max(effective[2:]) < 0.999
    assert want["params_sha256"] != plain[0]["params_sha256"]

    asked = [0]

    def stop():
        asked[0] += 1
        return asked[0] in (2, 8)  # before the sampler starts, and while it draws

    for _ in range(3):
        try:
            got, again, _ = go(cfg_of(ON), tmp_path / "run", stop)
            break
        except Preempted:
            pass
    assert asked[0] > 9 and got["params_sha256"] == want["params_sha256"] and again == kept

    costs = want["costs"]
    assert costs["sampler"]["train_flops"] > 0 == plain[0]["costs"]["sampler"]["train_flops"]
    assert (
        costs["train_total"] == plain[0]["costs"]["train_total"] + costs["sampler"]["train_flops"]
    )
    cut = [x["sampler_clipped"] for x in train[3:]]
    assert costs["sampler"]["clipped"] == pytest.approx(np.mean(cut)) and min(cut) >= 0.0
    assert costs["sampler"]["bytes"] == 9 * 48 + 2 * 8 * 8  # two floats and a bool a row; two draws


def test_without_beta_and_gamma_it_is_the_plain_run(go, cfg_of, plain, tmp_path):
    got, kept, _ = go(
        cfg_of({"floor": 0.5, "start": "0 steps", "mode": "curriculum", "decay": 0.9}),
        tmp_path / "run",
    )
    assert got["params_sha256"] == plain[0]["params_sha256"] and kept == plain[1]


def _three_steps(cfg):
    e = prepare(cfg, build(cfg, lambda line: None))
    programs = Programs(e)
    host = e.fresh()
    program = programs.of(Program(0, e.model.L, draws=True))
    drawn = e.drawn(host, 0)
    at = programs.place(host)
    for i in range(3):
        at, sums = program.step(at, programs.shard(e.batch(i, drawn)), e.key)
        drawn[i + 2] = jax.device_get(sums["drawn"])
    return jax.device_get((at.sampler, at.params))


def test_devices_and_micro_batches_change_nothing(cfg_of):
    """Each device sees its rows only, and yet the table and the draws are those of one device."""
    on = ON | {"start": "0 steps"}
    want, params = _three_steps(cfg_of(on))
    assert want.seen_N.sum() > 12 and np.ptp(want.cost_N[want.seen_N]) > 0
    got, other = _three_steps(cfg_of(on, devices=2, accum=2))
    np.testing.assert_array_equal(got.seen_N, want.seen_N)
    np.testing.assert_array_equal(got.drawn.index_B, want.drawn.index_B)
    np.testing.assert_allclose(got.loss_N, want.loss_N, rtol=1e-3)
    np.testing.assert_allclose(got.cost_N, want.cost_N, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), other, params)


def test_the_hosts_share_a_draw(cfg_of):
    task = build(cfg_of(), lambda line: None)
    index = np.array([40, 3, 17, 8], np.int32)
    whole = task.pick(0, 5, index)
    parts = [task.pick(0, 5, index, (i, 2)) for i in range(2)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), whole[name])
    np.testing.assert_array_equal(
        whole["labels_BxL"][1], task.pick(0, 9, np.array([3]))["labels_BxL"][0]
    )


def test_what_it_cannot_do_is_one_line(cfg_of, tiny_cfg):
    cfg = config.parse(
        {
            "task": {"name": "longseq", "seq_len": 64, "vocab_size": 64, "pairs": 4},
            "sampler": {"beta": 1.0},
        }
    )
    with pytest.raises(
        UserError, match="long_sequence makes new examples at every step; use sampler.beta=0"
    ):
        prepare(cfg, build(cfg, lambda line: None))
    cfg = cfg_of(ON, batch_size=48)
    with pytest.raises(UserError, match="48 examples for batches of 48"):
        prepare(cfg, build(cfg, lambda line: None))
    with pytest.raises(
        UserError, match="sampler.gamma is set for a dense model; every example costs it the same"
    ):
        tiny_cfg({"net.name": "transformer", "sampler.gamma": 1.0})
    with pytest.raises(UserError, match="cannot read the duration"):
        tiny_cfg({"sampler.start": "soon"})
