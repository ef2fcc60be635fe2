"""The command line: words into a checked `Request`, every mistake a UserError, no JAX imported.

    python -m cerebra_jax.main [train|eval|cost|certify|generate|report] --config=FILE.py[:ARG] [--config.key=value]...

A .py configuration is code and is run; a .json one (a run's own config.json) is only read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from cerebra_jax import config
from cerebra_jax.errors import UserError

COMMANDS = {
    "train": "train, or resume, or say that it is done (the default)",
    "eval": "measure the best checkpoint of --workdir",
    "cost": "parameters, FLOPs, memory and predicted step time, without training",
    "certify": "prove the savings of the run of --workdir, or of an untrained --config, against its dense twin",
    "generate": "continue --prompt with the best checkpoint of --workdir, a text run",
    "report": "RUN... [--also=NAME:PPL] [--into=FILE.md] [--plot=FILE.svg]: a table of finished runs",
}
_TAKES = {
    "train": ("config", "workdir", "fresh", "verbose"),
    "eval": ("workdir", "split", "verbose"),
    "cost": ("config", "verbose"),
    "report": (),  # takes folders; cli/report.py reads its words
    "certify": ("workdir", "config", "out", "verbose"),
    "generate": ("workdir", "prompt", "max_tokens", "temperature", "top_p", "seed", "verbose"),
}
_OPTIONS = {
    "config": "FILE.py[:ARG] or FILE.json; --config.KEY=VALUE changes one key",
    "workdir": "folder of the run; default runs/<config>[-<arg>]-s<seed>",
    "fresh": "move an existing workdir aside and start again",
    "out": "file that certify writes; default WORKDIR/certificate.json",
    "prompt": "what generate continues; @FILE: each of its lines, in one batch",
    "max_tokens": "tokens that generate writes (default 64)",
    "temperature": "of generate; 0: always the likeliest token (default 1)",
    "top_p": "generate draws from the likeliest tokens that hold this probability (default 1)",
    "seed": "of generate (default 0)",
    "split": "what eval measures: valid or test (default test)",
    "verbose": "-v: show what goes to log.txt otherwise",
}
_SWITCHES = ("fresh", "verbose")
# what may differ from the run
_EVAL_KEYS = ("task.data_dir", "task.path", "task.cache_dir", "train.devices", "train.batch_size")


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked."""

    command: str
    cfg: config.RunCfg
    workdir: Path
    name: str  # of the configuration, for a human
    fresh: bool = False
    verbose: bool = False
    split: str = "test"
    out: Path | None = None
    finished: bool = False  # it is about the run in workdir, not about a configuration
    options: dict[str, str] = field(default_factory=dict)  # as they were written


def parse(argv: list[str]) -> Request:
    """Request of the words after the program name; UserError says what is wrong and how to mend it."""
    command, options, overrides = _words(argv)
    for name in options:
        if name not in _TAKES[command]:
            raise UserError(f"{command} takes no --{name}", f"it takes {_list('--' + o for o in _TAKES[command])}")
    split = options.get("split", "test")
    if split not in ("valid", "test"):
        raise UserError(f"--split is {split!r}", "choose valid or test")
    for name in ("workdir", "out"):
        if options.get(name) == "":
            raise UserError(f"--{name} is empty", "give a folder" if name == "workdir" else "give a file")
    name = ""
    if command == "certify" and {"workdir", "config"} <= options.keys():
        raise UserError("certify takes --workdir or --config, not both", "a run's configuration is in its workdir")
    finished = command in ("eval", "generate") or (command == "certify" and "config" not in options)
    if finished:
        if "workdir" not in options:
            also = ", or --config=FILE.py" if command == "certify" else ""
            raise UserError(f"{command} needs --workdir", f"give the folder of a run: --workdir=runs/NAME{also}")
        if wrong := [key for key in overrides if key not in _EVAL_KEYS]:
            raise UserError(
                f"{command} cannot change {wrong[0]}", f"the run's config.json rules; only {_list(_EVAL_KEYS)} may"
            )
        cfg = _load(str(Path(options["workdir"]) / "config.json"), overrides)
    else:
        if "config" not in options:
            raise UserError("--config is missing", "try --config=configs/wikitext.py, or --help")
        cfg = _load(options["config"], overrides)
        name = _name(options["config"])
    workdir = options.get("workdir") or str(_default_workdir(options["config"], name, cfg.seed))
    on = {switch: switch in options for switch in _SWITCHES}
    out = Path(options["out"]) if "out" in options else None
    return Request(command, cfg, Path(workdir), name, split=split, out=out, finished=finished, options=options, **on)


def help_text() -> str:
    """Usage, commands, options, and every configuration key with its type, default, allowed values and meaning."""
    lines = ["usage: python -m cerebra_jax.main [COMMAND] --config=FILE.py[:ARG] [--config.KEY=VALUE]...", ""]
    lines += [f"  {name:<9} {doc}" for name, doc in COMMANDS.items()]
    lines += [""] + [f"  --{name:<9} {doc}" for name, doc in _OPTIONS.items()]
    lines += ["", "configuration keys (--config.KEY=VALUE), their defaults and allowed values:"]
    section = None
    for key, f in config.fields().items():
        head = key.rpartition(".")[0]
        if head != section:
            lines.append("")
            section = head
        default = json.dumps(f.default) if isinstance(f.default, str) else str(f.default)
        lines.append(f"  {key:<27} {type(f.default).__name__:<5} {default:<13} {f.metadata['doc']}{_allowed(f)}")
    lines += [
        "",
        "exit status: 0 done, 1 not certified, 2 your mistake, 70 a bug, 74 disk, 75 stopped and saved, 77 diverged",
    ]
    return "\n".join(lines)


def _allowed(f: Any) -> str:
    of, lo, hi = f.metadata["of"], f.metadata["lo"], f.metadata["hi"]
    if of:
        return f" [{' | '.join(map(str, of))}]"
    if lo == -math.inf and hi == math.inf:
        return ""
    return f" [{lo:g} or more]" if hi == math.inf else f" [{lo:g} to {hi:g}]"


def _words(argv: list[str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """(command, {option: value}, {configuration key: value as text}) of the command line, in order, last one wins."""
    keys = config.fields()
    command, options, overrides = "", {}, {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if command or options or overrides:
                raise UserError(f"unexpected argument {word!r}", "options are written --name=value; --help lists them")
            if word not in COMMANDS:
                near = config.suggest(word, list(COMMANDS))
                mend = near if near.startswith("did") else f"commands are {_list(COMMANDS)}"
                raise UserError(f"unknown command {word!r}", mend)
            command = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = {"v": "verbose"}.get(name, name)
        head, _, key = name.partition(".")
        if head in ("config", "noconfig") and key:
            if key not in keys:
                raise _unknown_key(key, list(keys))
            is_bool = isinstance(keys[key].default, bool)
            if head == "noconfig" and (equals or not is_bool):
                raise UserError(f"cannot read {word}", f"write --config.{key}=VALUE")
            if not equals:
                value = str(head == "config") if is_bool else _next(words, word, f"--config.{key}=VALUE")
            overrides[key] = value
        elif name in _SWITCHES:
            if equals:
                raise UserError(f"--{name} takes no value", f"write --{name}")
            options[name] = "true"
        elif name in _OPTIONS:
            options[name] = value if equals else _next(words, word, f"--{name}=VALUE")
        else:
            raise UserError(f"unknown option {word.split('=')[0]}", _nearest_option(name, list(keys)))
    return command or "train", options, overrides


def _next(words: list[str], word: str, usage: str) -> str:
    if not words or words[0].startswith("--"):
        raise UserError(f"{word} needs a value", f"write {usage}")
    return words.pop(0)


def _unknown_key(key: str, keys: list[str]) -> UserError:
    inside = [k for k in keys if k.startswith(key + ".")]
    if inside:
        return UserError(f"{key} is a section, not a key", f"set one of its keys: --config.{inside[0]}=VALUE")
    near = config.suggest(key, keys)
    return UserError(f"unknown key {key}", near.replace("did you mean ", "did you mean --config."))


def _nearest_option(name: str, keys: list[str]) -> str:
    if name in keys:
        return f"did you mean --config.{name}?"
    near = config.suggest(name.split(".")[0], list(_OPTIONS))
    if not near.startswith("did"):
        return "--help lists all options"
    rest = name.partition(".")[2]
    return near.replace("mean ", "mean --").replace("?", f".{rest}?" if rest else "?")


def _load(spec: str, overrides: dict[str, str]) -> config.RunCfg:
    """RunCfg of a configuration file with typed overrides."""
    path, _, _ = spec.partition(":")
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{path} is a folder", "give a configuration file: FILE.py or RUN/config.json")
    if not file.is_file():
        raise UserError(f"there is no {path}", _others(file))
    if file.suffix not in (".py", ".json"):
        raise UserError(f"{path} is neither .py nor .json", "give a configuration file")
    values = absl_flags.FlagValues()
    words = [f"--config.{key}={value}" for key, value in overrides.items()]
    if file.suffix == ".json":
        config_flags.DEFINE_config_dict("config", _read_json(file, spec), flag_values=values, sys_argv=["", *words])
    else:
        words.insert(0, f"--config={spec}")
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *words])
    try:
        values(["", *words])
        getattr(values.config, "is_locked", None)  # an OSError inside get_config() is raised only here
    except UserError:
        raise
    except absl_flags.IllegalFlagValueError as e:
        raise _bad_value(str(e), spec, overrides) from None
    except Exception as e:  # the configuration file is the user's program: whatever it raises is shown as theirs
        raise UserError(f"{path} fails: {_where(e, file)}", "mend the file") from None
    if not isinstance(values.config, ml_collections.ConfigDict):
        raise UserError(f"get_config() of {path} returns {type(values.config).__name__}", "return the ConfigDict")
    return config.parse(values.config)


def _read_json(file: Path, spec: str) -> ml_collections.ConfigDict:
    if ":" in spec:
        raise UserError(f"{spec} has an argument, but .json is data", "leave out what follows the colon")
    try:
        cfg = config.parse(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{file} is not JSON ({e})", "take the config.json of an undamaged run") from None
    except UserError as e:
        raise UserError(f"{file}: {e.what}", e.mend) from None
    return ml_collections.ConfigDict(config.to_dict(cfg)).lock()


def _bad_value(message: str, spec: str, overrides: dict[str, str]) -> UserError:
    """The one line of an absl message about a value, or about a file that failed while it was read as a flag."""
    keys = config.fields()
    found = re.search(r"flag --config\.(\S+?)=", message)
    if found and found[1] in overrides:
        key = found[1]
        return UserError(f"{key} is {overrides[key]!r}", f"it must be of type {type(keys[key].default).__name__}")
    path, _, arg = spec.partition(":")
    if re.search(r"get_config\(\) (takes 0 positional|missing|takes from)", message):
        how = f"leave out :{arg}" if arg else "give it: --config=FILE.py:ARG"
        return UserError(f"get_config() of {path} and the argument {arg!r} do not match", how)
    return UserError(f"{path} fails: {message.strip().splitlines()[-1]}", "mend the file")


def _where(error: BaseException, file: Path) -> str:
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


def _name(spec: str) -> str:
    path, _, arg = spec.partition(":")
    return f"{Path(path).stem}-{arg}" if arg else Path(path).stem


def _default_workdir(spec: str, name: str, seed: int) -> Path:
    if Path(spec).name == "config.json":  # a run's own configuration resumes that run
        return Path(spec).parent
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-s{seed}"


def _list(words: Any) -> str:
    return ", ".join(words)
