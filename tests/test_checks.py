"""What concerns every run: general rules, the one entry point to all rules, durations and lists."""

from __future__ import annotations

import dataclasses

import pytest

from cerebra_jax import checks, config
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError


def _changed(sections: dict[str, dict], cfg: RunCfg | None = None) -> RunCfg:
    """Returns a configuration, or the defaults, with some keys of some sections changed."""
    cfg = cfg or RunCfg()
    made = {
        name: dataclasses.replace(getattr(cfg, name), **keys) for name, keys in sections.items()
    }
    return dataclasses.replace(cfg, **made)


GENERAL = [
    ({"net": {"width": 130}}, "net.width 130 is not divisible by net.heads 4; use net.heads=2"),
    ({"net": {"width": 12}}, "head width 3 is odd"),
    ({"train": {"accum": 3}}, "train.batch_size 16 is not divisible by train.accum 3"),
    ({"task": {"tokenizer": "gpt2"}}, "task.gpt2_dir is empty"),
    ({"task": {"delimiter": "1,2"}}, "task.delimiter is '1,2'; give one sign"),
    ({"task": {"delimiter": "\n"}}, "task.delimiter is"),
    ({"quant": {"stored": True}}, "quant.stored is True without quant.bits"),
    ({"net": {"pooler": True}}, "net.pooler is set without net.pool"),
    ({"prune": {"keep": 0.5}, "net": {"scan": True}}, "prune is set with net.scan"),
    ({"task": {"buckets": 2}, "objective": {"budget": 0.5}}, "a budget is one program's"),
]


@pytest.mark.parametrize(("changes", "words"), GENERAL)
def test_what_concerns_every_run_is_refused_whatever_the_model(changes, words):
    for name in config.fields()["net.name"].metadata["of"]:
        cfg = _changed({"net": {"name": name}}, _changed(changes))
        assert words in " | ".join("; ".join(pair) for pair in checks.check(cfg))


def test_the_first_problem_of_any_kind_is_an_error_of_the_user():
    general = _changed({"net": {"width": 130, "local": 2}, "task": {"seq_len": 1}})
    task = _changed({"net": {"local": 2}, "task": {"seq_len": 1}})
    model = _changed({"net": {"local": 2}})
    found = []
    for cfg in (general, task, model):
        with pytest.raises(UserError) as error:
            checks.together(cfg)
        found.append(error.value.what.split()[0])
    assert found == ["net.width", "task.seq_len", "net.local"]
    checks.together(RunCfg())


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("7 steps", 7), ("1 step", 1), ("2 epochs", 20), ("0.5 epoch", 5), ("0.25 frac", 50)],
)
def test_a_duration_is_a_number_of_steps(duration, steps):
    assert checks.to_steps(duration, total=200, per_epoch=10) == steps


@pytest.mark.parametrize("duration", ["", "7", "7 weeks", "x steps", "-1 steps", "inf frac"])
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(UserError, match="duration"):
        checks.to_steps(duration, total=200, per_epoch=10)


def test_lists_are_tuples_or_text():
    assert checks.counts("3,0,2") == checks.counts((3, 0, 2)) == (3, 0, 2)
    assert checks.numbers("0.5,2") == checks.numbers((0.5, 2)) == (0.5, 2.0)
    assert checks.words(" age,, income ") == checks.words(("age", "income")) == ("age", "income")
    assert checks.counts("") == checks.numbers(()) == checks.words("") == ()
    assert checks.joined((0.5, 2.0, 3)) == checks.joined("0.5,2,3") == "0.5,2,3"
    for broken in ("1,,2", "1,x", "1.5,2"):
        with pytest.raises(ValueError):
            checks.counts(broken)


def test_what_is_required_and_missing_is_an_error_of_the_user():
    checks.require(True, "what", "hint")
    with pytest.raises(UserError, match="what; hint"):
        checks.require(False, "what", "hint")
