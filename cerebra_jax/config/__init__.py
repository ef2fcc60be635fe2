"""Holds configurations: defaults that can be edited, and strict parsing.

Only this package and cli/ see ml_collections.

A ConfigDict is made from the dataclasses of schema.py (`defaults`), edited by configs/*.py and by
`--config.x.y=v`, and stops at the door: `parse` turns it into a `RunCfg`, strictly, and says what
is wrong in one line. No JAX here.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from cerebra_jax import checks
from cerebra_jax.checks import to_steps
from cerebra_jax.config import names, values
from cerebra_jax.config.net import CompressCfg, KeptCfg, NetCfg, RouteCfg
from cerebra_jax.config.schema import (
    ObjectiveCfg,
    PruneCfg,
    QuantCfg,
    RunCfg,
    SamplerCfg,
    TrainCfg,
)
from cerebra_jax.config.task import TaskCfg
from cerebra_jax.config.values import listed
from cerebra_jax.errors import UserError

__all__ = [
    "CompressCfg",
    "KeptCfg",
    "NetCfg",
    "ObjectiveCfg",
    "PruneCfg",
    "QuantCfg",
    "RouteCfg",
    "RunCfg",
    "SamplerCfg",
    "TaskCfg",
    "TrainCfg",
    "defaults",
    "durations",
    "fields",
    "listed",
    "parse",
    "parse_data",
    "places",
    "renewed",
    "suggest",
    "suggest_key",
    "to_dict",
    "to_steps",
    "typed",
    "value",
]

ALL_KEYS = "`cerebra keys` lists all keys"


def defaults() -> ml_collections.ConfigDict:
    """Returns the defaults as a locked ConfigDict, for configs/*.py to edit.

    A list takes a tuple, a list or text with commas; a key that was a switch still takes a bool.
    """
    found = _open_lists(dataclasses.asdict(RunCfg()))
    for key in names.SWITCHES:
        section, name = key.split(".")
        found[section][name] = config_dict.FieldReference(found[section][name], field_type=object)
    return ml_collections.ConfigDict(found).lock()


def fields(cls: type = RunCfg, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Returns {'net.route.rate': Field} for every key, in order.

    Field.metadata holds meaning and allowed values.
    """
    out: dict[str, dataclasses.Field] = {}
    for f in dataclasses.fields(cls):
        if isinstance(f.default_factory, type):
            out |= fields(f.default_factory, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = f
    return out


def suggest(word: str, known: list[str]) -> str:
    """Returns "did you mean NAME?" for the known name nearest to a mistyped one by its letters, or
    "".
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    # the right name under the wrong section
    tails = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(word.rpartition(".")[2], list(tails), n=1, cutoff=0.6)
    return f"did you mean {tails[near[0]]}?" if near else ""


def suggest_key(key: str) -> str:
    """Returns the hint of an error about an unknown key: the one it means elsewhere, or is nearest
    to by its letters.
    """
    meant = names.synonym(key, names.KEYS)
    if meant:
        return f"did you mean {meant}?"
    return suggest(key, list(fields())) or ALL_KEYS


def typed(key: str, text: str) -> Any:
    """Returns the value that text on the command line means for a key.

    UserError where it has another type.
    """
    return values.typed(key, text, fields()[key])


def parse(config: Any) -> RunCfg:
    """Returns the RunCfg of a ConfigDict, a nested dict, or the text of a config.json.

    UserError names a wrong key.
    """
    if isinstance(config, str):
        config = json.loads(config)
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    cfg = _parse(RunCfg, _with_current_keys(config), "")
    checks.together(cfg)
    _check_durations(cfg)
    return cfg


def places() -> dict[str, str]:
    """Returns {key: "read" or "write"} of the keys that are paths; `field.path` says what it means.

    The command line and a Python configuration may set all of them, a file of data the first kind.
    """
    return {key: f.metadata["place"] for key, f in fields().items() if f.metadata["place"]}


def parse_data(given: Any, source: object) -> RunCfg:
    """Returns the RunCfg of a file of data, such as the config.json of a run.

    It may name files to read. A folder to write in it may not name, because compiled programs are
    loaded from there: such a key has its default, and one line on stderr says so.
    """
    cfg = parse(given)
    for key in (key for key, kind in places().items() if kind == "write"):
        section, name = key.split(".")
        value = getattr(getattr(cfg, section), name)
        if value:
            hint = f"--config.{key}=FOLDER or CEREBRA_CACHE=FOLDER does"
            names.tell(f"{key}={value!r} of {source} is not followed; {hint}")
            plain = dataclasses.replace(getattr(cfg, section), **{name: ""})
            cfg = dataclasses.replace(cfg, **{section: plain})
    return cfg


def to_dict(cfg: RunCfg) -> dict[str, Any]:
    """Returns the nested plain dict that config.json holds; `parse` inverts it."""
    return _plain(dataclasses.asdict(cfg))


def renewed(old: Any) -> Any:
    """Returns a config.json of an earlier version in today's form, unchecked, to be compared with
    another.

    Keys and values have their current names, lists are lists, and keys that did not exist have
    their defaults.
    """
    if not isinstance(old, dict):
        return old
    known = fields()
    found = {key: field.default for key, field in known.items()}
    for key, value in _flat(_with_current_keys(old)).items():
        is_list = key in known and known[key].metadata["item"]
        try:
            found[key] = values.checked(key, value, known[key]) if is_list else value
        except UserError:
            found[key] = value
        found[key] = names.current_value(key, found[key])
    nested: dict[str, Any] = {}
    for key, value in found.items():
        _put(nested, key, value)
    return _plain(nested)


def _parse(cls: type, given: Any, prefix: str) -> Any:
    if not isinstance(given, dict):
        raise UserError(f"{prefix[:-1]} is not a section", "give it as a mapping")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in given:
        if key not in known:
            raise UserError(f"unknown key {prefix}{key}", suggest_key(prefix + str(key)))
    out = {}
    for name, f in known.items():
        if isinstance(f.default_factory, type):
            out[name] = _parse(f.default_factory, given.get(name, {}), f"{prefix}{name}.")
        elif name in given:
            out[name] = values.checked(prefix + name, given[name], f)
    return cls(**out)


def _with_current_keys(given: Any) -> Any:
    """Returns a nested dict whose renamed keys have their current names."""
    if not isinstance(given, dict) or not names.RENAMED_KEYS.keys() & _flat(given).keys():
        return given
    renamed: dict[str, Any] = {}
    for key, value in _flat(given).items():
        _put(renamed, names.current_key(key), value)
    return renamed


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"net.route.rate": value} of a nested dict."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key of a nested dict."""
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _plain(tree: Any) -> Any:
    """Returns a nested dict with lists in the place of tuples, as JSON has them."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return list(tree) if isinstance(tree, tuple) else tree


def _open_lists(tree: Any) -> Any:
    """Returns a nested dict whose lists a ConfigDict lets be text as well."""
    if isinstance(tree, dict):
        return {key: _open_lists(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return config_dict.FieldReference(tree, field_type=object)
    return tree


def value(cfg: RunCfg, key: str) -> Any:
    """Returns what a configuration has under a key."""
    found: Any = cfg
    for name in key.split("."):
        found = getattr(found, name)
    return found


def durations() -> list[str]:
    """Returns the keys that are durations, beside that of the run."""
    ends = (" frac", " steps", " epochs")
    keys = [key for key, field in fields().items() if str(field.default).endswith(ends)]
    return [key for key in keys if key != "train.duration"]


def _check_durations(c: RunCfg) -> None:
    """Raises UserError where a duration cannot be read or is over after the run, or training has no
    end.
    """
    for key in durations():
        duration = value(c, key)
        if to_steps(duration, 1000, 1000) > 1000 and duration.strip().endswith("frac"):
            raise UserError(f"{key} is {duration!r}", "a run ends at 1 frac")
    if c.train.duration.strip().endswith("frac") or to_steps(c.train.duration, 0, 1000) == 0:
        raise UserError(
            f"train.duration is {c.train.duration!r}", 'write "500 steps" or "3 epochs"'
        )
