"""What each model demands of a configuration: every rule refuses something, none what fits."""

from __future__ import annotations

import dataclasses

import pytest

from cerebra_jax import config
from cerebra_jax.config import RunCfg
from cerebra_jax.models import rules

ENCODERS = ("fnet", "mlp")


def configured(name: str, **changes) -> RunCfg:
    """Returns the defaults for a model with some keys changed: configured("mod", net__depth=1)."""
    cfg = _changed(RunCfg(), ["net", "name"], name)
    cfg = _changed(cfg, ["net", "causal"], name not in ENCODERS)
    for key, value in changes.items():
        cfg = _changed(cfg, key.split("__"), value)
    return cfg


def _changed(section, path, value):
    key, *rest = path
    if rest:
        value = _changed(getattr(section, key), rest, value)
    return dataclasses.replace(section, **{key: value})


def problems(cfg: RunCfg) -> str:
    return " | ".join("; ".join(pair) for pair in rules.check(cfg))


def test_every_model_has_rules():
    assert set(rules.RULES) == set(config.fields()["net.name"].metadata["of"])


@pytest.mark.parametrize("name", rules.RULES)
def test_the_defaults_fit_every_model(name):
    assert problems(configured(name)) == ""


HALF = {"net__route__rate": 0.5}
PER_LAYER = {"net__depth": 3, "net__route__by_layer": (0.5, 1.0, 1.5)}
BY_DEMAND = {"net__route__by_demand": True, "net__route__tau": "learned"}
TOP_K = BY_DEMAND | {"net__route__mode": "topk", "net__causal": False}
BROKEN = [
    # routing where there is none
    ("transformer", {"objective__lam": 0.1}, "objective.lam is set for a dense model"),
    ("ssm", {"objective__budget": 0.5}, "objective.budget is set for ssm"),
    ("lstm", {"sampler__gamma": 1.0}, "sampler.gamma is set for lstm"),
    ("window", {"net__route__score": "raw"}, "net.route.score is raw for window"),
    ("cnn", {"net__route__rbf": 0.1}, "it is for the operators of chiar: use net.route.rbf=0"),
    ("mod", {"net__route__collapse": 0.1}, "net.route.collapse is set for mod"),
    ("mlp", {"net__depth": 3, "net__route__by_layer": (1.0, 1.0, 1.0)}, "'1,1,1' for mlp"),
    ("chiar", PER_LAYER, "only the layers of cerebra have rates of their own"),
    # modes
    ("chiar", {"net__route__mode": "topk"}, "net.route.mode is topk for chiar"),
    ("cerebra", {"net__route__mode": "hard"}, "net.route.mode is hard for cerebra"),
    ("mod", {"net__route__mode": "soft"}, "net.route.mode is soft for mod"),
    ("cerebra", {"net__route__mode": "topk"}, "net.route.mode is topk in a causal model"),
    ("mod", {"net__route__tau": "calibrated"}, "net.route.tau is calibrated for mod"),
    ("chiar", {"net__route__tau": "learned"}, "net.route.tau is learned for chiar"),
    ("chiar", {"net__route__gate": "learned"}, "net.route.gate is learned for chiar"),
    ("mod", {"net__route__gate": "learned"}, "gate is learned with net.route.mode=threshold"),
    # rates
    ("cerebra", {"net__route__rate": 1.0}, "use 0 < rate < 1"),
    ("mod", {"net__route__rate": 0.0}, "net.route.rate is 0"),
    ("cerebra", HALF | {"net__route__floor": 0.6}, "is not between net.route.floor and"),
    ("cerebra", HALF | {"net__route__ceiling": 0.4}, "use floor <= rate <= ceiling"),
    ("chiar", {"net__route__rate": 1.0}, "a threshold needs a share below 1"),
    ("cerebra", {"net__compress__heads": 3}, "does not divide the light width 64; use 4, or 0"),
    # rates per layer
    ("cerebra", {"net__route__by_layer": (1.0, 2.0)}, "'1,2'; give 6 numbers above 0"),
    ("cerebra", {"net__route__by_layer": (0.0,) * 6}, "give 6 numbers above 0"),
    ("cerebra", PER_LAYER | {"net__scan": True}, "'0.5,1,1.5' with net.scan"),
    ("cerebra", PER_LAYER | {"net__route__mode": "soft"}, "with net.route.mode=soft"),
    ("cerebra", PER_LAYER | {"net__route__k": 3}, "with net.route.k=3"),
    # slots by demand
    ("cerebra", {"net__route__by_demand": True}, "with net.route.tau=running; such a router wants"),
    ("cerebra", BY_DEMAND | {"net__route__mode": "random"}, "with net.route.mode=random"),
    ("cerebra", TOP_K, "net.route.by_demand is set with net.route.mode=topk"),
    ("cerebra", BY_DEMAND | PER_LAYER, "by_demand is set with net.route.by_layer; one says"),
    ("cerebra", BY_DEMAND | {"net__scan": True}, "net.route.by_demand is set with net.scan"),
    ("cerebra", BY_DEMAND | {"net__route__dispatch": False}, "there are no slots to divide"),
    ("cerebra", BY_DEMAND | {"prune__keep": 0.5}, "net.route.by_demand is set with prune"),
    ("cerebra", BY_DEMAND | {"net__route__divide_at": "0 steps"}, "before the first step"),
    ("chiar", {"net__route__by_demand": True}, "net.route.by_demand is set for chiar; only"),
    ("mod", {"net__route__by_demand": True}, "net.route.by_demand is set for mod; only"),
    ("ssm", {"net__route__by_demand": True}, "net.route.by_demand is set for ssm; only"),
    # the shape of a model
    ("mod", {"net__depth": 1}, "mod routes every second block"),
    ("chiar", {"net__depth": 1}, "chiar needs a first and a last layer"),
    ("chiar", {"net__causal": False}, "net.causal is False for chiar"),
    ("chiar", {"net__local": 2}, "net.local is 2 for chiar"),
    ("chiar", {"net__outputs": 3}, "is set for chiar, a language model"),
    ("fnet", {"net__causal": True}, "net.causal is True for fnet"),
    ("mlp", {"net__causal": True}, "net.causal is True for mlp"),
    ("fnet", {"task__buckets": 2}, "what fnet computes depends on the length"),
    ("mlp", {"task__buckets": 2}, "what mlp computes depends on the length"),
    ("window", {"net__attention": "cudnn"}, "net.attention is cudnn for window"),
    ("lstm", {"quant__bits": 8}, "quant.bits is 8 for lstm; a recurrence"),
    ("ssm", {"quant__bits": 8}, "quant.bits is 8 for ssm"),
    # three operators
    ("chiar", {"net__route__rate": 0.7, "net__route__rbf": 0.4}, "are more than all tokens"),
    ("chiar", {"net__route__rbf": 0.1, "objective__budget": 0.5}, "a budget knows two paths"),
    ("chiar", {"net__route__rbf": 0.1, "net__route__mode": "always_full"}, "net.route.rbf is set"),
    (
        "chiar",
        {"net__route__collapse": 0.1, "net__route__mode": "random"},
        "chance takes no reward",
    ),
    (
        "chiar",
        {"net__route__rbf": 0.1, "net__route__mode": "hard", "net__route__floor": 0.1},
        "a choice among three operators",
    ),
    ("chiar", {"net__route__score": "raw", "net__route__mode": "hard"}, "looks at an entropy"),
    ("chiar", {"net__route__tau": "calibrated", "task__name": "mixed"}, "for several tasks"),
    # pruning
    ("cnn", {"prune__keep": 0.5}, "only transformer, cerebra, chiar can be pruned"),
    ("cerebra", {"prune__dct": 0.5}, "prune.dct is set for cerebra"),
    ("mod", {"prune__dct": 0.5}, "prune.dct is set for mod"),
    ("mod", {"net__kept__heads": (1,) * 6}, "net.kept.heads is set for mod"),
    ("chiar", {"net__kept__heads": (1,) * 5}, "net.kept.heads is '1,1,1,1,1'; give 6 numbers"),
    ("chiar", {"net__kept__heads": (5,) * 6}, "give 6 numbers from 0 to 4"),
    ("cerebra", {"net__kept__channels": (129,) * 6}, "give 6 numbers from 0 to 128"),
    ("chiar", {"net__kept__ffn": (8,) * 6, "net__scan": True}, "net.kept.ffn is set with net.scan"),
    ("chiar", {"net__heavy": "gla"}, "net.heavy is gla for chiar"),
    ("mod", {"net__heavy": "ssm"}, "net.heavy is ssm with net.route.kv=all"),
    ("transformer", {"net__light": "none"}, "net.light is none for transformer"),
    (
        "cerebra",
        {"net__light": "dct", "net__compress__reconstruct": 0.1},
        "net.compress.reconstruct is set with net.light=dct",
    ),
    ("transformer", {"net__heavy": "gla", "quant__bits": 8}, "quant.bits is 8 with a layer of gla"),
]


@pytest.mark.parametrize(("name", "changes", "words"), BROKEN)
def test_a_model_refuses_what_it_cannot_have(name, changes, words):
    assert words in problems(configured(name, **changes))


ALLOWED = [
    ("cerebra", {"net__route__mode": "topk", "net__causal": False}),
    ("cerebra", PER_LAYER),
    ("cerebra", {"net__compress__heads": 4}),
    ("chiar", {"net__route__mode": "always_full"}),
    ("chiar", {"net__route__tau": "calibrated"}),
    ("chiar", {"net__route__rbf": 0.1, "net__route__collapse": 0.1}),
    ("chiar", {"net__route__score": "permuted"}),
    ("chiar", {"prune__dct": 0.5}),
    ("lstm", {"sampler__gamma": 1.0, "task__buckets": 2}),
    ("mlp", {"task__buckets": 2, "net__pool": "mean"}),
    ("cnn", {"prune__keep": 0.5, "twin": "dense"}),
    ("transformer", {"net__kept__ffn": (8,) * 6}),
]


@pytest.mark.parametrize(("name", "changes"), ALLOWED)
def test_a_model_takes_what_it_can_have(name, changes):
    assert problems(configured(name, **changes)) == ""


@pytest.mark.parametrize("text", ["1,x,2,3,4,5", "1,,2,3,4,5", "1,2"])
def test_lists_may_be_text_and_are_then_read_strictly(text):
    assert "net.kept.heads" in problems(configured("chiar", net__kept__heads=text))
    assert problems(configured("chiar", net__kept__heads="1,0,2,3,4,4")) == ""
