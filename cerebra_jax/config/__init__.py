"""Configurations: defaults that can be edited, strict parsing; the only module (but cli/) that sees ml_collections.

A ConfigDict is made from the dataclasses of schema.py (`defaults`), edited by configs/*.py and by `--config.x.y=v`, and
stops at the door: `parse` turns it into a `RunCfg`, strictly, and says what is wrong in one line. No JAX here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
from typing import Any

import ml_collections

from cerebra_jax import checks
from cerebra_jax.checks import to_steps
from cerebra_jax.config.schema import (
    CompressCfg,
    KeptCfg,
    NetCfg,
    ObjectiveCfg,
    PruneCfg,
    QuantCfg,
    RouteCfg,
    RunCfg,
    SamplerCfg,
    TaskCfg,
    TrainCfg,
)
from cerebra_jax.errors import UserError

__all__ = [
    "CompressCfg", "KeptCfg", "NetCfg", "ObjectiveCfg", "PruneCfg", "QuantCfg", "RouteCfg", "RunCfg", "SamplerCfg",
    "TaskCfg", "TrainCfg", "defaults", "fields", "parse", "suggest", "to_dict", "to_steps",
]  # fmt: skip


def defaults() -> ml_collections.ConfigDict:
    """The defaults as a locked ConfigDict, for configs/*.py to edit."""
    config = ml_collections.ConfigDict(dataclasses.asdict(RunCfg()))
    return config.lock()


def fields(cls: type = RunCfg, prefix: str = "") -> dict[str, dataclasses.Field]:
    """{'net.route.rate': Field} for every key, in order; Field.metadata holds doc and allowed values."""
    out: dict[str, dataclasses.Field] = {}
    for f in dataclasses.fields(cls):
        if isinstance(f.default_factory, type):
            out |= fields(f.default_factory, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = f
    return out


def suggest(key: str, known: list[str]) -> str:
    """The known key nearest to a mistyped one, as the mend of an error line."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # the right name under the wrong section
        tail = {k.rsplit(".", 1)[-1]: k for k in known}
        near = [
            tail[t]
            for t in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(tail), n=1, cutoff=0.6)
        ]
    return f"did you mean {near[0]}?" if near else "--help lists all keys"


def parse(config: Any) -> RunCfg:
    """RunCfg of a ConfigDict, a nested dict, or the text of a config.json; UserError names the key that is wrong."""
    if isinstance(config, str):
        config = json.loads(config)
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    cfg = _parse(RunCfg, config, "")
    checks.together(cfg)
    _check_durations(cfg)
    return cfg


def to_dict(cfg: RunCfg) -> dict[str, Any]:
    """Nested plain dict, as config.json holds it; `parse` inverts it."""
    return dataclasses.asdict(cfg)


def _parse(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{prefix[:-1]} is not a section", "give it as a mapping")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key {prefix}{key}", suggest(prefix + str(key), list(fields()))
            )
    out = {}
    for name, f in known.items():
        if isinstance(f.default_factory, type):
            out[name] = _parse(f.default_factory, values.get(name, {}), f"{prefix}{name}.")
        elif name in values:
            out[name] = _value(prefix + name, values[name], f)
    return cls(**out)


def _value(key: str, value: Any, f: dataclasses.Field) -> Any:
    want = type(f.default)
    if want is float and type(value) is int:
        value = float(value)
    if type(value) is not want:
        raise UserError(f"{key} is {value!r}", f"it must be of type {want.__name__}")
    of, lo, hi = f.metadata["of"], f.metadata["lo"], f.metadata["hi"]
    if of and value not in of:
        raise UserError(f"{key} is {value!r}", f"choose one of {', '.join(map(str, of))}")
    if want in (int, float) and not lo <= value <= hi:  # NaN fails too
        bounds = f"{key} >= {lo:g}" if hi == math.inf else f"{lo:g} <= {key} <= {hi:g}"
        raise UserError(f"{key} is {value!r}", f"choose {bounds}")
    return value


def _check_durations(c: RunCfg) -> None:
    """Every duration can be read, and training ends."""
    for name, f in fields().items():
        if str(f.default).endswith((" frac", " steps", " epochs")):
            to_steps(functools.reduce(getattr, name.split("."), c), 1000, 1000)
    if c.train.duration.strip().endswith("frac") or to_steps(c.train.duration, 0, 1000) == 0:
        raise UserError(
            f"train.duration is {c.train.duration!r}", 'write "500 steps" or "3 epochs"'
        )
