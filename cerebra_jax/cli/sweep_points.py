"""Reads a sweep file: its points are named, checked configurations, each with a folder of its own.

Imports no JAX.

A sweep file is Python. `get_sweep()`, or `get_sweep(arg)`, returns or yields a dict per point:
under "config" the configuration it starts from, as after --config=; then configuration keys with
their values; and under "name", if need be, what to call the point (without its seed). Loops and
itertools.product are the grid language. Under "flops" may stand how many FLOPs the training
executes, in the place of train.duration: its steps follow from the price of a step, whatever
machine asks (`sweep_price`).

    def get_sweep():
        for lr, seed in itertools.product((1e-3, 2e-3), range(3)):
            yield {"config": "configs/wikitext.py:smoke", "train.lr": lr, "seed": seed}

Files whose argument is a part and then words, `small,dense,s0`, read the words with `chosen`.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cerebra_jax import config
from cerebra_jax.cli import flags, settings
from cerebra_jax.config import names
from cerebra_jax.config.values import checked
from cerebra_jax.errors import RunError, UserError

MOST = 10_000  # points: a generator that never ends is a mistake


class Point(NamedTuple):
    """Holds one run of a sweep."""

    name: str
    cfg: config.RunCfg
    workdir: Path
    flops: float | None = None  # of its training: its steps follow from them; None: cfg says them

    def lasting(self, duration: str) -> Point:
        """Returns the point with its train.duration found; nothing is left to follow from FLOPs."""
        train = dataclasses.replace(self.cfg.train, duration=duration)
        return self._replace(cfg=dataclasses.replace(self.cfg, train=train), flops=None)


def call(spec: str, entries: tuple[str, ...]) -> tuple[str, Any]:
    """Returns (name, result) of the first of the functions `entries` that the file of FILE.py[:ARG]
    defines.
    """
    path, _, arg = spec.partition(":")
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise UserError(
            f"there is no sweep file {path}", "give a .py file such as configs/sweeps/ablation.py"
        )
    defined = _guard(file, lambda: runpy.run_path(str(file), run_name="sweep"))
    found = next((name for name in entries if callable(defined.get(name))), None)
    if found is None:
        raise UserError(
            f"{path} defines no {' or '.join(entries)}()", "see configs/sweeps/ablation.py"
        )
    takes = list(inspect.signature(defined[found]).parameters.values())
    if arg and not takes:
        raise UserError(f"{found}() of {path} takes no argument", f"leave out :{arg}")
    if not arg and any(p.default is p.empty for p in takes):
        raise UserError(f"{found}() of {path} needs an argument", "give it: --config=FILE.py:ARG")

    def run() -> Any:
        value = defined[found](*([arg] if arg else []))
        if isinstance(value, Mapping):
            return value
        # a generator's body runs here, where its mistakes are shown as the file's
        return list(itertools.islice(_points(path, found, value), MOST + 1))

    return found, _guard(file, run)


def load(spec: str, rows: Iterable[Any], overrides: Mapping[str, str], root: Path) -> list[Point]:
    """Returns the points of a sweep, all checked.

    `overrides` (of the command line) go over those of every point.
    """
    points: list[Point] = []
    for i, row in enumerate(rows):
        if i == MOST:
            raise UserError(
                f"{spec} has more than {MOST:,} points",
                "make it end sooner, or search (get_search)",
            )
        points.append(point(spec, f"point {i + 1} of {spec}", row, overrides, root))
    if not points:
        raise UserError(f"{spec} has no point", "return at least one dict")
    same: dict[tuple[config.RunCfg, float | None], int] = {}
    called: dict[str, int] = {}
    for i, p in enumerate(points, start=1):
        j = same.setdefault((p.cfg, p.flops), i)
        if j != i:
            raise UserError(
                f"points {j} and {i} of {spec} are the same configuration",
                "leave one out, or the --config.KEY that makes them equal",
            )
        j = called.setdefault(p.name, i)
        if j != i:
            raise UserError(
                f"points {j} and {i} of {spec} are both called {p.name}",
                'give them names: {"name": ...}',
            )
    return points


def chosen(file: str, part: str, words: Iterable[str], *groups: Iterable[str]) -> list[list[str]]:
    """Returns what `words` choose from each of these groups: all of one where no word is of it.

    chosen("text.py", "long", ["dense", "s1"], ("dense", "mod"), ("s0", "s1")) is
    [["dense"], ["s1"]]. UserError names the file, its part, and a word that is of no group.
    """
    words, names = list(words), [list(group) for group in groups]
    known = list(itertools.chain.from_iterable(names))
    for word in words:
        if word not in known:
            raise UserError(f"{file}: {part} has no {word!r}", f"use {', '.join(known)}")
    return [[name for name in group if name in words] or group for group in names]


def point(spec: str, where: str, row: Any, overrides: Mapping[str, str], root: Path) -> Point:
    """Returns the point of one dict; UserError names the place and the key that is wrong."""
    if not isinstance(row, Mapping) or not isinstance(row.get("config"), str):
        raise UserError(
            f'{where} is no dict with "config"',
            '{"config": "configs/wikitext.py", "train.lr": 1e-3, ...}',
        )
    row = dict(row)
    base, name, flops = row.pop("config"), row.pop("name", None), row.pop("flops", None)
    if name is not None and not (isinstance(name, str) and name):
        raise UserError(f"{where}: its name is {name!r}", "give a word")
    row = {names.current_key(str(key)): value for key, value in row.items()}
    if flops is not None:
        _check_flops(where, flops, row | {**overrides})
    keys = config.fields()
    try:
        for key, value in row.items():
            if key not in keys:
                raise flags.unknown_key(key)
            checked(key, value, keys[key])
        cfg = settings.load(_found(base, Path(spec.partition(":")[0])), row | {**overrides})
    except UserError as e:
        raise UserError(f"{where}: {e.what}", e.hint) from None
    name = f"{re.sub(r'[^A-Za-z0-9@._=,+-]', '_', name or label(base, row))}-s{cfg.seed}"
    return Point(name, cfg, root / name, None if flops is None else float(flops))


def _check_flops(where: str, flops: Any, keys: Mapping[str, Any]) -> None:
    """Raises UserError where the training FLOPs of a point are no number, or not what ends it."""
    is_number = isinstance(flops, int | float) and not isinstance(flops, bool)
    if not is_number or not 0 < flops < math.inf:
        raise UserError(f"{where}: its flops are {flops!r}", "give a number of FLOPs above 0: 1e12")
    if "train.duration" in keys:
        raise UserError(
            f"{where}: flops and train.duration are both set",
            "leave out train.duration: how many steps it has follows from its flops",
        )


def label(base: str, row: Mapping[str, Any]) -> str:
    """Returns what a point is called: wikitext-smoke,lr=0.001.

    That is the configuration and what is changed in it, by short names where these differ.
    """
    keys = [key for key in row if key != "seed"]
    short = [key.rpartition(".")[2] for key in keys]
    parts = [
        f"{s if short.count(s) == 1 else key}={_text(row[key])}"
        for key, s in zip(keys, short, strict=True)
    ]
    return ",".join([settings.name_of(base), *parts])


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _points(path: str, name: str, value: Any) -> Iterable[Any]:
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise UserError(
            f"{name}() of {path} returns {type(value).__name__}",
            "return a list of dicts, or yield them",
        )
    return value


def _guard(file: Path, run: Callable[[], Any]) -> Any:
    """Returns run(), a part of the user's file: whatever it raises is shown as theirs."""
    try:
        return run()
    except RunError:
        raise
    except Exception as e:
        raise UserError(f"{file} fails: {settings.where(e, file)}", "correct the file") from None


def _found(base: str, sweep: Path) -> str:
    """Returns where a configuration is: where we stand or, if it is not there, beside the sweep
    file or above it.
    """
    path, colon, arg = base.partition(":")
    if Path(path).exists():
        return base
    near = (folder / path for folder in sweep.resolve().parents)
    return next((f"{p}{colon}{arg}" for p in near if p.is_file()), base)
