"""A configuration file, with what the command line changes in it -> RunCfg. Imports no JAX."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from cerebra_jax import config
from cerebra_jax.errors import UserError


def load(spec: str, overrides: Mapping[str, str]) -> config.RunCfg:
    """RunCfg of a configuration file with typed overrides."""
    path, _, _ = spec.partition(":")
    file = Path(path)
    if file.is_dir():
        raise UserError(
            f"{path} is a folder", "give a configuration file: FILE.py or RUN/config.json"
        )
    if not file.is_file():
        raise UserError(f"there is no {path}", _others(file))
    if file.suffix not in (".py", ".json"):
        raise UserError(f"{path} is neither .py nor .json", "give a configuration file")
    if file.suffix == ".json":
        return changed(_read_json(file, spec), overrides)
    values = absl_flags.FlagValues()
    words = ["", f"--config={spec}", *_words(overrides)]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(words)
        getattr(
            values.config, "is_locked", None
        )  # an OSError inside get_config() is raised only here
    except UserError:
        raise
    except absl_flags.IllegalFlagValueError as e:
        raise _bad_value(str(e), spec, overrides) from None
    except (
        Exception
    ) as e:  # the configuration file is the user's program: whatever it raises is shown as theirs
        raise UserError(f"{path} fails: {where(e, file)}", "mend the file") from None
    if not isinstance(values.config, ml_collections.ConfigDict):
        raise UserError(
            f"get_config() of {path} returns {type(values.config).__name__}",
            "return the ConfigDict",
        )
    return config.parse(values.config)


def changed(base: dict[str, Any], overrides: Mapping[str, str]) -> config.RunCfg:
    """RunCfg of a nested dict with typed overrides."""
    values, words = absl_flags.FlagValues(), ["", *_words(overrides)]
    given = ml_collections.ConfigDict(base).lock()
    config_flags.DEFINE_config_dict("config", given, flag_values=values, sys_argv=words)
    try:
        values(words)
    except absl_flags.IllegalFlagValueError as e:
        raise _bad_value(str(e), "the configuration", overrides) from None
    return config.parse(values.config)


def _words(overrides: Mapping[str, str]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def _read_json(file: Path, spec: str) -> dict[str, Any]:
    if ":" in spec:
        raise UserError(
            f"{spec} has an argument, but .json is data", "leave out what follows the colon"
        )
    try:
        cfg = config.parse(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(
            f"{file} is not JSON ({e})", "take the config.json of an undamaged run"
        ) from None
    except UserError as e:
        raise UserError(f"{file}: {e.what}", e.mend) from None
    return config.to_dict(cfg)


def _bad_value(message: str, spec: str, overrides: Mapping[str, str]) -> UserError:
    """The one line of an absl message about a value, or about a file that failed while it was read as a flag."""
    keys = config.fields()
    found = re.search(r"flag --config\.(\S+?)=", message)
    if found and found[1] in overrides:
        key = found[1]
        return UserError(
            f"{key} is {overrides[key]!r}", f"it must be of type {type(keys[key].default).__name__}"
        )
    path, _, arg = spec.partition(":")
    if re.search(r"get_config\(\) (takes 0 positional|missing|takes from)", message):
        how = f"leave out :{arg}" if arg else "give it: --config=FILE.py:ARG"
        return UserError(f"get_config() of {path} and the argument {arg!r} do not match", how)
    return UserError(f"{path} fails: {message.strip().splitlines()[-1]}", "mend the file")


def where(error: BaseException, file: Path) -> str:
    """`NameError: name 'x' is not defined (line 12)`, with the last line inside the file."""
    line = getattr(error, "lineno", None)
    tb = error.__traceback__
    while tb is not None:
        if Path(tb.tb_frame.f_code.co_filename).resolve() == file.resolve():
            line = tb.tb_lineno
        tb = tb.tb_next
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")


def _others(file: Path) -> str:
    """The mend for a missing file: the nearest one beside it."""
    if file.name == "config.json":
        return "give the folder of a run, which holds config.json"
    beside = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
    near = config.suggest(str(file), beside) if beside else ""
    return near if near.startswith("did") else "give an existing file, such as configs/wikitext.py"


def name_of(spec: str) -> str:
    """What a configuration is called: "wikitext-smoke" of configs/wikitext.py:smoke."""
    path, _, arg = spec.partition(":")
    return f"{Path(path).stem}-{arg}" if arg else Path(path).stem
