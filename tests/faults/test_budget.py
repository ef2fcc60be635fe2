"""A budget or a share that cannot be met is said before the first step, with what can be."""

from __future__ import annotations

import re

import pytest

from cerebra_jax.tasks.registry import build
from cerebra_jax.training import results
from cerebra_jax.training.experiment import prepare


@pytest.fixture
def experiment_of(tiny_cfg, table):
    def make(keys):
        base = {"task": {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0}}
        route = {"mode": "topk", "part": "block", "kv": "routed"}
        base |= {"net": {"name": "cerebra", "causal": False, "width": 16, "ffn_width": 32}}
        base["net"] |= {"route": route, "compress": {"kind": "attention", "s": 0.25}}
        base["train"] = {"duration": "9 steps", "devices": 1}
        cfg = tiny_cfg(base | keys)
        return prepare(cfg, build(cfg, lambda line: None))

    return make


def said(experiment) -> list[str]:
    return [line for line in results.doubts(experiment) if "objective.budget" in line]


def test_a_budget_that_no_program_meets_names_the_two_nearest(experiment_of):
    """A row of the table is 3 tokens: there are two programs under a budget, or three."""
    [line] = said(experiment_of({"objective.budget": 0.7}))
    assert line.startswith("warning: objective.budget is 0.7, which no program of 3 tokens meets")
    lower, upper = map(float, re.search(r"are ([\d.]+) and ([\d.]+) of", line).groups())
    assert lower < 0.98 * 0.7 and upper > 1.0 * 0.7
    for reached in (lower, upper):  # what it names can be had, and is taken without a word
        experiment = experiment_of({"objective.budget": reached})
        assert said(experiment) == []
        assert experiment.sizes.plan.levels[-1] == pytest.approx(reached, abs=1e-4)
    assert said(experiment_of({})) == []


def test_the_end_of_a_run_says_what_the_clip_of_the_sampler_cut_off():
    [line] = results.clipped({"costs": {"sampler": {"clipped": 0.0123}}})
    assert "sampler.clip cut off 1.23% of the weight of the examples" in line
    assert results.clipped({"costs": {"sampler": {"clipped": 0.0}}}) == []
