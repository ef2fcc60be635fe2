"""Reads a configuration file and applies what the command line changes in it. Imports no JAX.

A .py configuration is code and is run; a .json one (a run's own config.json) is only read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from cerebra_jax import config
from cerebra_jax.errors import UserError


def load(spec: str, overrides: Mapping[str, Any]) -> config.RunCfg:
    """Returns the RunCfg of FILE.py[:ARG] or FILE.json with some keys changed, by values or by
    text.
    """
    path, _, _ = spec.partition(":")
    file = Path(path)
    if file.is_dir():
        raise UserError(
            f"{path} is a folder", "give a configuration file: FILE.py or RUN/config.json"
        )
    if not file.is_file():
        raise UserError(f"there is no {path}", _nearest_file(file))
    if file.suffix == ".json":
        return changed(_read_json(file, spec), overrides)
    if file.suffix != ".py":
        raise UserError(f"{path} is neither .py nor .json", "give a configuration file")
    return config.parse(_with(_run(file, spec), overrides))


def changed(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> config.RunCfg:
    """Returns the RunCfg of a nested dict with some keys changed, by values or by text."""
    return config.parse(_with(ml_collections.ConfigDict(base), overrides))


def _run(file: Path, spec: str) -> ml_collections.ConfigDict:
    """Returns what get_config() of a file returns."""
    values, words = absl_flags.FlagValues(), ["", f"--config={spec}"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(words)
        found = values.config
        getattr(found, "is_locked", None)  # an OSError inside get_config() is raised only here
    except UserError:
        raise
    except absl_flags.IllegalFlagValueError as e:
        raise _bad_file(str(e), spec) from None
    except Exception as e:  # the file is the user's program: whatever it raises is shown as theirs
        raise UserError(f"{file} fails: {where(e, file)}", "correct the file") from None
    if not isinstance(found, ml_collections.ConfigDict):
        what = f"get_config() of {file} returns {type(found).__name__}"
        raise UserError(what, "return the ConfigDict")
    return found


def _with(
    values: ml_collections.ConfigDict, overrides: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns the configuration with some keys changed; text is read as the type of its key."""
    for key, value in overrides.items():
        *sections, name = key.split(".")
        section: Any = values  # Any: what stands under a key is a section or a value
        for part in sections:
            section = section[part]
        value = config.typed(key, value) if isinstance(value, str) else value
        with section.ignore_type():  # parse() checks it, and says what is wrong in one line
            section[name] = value
    return values


def _read_json(file: Path, spec: str) -> dict[str, Any]:
    if ":" in spec:
        raise UserError(
            f"{spec} has an argument, but .json is data", "leave out what follows the colon"
        )
    return config.to_dict(config.read_data(file))


def _bad_file(message: str, spec: str) -> UserError:
    """Returns the error of a file that failed while it was read, in the words of absl's message."""
    path, _, arg = spec.partition(":")
    if re.search(r"get_config\(\) (takes 0 positional|missing|takes from)", message):
        hint = f"leave out :{arg}" if arg else "give it: --config=FILE.py:ARG"
        return UserError(f"get_config() of {path} and the argument {arg!r} do not match", hint)
    return UserError(f"{path} fails: {message.strip().splitlines()[-1]}", "correct the file")


def where(error: BaseException, file: Path) -> str:
    """Returns `NameError: name 'x' is not defined (line 12)`, of the last line inside the file."""
    line = getattr(error, "lineno", None)
    tb = error.__traceback__
    while tb is not None:
        if Path(tb.tb_frame.f_code.co_filename).resolve() == file.resolve():
            line = tb.tb_lineno
        tb = tb.tb_next
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")


def _nearest_file(file: Path) -> str:
    """Returns the hint for a missing file: the file beside it whose name is nearest."""
    if file.name == "config.json":
        return "give the folder of a run, which holds config.json"
    beside = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
    return config.suggest(str(file), beside) or "give an existing file, such as configs/wikitext.py"


def name_of(spec: str) -> str:
    """Returns what a configuration is called: "wikitext-smoke" of configs/wikitext.py:smoke."""
    path, _, arg = spec.partition(":")
    return f"{Path(path).stem}-{arg}" if arg else Path(path).stem
