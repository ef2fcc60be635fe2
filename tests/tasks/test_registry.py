"""The table of tasks: what is in it, what each task refuses, and what a task decides for a net."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cerebra_jax import config
from cerebra_jax.config import NetCfg, ObjectiveCfg, RunCfg, TaskCfg, TrainCfg
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.task import Shape

# sections of a configuration that each task accepts
FITS = {
    "text": {"seq_len": 64},
    "tabular": {},
    "intent": {"tokenizer": "words"},
    "long_sequence": {"seq_len": 64, "vocab_size": 64},
    "listops": {"seq_len": 64, "shortest": 5},
    "mixed": {"seq_len": 64, "shortest": 5},
}
ENCODERS = ("tabular", "intent", "listops")


def problems(name: str, task: dict | None = None, **sections) -> str:
    """Returns all that a task yields for a configuration that fits it, changed by these keys."""
    made = TaskCfg(name=name, **(FITS[name] | (task or {})))
    sections = {"net": NetCfg(name="transformer", causal=name not in ENCODERS)} | sections
    return " | ".join("; ".join(pair) for pair in registry.check(RunCfg(task=made, **sections)))


def test_the_configuration_offers_the_tasks_of_the_registry():
    offered = config.fields()["task.name"].metadata["of"]
    assert {registry.EARLIER.get(name, name) for name in offered} == set(registry.MODULES)


@pytest.mark.parametrize("name", FITS)
def test_a_configuration_that_fits_its_task_has_no_problem(name):
    assert problems(name) == ""


def test_an_earlier_name_is_the_same_task():
    assert registry.find("longseq") is registry.find("long_sequence")


BROKEN = [
    ("text", {"seq_len": 1}, "a text needs at least 2"),
    ("text", {"tokenizer": "words"}, "use bpe, bytes or gpt2"),
    ("text", {"eval_context": 64}, "keep it under task.seq_len=64"),
    ("text", {"vocab_size": 259}, "a BPE vocabulary holds 256 bytes first"),
    ("mixed", {"vocab_size": 259}, "a BPE vocabulary holds 256 bytes first"),
    ("mixed", {"eval_context": 64}, "leaves nothing to score"),
    ("mixed", {"seq_len": 0}, "the tasks are joined at one length"),
    ("mixed", {"shortest": 63}, "leaves no length above task.shortest=63"),
    ("intent", {"tokenizer": "bpe", "vocab_size": 259}, "use 260 or more"),
    ("intent", {"tokenizer": "bytes", "subwords": 9}, "task.subwords is set for bytes"),
    ("intent", {"tfds": "clinc_oos", "path": "x.csv"}, "task.tfds is set beside task.path=x.csv"),
    ("tabular", {"subwords": 9}, "task.subwords is set for tabular; they are parts of words"),
    ("tabular", {"tfds": "iris"}, "task.tfds is set beside task.name=tabular"),
    ("tabular", {"path": "x.csv"}, "task.target is empty"),
    ("tabular", {"buckets": 2}, "task.name=tabular are of one length"),
    ("text", {"buckets": 2}, "task.name=text are of one length"),
    ("long_sequence", {"seq_len": 31}, "task.seq_len 31 is too short for mqar"),
    ("long_sequence", {"vocab_size": 17}, "task.vocab_size 17 is too small for mqar"),
    ("listops", {"seq_len": 6}, "task.seq_len 6 leaves no length above task.shortest=5"),
]


@pytest.mark.parametrize(("name", "task", "words"), BROKEN)
def test_a_task_refuses_what_it_cannot_have(name, task, words):
    assert words in problems(name, task)


@pytest.mark.parametrize("name", ["intent", "listops"])
def test_padded_tasks_may_have_buckets(name):
    assert problems(name, {"buckets": 2}) == ""


@pytest.mark.parametrize("name", ["text", "mixed"])
def test_a_language_model_is_causal_and_has_a_logit_per_token(name):
    assert "use net.causal=True" in problems(name, net=NetCfg(causal=False))
    assert "net.features or net.outputs is set for a text" in problems(name, net=NetCfg(outputs=3))


def test_three_tasks_need_three_rows():
    assert "train.batch_size is 2 for 3 tasks" in problems("mixed", train=TrainCfg(batch_size=2))


def test_one_name_is_one_task():
    with pytest.raises(ValueError, match="two tasks are called text"):
        registry.register("text")(RunCfg)
    assert registry.find("text").__name__ == "TextTask"


def test_a_task_of_ones_own_is_found_by_its_name_and_checks_itself(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))

    @registry.register("mine")
    class Mine:
        padded = False

        @staticmethod
        def check(cfg):
            yield f"task.rows is {cfg.task.rows}", "use fewer"

    assert registry.find("mine") is Mine
    cfg = RunCfg(task=TaskCfg(name="mine", rows=7))
    assert list(registry.check(cfg)) == [("task.rows is 7", "use fewer")]


def test_a_task_decides_what_is_left_open_and_refuses_what_differs():
    cfg = RunCfg(task=TaskCfg(name="tabular", seq_len=0), net=NetCfg("transformer", causal=False))
    fitted = registry.fitted(cfg, Shape(seq_len=9, vocab_size=50, outputs=3))
    assert (fitted.task.seq_len, fitted.net.outputs, fitted.net.features) == (9, 3, 0)
    assert registry.fitted(fitted, Shape(9, 50, outputs=3)) == fitted
    with pytest.raises(UserError, match="net.outputs is 3, the task has 2; use net.outputs=0"):
        registry.fitted(fitted, Shape(9, 50, outputs=2))


def test_what_a_task_decides_is_checked_again():
    cfg = RunCfg(task=TaskCfg(name="tabular"), objective=ObjectiveCfg(lam=0.1))
    with pytest.raises(UserError, match="chiar, a language model"):
        registry.fitted(cfg, Shape(9, 50, outputs=3))


CODE = """
import sys
from cerebra_jax.config import NetCfg, RunCfg, TaskCfg
from cerebra_jax.models import rules
from cerebra_jax.tasks import registry
print(sorted({'numpy', 'jax', 'flax', 'tokenizers', 'tensorflow_datasets'} & set(sys.modules)))
for name in registry.MODULES:
    list(registry.check(RunCfg(task=TaskCfg(name=name))))
for name in rules.RULES:
    list(rules.check(RunCfg(net=NetCfg(name=name))))
print(sorted({'jax', 'flax', 'tokenizers', 'tensorflow_datasets'} & set(sys.modules)))
"""


def test_the_registry_is_light_and_no_check_imports_jax(clean_env):
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=clean_env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
