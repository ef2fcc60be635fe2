"""Which runs are repeats of one another, and what to call them: runs of one group differ in their seed only.

Two runs are of one group where every configuration key is equal but those of SAME, and so are the data. A group is
called after its model and what tells it from the other groups at hand; keys that only some models read count among the
groups of one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cerebra_jax import config
from cerebra_jax.checks import joined

SAME = (
    "seed",
    "task.cache_dir",
    "task.data_dir",
    "task.path",
    "train.devices",
)  # where data lie is not what they are
OWN = (
    "net.route.",
    "net.compress.",
    "net.norm",
    "net.window",
    "net.kernel",
    "net.ssm_state",
    "objective.",
    "sampler.",
)  # keys that not every model reads

UNITS = ("objective.unit", "objective.device")  # of all costs in a table, whoever has them

Identity = Mapping[str, Any]


def identity(values: Mapping[str, Any], result: Mapping[str, Any]) -> Identity:
    """All that repeats have in common, flat; keys that a run is too old to have are at their default."""
    flat = {key: _hashable(value) for key, value in _flat(config.renewed(values)).items()}
    for key in SAME:
        flat.pop(key, None)
    return flat | {
        "data": f"{result['dataset']} {result.get('data', {}).get('sha256', '')[:8]}".strip()
    }


def label(of: Identity) -> str:
    """The model of a group; a twin by what it is the twin of."""
    kind = {"equal_flops": "equal-FLOP"}.get(of["twin"], of["twin"])
    return f"{kind} twin of {of['net.name']}" if kind else of["net.name"]


def names(identities: Sequence[Identity]) -> list[str]:
    """What to call each of some groups, all different: "cerebra, lam=0.001, rate=0.5"."""
    labels = [label(of) for of in identities]
    shown = [
        [
            key
            for key in of
            if key not in ("net.name", "twin") and _differs(key, of, labels[i], identities, labels)
        ]
        for i, of in enumerate(identities)
    ]
    every = {key for keys in shown for key in keys}
    tails = [key.rpartition(".")[2] for key in every]
    short = {
        key: tail if tails.count(tail := key.rpartition(".")[2]) == 1 else key for key in every
    }
    return [
        ", ".join([name, *(f"{short[key]}={_text(of[key])}" for key in keys)])
        for name, of, keys in zip(labels, identities, shown, strict=True)
    ]


def order(of: Identity) -> tuple[Any, ...]:
    """Sorting key of groups: dense first, then by model, then by values, numbers as numbers."""
    return (
        of["net.name"] != "transformer",
        of["twin"],
        of["net.name"],
        *((str(type(v)), v) for v in of.values()),
    )


def _differs(
    key: str, of: Identity, label: str, identities: Sequence[Identity], labels: Sequence[str]
) -> bool:
    own = key.startswith(OWN) and key not in UNITS
    others = (
        other for other, name in zip(identities, labels, strict=True) if name == label or not own
    )
    return any(key not in other or other[key] != of[key] for other in others)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        value = joined(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value) if value != "" else '""'


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return out
