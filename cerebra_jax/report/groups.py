"""Tells which runs are repeats of one another, and names their groups.

Runs of one group differ in their seed only: every configuration key is equal but those of
NOT_IDENTITY, and so are the data. A group is named after its model and after what tells it from the
other groups at hand. Keys that only some models read count among the groups of one model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cerebra_jax import config
from cerebra_jax.checks import joined

# keys in which repeats may differ: the seed, and where data lie, which is not what they are
NOT_IDENTITY = ("seed", "task.cache_dir", "task.data_dir", "task.path", "train.devices")
# beginnings of the keys that not every model reads
MODEL_KEYS = (
    "net.route.",
    "net.compress.",
    "net.norm",
    "net.window",
    "net.kernel",
    "net.ssm_state",
    "objective.",
    "sampler.",
)
UNIT_KEYS = ("objective.unit", "objective.device")  # they concern all costs of a table

Identity = Mapping[str, Any]


def identity(values: Mapping[str, Any], result: Mapping[str, Any]) -> Identity:
    """Returns what repeats have in common, as a flat dict of configuration keys and "data".

    values: config.json; a key that the run is too old to have is at its default.
    result: result.json, whose hash of the data tells data sets of one name apart.
    """
    flat = {key: _hashable(value) for key, value in _flat(config.renewed(values))}
    for key in NOT_IDENTITY:
        flat.pop(key, None)
    data = result.get("data", {})
    # folds are splits of the same rows
    sha256 = data.get("fields_sha256" if flat.get("task.folds") else "sha256", "")
    return flat | {"data": f"{result['dataset']} {sha256[:8]}".strip()}


def label(of: Identity) -> str:
    """Returns the model of a group; for a twin, what it is the twin of."""
    if not of["twin"]:
        return of["net.name"]
    kind = "equal-FLOP" if of["twin"] == "equal_flops" else of["twin"]
    return f"{kind} twin of {of['net.name']}"


def names(identities: Sequence[Identity]) -> list[str]:
    """Returns a name for each group, all different: "cerebra, lam=0.001, rate=0.5"."""
    shown = [_telling_keys(i, identities) for i in range(len(identities))]

    # a key is shortened to its last word where no other key that is shown ends in it
    every = {key for keys in shown for key in keys}
    tails = [_tail(key) for key in every]
    short = {key: _tail(key) if tails.count(_tail(key)) == 1 else key for key in every}

    made = []
    for of, keys in zip(identities, shown, strict=True):
        made.append(", ".join([label(of), *(f"{short[key]}={_text(of[key])}" for key in keys)]))
    return made


def sort_key(of: Identity) -> tuple[Any, ...]:
    """Returns what groups are sorted by: dense first, then the model, then numbers as numbers."""
    values = (_comparable(value) for value in of.values())
    return (of["net.name"] != "transformer", of["twin"], of["net.name"], *values)


def _comparable(value: Any) -> tuple[str, Any]:
    """Returns what values of any types can be compared by: numbers as numbers, texts as texts."""
    if isinstance(value, tuple):
        return "tuple", tuple(_comparable(item) for item in value)
    if value is None:
        return "none", ""
    return type(value).__name__, value


def _telling_keys(i: int, identities: Sequence[Identity]) -> list[str]:
    """Returns the keys in which the i-th group differs from a group that reads them too."""
    mine = identities[i]
    same_label = [other for other in identities if label(other) == label(mine)]
    keys = []
    for key in mine:
        if key in ("net.name", "twin"):  # the label says these
            continue
        of_model = key.startswith(MODEL_KEYS) and key not in UNIT_KEYS
        others = same_label if of_model else identities
        if any(key not in other or other[key] != mine[key] for other in others):
            keys.append(key)
    return keys


def _tail(key: str) -> str:
    return key.rpartition(".")[2]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    """Writes a value so that different values look different."""
    if isinstance(value, tuple):
        value = joined(value)
    if isinstance(value, float):
        rounded = f"{value:g}"
        return rounded if float(rounded) == value else repr(value)
    return '""' if value == "" else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
