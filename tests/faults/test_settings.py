"""A setting that is accepted has an effect, or the run says that it has none."""

from __future__ import annotations

import dataclasses

import pytest

from cerebra_jax import config
from cerebra_jax.config import reads
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import trainer as loop


def warned(cfg, folder, Screen) -> list[str]:
    """Returns the keys that a run of one step says have no effect."""
    cfg, screen = reads.watched(cfg), Screen()
    folder.mkdir()
    loop.run(cfg, build(cfg, lambda line: None), folder, screen)
    ends = " is set and has no effect in this run"
    found = [line for line in screen.lines if line.endswith(ends)]
    return [line.removeprefix("warning: ").removesuffix(ends) for line in found]


@pytest.fixture
def cfg_of(tiny_cfg, table):
    def make(keys=None):
        base = {"task": {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0}}
        base |= {"net": {"name": "transformer", "causal": False, "width": 8, "ffn_width": 8}}
        base["task"] |= {"tokenizer": "bpe", "vocab_size": 4096}
        base["train"] = {"duration": "2 steps", "devices": 1}
        return tiny_cfg(base | (keys or {}), blocks=1)

    return make


def test_a_key_that_nothing_reads_is_named(cfg_of, tmp_path, Screen):
    keys = {"task.gpt2_dir": "x", "net.compress.r": 0.5}
    cfg = cfg_of(keys | {"sampler.start": "1 steps", "prune.rounds": 3, "quant.start": "1 frac"})
    found = warned(cfg, tmp_path / "run", Screen)
    assert set(found) == {
        "task.gpt2_dir", "net.compress.r", "sampler.start",
        "prune.rounds", "quant.start",
    }  # fmt: skip


def test_a_key_with_an_effect_is_not(cfg_of, tmp_path, Screen):
    assert warned(cfg_of(), tmp_path / "run", Screen) == []


def test_watching_changes_nothing():
    cfg = config.parse({"net": {"width": 64}})
    seen = reads.watched(cfg)
    assert seen == cfg and cfg == seen and hash(seen.net) == hash(cfg.net)
    assert config.to_dict(seen) == config.to_dict(cfg)
    assert reads.unread(seen) == ["net.width"]
    other = dataclasses.replace(seen, net=dataclasses.replace(seen.net, depth=7))
    assert reads.unread(other) == ["net.depth", "net.width"] and other != seen
    assert other.net.width == 64  # a reading, and of all copies
    assert reads.unread(seen) == [] and reads.unread(other) == ["net.depth"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"train": {"warmup": "2 frac"}}, "train.warmup is '2 frac'; a run ends at 1 frac"),
        ({"objective": {"warm": "5 frac"}}, "objective.warm is '5 frac'"),
        ({"sampler": {"start": "5 frac"}}, "sampler.start is '5 frac'"),
        ({"train": {"duration": "1e30 steps"}}, "'1e30 steps' is 1e\\+30 steps; a run has at most"),
        ({"train": {"duration": "1e308 epochs"}}, "duration '1e308 epochs'"),
        ({"objective": {"device": "foo"}}, "'foo'"),
        (
            {"task": {"name": "intent", "path": "t.csv", "target": "a", "columns": ("a",)}}
            | {"net": {"name": "transformer", "causal": False}},
            "task.columns and task.target are both 'a'",
        ),
        ({"train": {"batch_size": 10**20}}, "train.batch_size is 1000"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_without_data(keys, says):
    with pytest.raises(UserError, match=says):
        config.parse(keys)


def test_what_the_data_cannot_be_is_refused(cfg_of, tmp_path, Screen):
    route = {"net.name": "cerebra", "net.route.mode": "topk", "net.route.k": 50}
    for keys, says in (
        (route, "net.route.k is 50, an example has 3 tokens"),
        ({"train.lr": 0.0}, "train.lr is 0"),
    ):
        cfg = cfg_of(keys)
        with pytest.raises(UserError, match=says):
            loop.run(cfg, build(cfg, lambda line: None), tmp_path, Screen())


def test_more_than_the_run_or_the_data_have_is_said(cfg_of, tmp_path, Screen):
    cfg, screen = cfg_of({"train.warmup": "100 steps", "train.batch_size": 64}), Screen()
    loop.run(cfg, build(cfg, lambda line: None), tmp_path, screen)
    warnings = [line for line in screen.lines if line.startswith("warning:")]
    assert warnings == [
        "warning: train.warmup is '100 steps', step 100, and the run has 2",
        "warning: train.batch_size is 64 and there are 48 training examples: "
        "a step takes some of them more than once",
    ]
