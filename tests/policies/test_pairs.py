"""Policies at once: penalty, sampler, pruning, 8 bits in overlapping phases, every pair of their
settings in some run.

No pair is left out. Matrices that are pruned to nothing
are among them, whose largest weight, the scale of 8 bits, is 0.
"""

from __future__ import annotations

import itertools
import math

import pytest

from cerebra_jax import config

pytestmark = pytest.mark.usefixtures("eight_bits")

LEARNED = {"mode": "threshold", "tau": "learned"}
PENALTY = (
    {"net.route": {"mode": "topk"}},
    {"net.route": LEARNED, "objective": {"lam": 10.0, "warm": "2 steps", "ramp": "6 steps"}},
    {
        "net.route": LEARNED,
        "objective": {
            "budget": 0.95,
            "buckets": 2,
            "warm": "2 steps",
            "ramp": "6 steps",
            "dual_rate": 1.0,
        },
    },
)
SAMPLER = ({}, {"sampler": {"beta": 3.0, "gamma": 9.0, "start": "2 steps"}})
ROUNDS = {"start": "2 steps", "end": "9 steps", "rounds": 4, "tile": 1}
PRUNE = ({}, {"prune": {"keep": 0.45, "unstructured": 1.0} | ROUNDS})
QUANT = ({}, {"quant": {"bits": 8, "start": "4 steps"}})
CHOICES = (PENALTY, SAMPLER, PRUNE, QUANT)
RUNS = [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 0), (1, 1, 0, 1), (2, 0, 1, 1), (2, 1, 0, 0)]


def test_every_pair_of_settings_is_in_a_run():
    for i, j in itertools.combinations(range(len(CHOICES)), 2):
        pairs = itertools.product(range(len(CHOICES[i])), range(len(CHOICES[j])))
        assert {(run[i], run[j]) for run in RUNS} == set(pairs)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_all_that_a_run_reports_is_finite(run, go, table, tmp_path):
    keys = {}
    for choice, options in zip(run, CHOICES, strict=True):
        keys |= options[choice]
    net = {
        "name": "cerebra",
        "causal": False,
        "depth": 1,
        "width": 16,
        "heads": 4,
        "ffn_width": 24,
        "dropout": 0.1,
    }
    net["route"] = keys.pop("net.route")
    every = {
        "duration": "12 steps",
        "batch_size": 8,
        "eval_every": "4 steps",
        "checkpoint_every": "4 steps",
    }
    task = {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0}
    cfg = config.parse(
        {"task": task, "net": net, "train": every | {"devices": 1, "max_skips": 0}} | keys
    )
    found, lines, _ = go(cfg, tmp_path / "run")
    assert [line["step"] for line in lines if line["split"] == "train"][-1] == 12
    for line in [*lines, found["val"], found["test"]]:
        bad = {name: x for name, x in line.items() if isinstance(x, float) and not math.isfinite(x)}
        assert not bad, line.get("step")
