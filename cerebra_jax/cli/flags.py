"""The command line: words into a checked `Request`, every mistake a UserError, no JAX imported.

    python -m cerebra_jax.main [COMMAND] --config=FILE.py[:ARG] [--config.key=value]...

A .py configuration is code and is run; a .json one (a run's own config.json) is only read.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cerebra_jax import config
from cerebra_jax.cli import settings
from cerebra_jax.errors import UserError

COMMANDS = {
    "train": "train, or resume, or say that it is done (the default)",
    "eval": "measure the best checkpoint of --workdir",
    "cost": "parameters, FLOPs, memory and predicted step time, without training",
    "certify": "prove the savings of the run of --workdir, or of an untrained --config, against its dense twin",
    "generate": "continue --prompt with the best checkpoint of --workdir, a text run",
    "predict": "answer for the rows of --data, a CSV file, with the best checkpoint of --workdir: tables and intents",
    "calibrate": "set the thresholds of --workdir, a run of chiar, by its text or --data, and say how far they drifted",
    "shrink": "cut out what the run of --workdir has pruned: a smaller run in --to, which every command takes",
    "heatmap": "which tokens of --text take the heavy path in which layer of the run of --workdir: a page",
    "import": "make a run in --to out of --from=FILE: a checkpoint of CHIAR's authors, or .safetensors",
    "export": "write the best checkpoint of --workdir to --to=FILE: its tensors, or a program that needs JAX alone",
    "convert": "make a run with int8 weights in --to out of the run of --workdir, trained with quant.bits=8",
    "analyze": "what the decisions of --workdir, a text run, go with: frequency, kind, loss, gradients of tokens",
    "sweep": "train every point of a list, or search with Optuna, --jobs at once; the same command goes on",
    "report": "RUN... [--by-folder] [--baseline=GROUP] [--into=FILE.md] [--html=FILE] ...: finished runs compared",
}
_TAKES = {
    "train": ("config", "workdir", "fresh", "verbose"),
    "eval": ("workdir", "split", "verbose"),
    "cost": ("config", "verbose"),
    "import": ("from", "to", "tau", "verbose"),
    "export": ("workdir", "to", "format", "platforms", "materialise", "rows", "verbose"),
    "convert": ("workdir", "to", "verbose"),
    "sweep": ("config", "workdir", "jobs", "dry"),
    "report": (),  # takes folders; cli/report.py reads its words
    "certify": ("workdir", "config", "out", "verbose"),
    "calibrate": ("workdir", "data", "share", "embeddings", "verbose"),
    "shrink": ("workdir", "to", "tile", "verbose"),
    "heatmap": ("workdir", "text", "to", "verbose"),
    "analyze": ("workdir", "split", "windows", "verbose"),
    "predict": ("workdir", "data", "to", "verbose"),
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
    "data": "text that calibrate looks at (default: the run's validation split), or CSV file that predict answers for",
    "share": "of the tokens that calibrate sends to attention; default: midway between the 33rd and 67th percentiles",
    "embeddings": "calibrate on token embeddings, one threshold for all layers, as the paper's code does",
    "text": "what heatmap shows; @FILE: what is in it",
    "from": "file that import reads: .pt (nothing in it is run) or .safetensors",
    "tile": "hidden features and channels stay in multiples of it in shrink (default 8; on a TPU 128)",
    "to": "folder of a run that import, shrink or convert makes, or file that export, heatmap or predict writes",
    "tau": "of import: the threshold, or one of each routed layer with commas, where the file does not say",
    "format": "of what export writes: safetensors, stablehlo or onnx",
    "platforms": "that an exported program is for (default cpu,cuda,tpu)",
    "materialise": "in an exported program, linear maps in a row are one: DCT filters, the compressor where it pays",
    "rows": "that an exported ONNX program takes at once (default 1)",
    "windows": "that analyze reads, from all over the split (default 64)",
    "split": "valid or test: what eval measures (default test) and analyze reads (default valid)",
    "jobs": "runs of a sweep at once (default 1); each has its share of the cores",
    "dry": "show what a sweep would run, and run nothing",
    "verbose": "-v: show what goes to log.txt otherwise",
}
# commands about a run, which need its folder
_FINISHED = ("eval", "generate", "predict", "calibrate", "shrink", "heatmap", "analyze", "convert")
_SWITCHES = ("fresh", "verbose", "dry", "embeddings", "materialise")
# what may differ from the run
_EVAL_KEYS = (
    "task.data_dir",
    "task.path",
    "task.cache_dir",
    "train.devices",
    "train.batch_size",
    "task.gpt2_dir",
    "net.route.meta",
)


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
    command, options, overrides = words(argv)
    split = options.get("split", "test")
    if split not in ("valid", "test"):
        raise UserError(f"--split is {split!r}", "choose valid or test")
    for name in ("workdir", "out"):
        if options.get(name) == "":
            raise UserError(
                f"--{name} is empty", "give a folder" if name == "workdir" else "give a file"
            )
    name = ""
    if command == "certify" and {"workdir", "config"} <= options.keys():
        raise UserError(
            "certify takes --workdir or --config, not both",
            "a run's configuration is in its workdir",
        )
    finished = command in _FINISHED or (command == "certify" and "config" not in options)
    if finished:
        if "workdir" not in options:
            also = ", or --config=FILE.py" if command == "certify" else ""
            raise UserError(
                f"{command} needs --workdir", f"give the folder of a run: --workdir=runs/NAME{also}"
            )
        further = command == "shrink"  # its run is trained further, as long as it is told to
        if wrong := [
            k for k in overrides if k not in _EVAL_KEYS and not (further and k.startswith("train."))
        ]:
            raise UserError(
                f"{command} cannot change {wrong[0]}",
                f"the run's config.json rules; only {_list(_EVAL_KEYS)} may",
            )
        cfg = settings.load(str(Path(options["workdir"]) / "config.json"), overrides)
    else:
        if "config" not in options:
            raise UserError("--config is missing", "try --config=configs/wikitext.py, or --help")
        cfg = settings.load(options["config"], overrides)
        name = settings.name_of(options["config"])
    workdir = options.get("workdir") or str(_default_workdir(options["config"], name, cfg.seed))
    on = {switch: switch in options for switch in ("fresh", "verbose")}
    out = Path(options["out"]) if "out" in options else None
    return Request(
        command,
        cfg,
        Path(workdir),
        name,
        split=split,
        out=out,
        finished=finished,
        options=options,
        **on,
    )


def help_text() -> str:
    """Usage, commands, options, and every configuration key with its type, default, allowed values and meaning."""
    lines = [
        "usage: python -m cerebra_jax.main [COMMAND] --config=FILE.py[:ARG] [--config.KEY=VALUE]...",
        "",
    ]
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
        lines.append(
            f"  {key:<27} {type(f.default).__name__:<5} {default:<13} {f.metadata['doc']}{_allowed(f)}"
        )
    lines += [
        "",
        "exit status: 0 done, 1 not certified or points failed, 2 your mistake, 70 a bug, 74 disk, "
        "75 stopped and saved, 77 diverged",
    ]
    return "\n".join(lines)


def _allowed(f: Any) -> str:
    of, lo, hi = f.metadata["of"], f.metadata["lo"], f.metadata["hi"]
    if of:
        return f" [{' | '.join(map(str, of))}]"
    if lo == -math.inf and hi == math.inf:
        return ""
    return f" [{lo:g} or more]" if hi == math.inf else f" [{lo:g} to {hi:g}]"


def words(argv: list[str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """(command, {option: value}, {configuration key: value as text}) of the command line, in order, last one wins."""
    keys = config.fields()
    command, options, overrides = "", {}, {}
    left = list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            if command or options or overrides:
                raise UserError(
                    f"unexpected argument {word!r}",
                    "options are written --name=value; --help lists them",
                )
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
                raise unknown_key(key, list(keys))
            is_bool = isinstance(keys[key].default, bool)
            if head == "noconfig" and (equals or not is_bool):
                raise UserError(f"cannot read {word}", f"write --config.{key}=VALUE")
            if not equals:
                value = (
                    str(head == "config") if is_bool else _next(left, word, f"--config.{key}=VALUE")
                )
            overrides[key] = value
        elif name in _SWITCHES:
            if equals:
                raise UserError(f"--{name} takes no value", f"write --{name}")
            options[name] = "true"
        elif name in _OPTIONS:
            options[name] = value if equals else _next(left, word, f"--{name}=VALUE")
        else:
            raise UserError(
                f"unknown option {word.split('=')[0]}", _nearest_option(name, list(keys))
            )
    command = command or "train"
    for name in options:
        if name not in _TAKES[command]:
            raise UserError(
                f"{command} takes no --{name}",
                f"it takes {_list('--' + o for o in _TAKES[command])}",
            )
    return command, options, overrides


def _next(left: list[str], word: str, usage: str) -> str:
    if not left or left[0].startswith("--"):
        raise UserError(f"{word} needs a value", f"write {usage}")
    return left.pop(0)


def unknown_key(key: str, keys: list[str]) -> UserError:
    """The error for a key that no configuration has."""
    inside = [k for k in keys if k.startswith(key + ".")]
    if inside:
        return UserError(
            f"{key} is a section, not a key", f"set one of its keys: --config.{inside[0]}=VALUE"
        )
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


def _default_workdir(spec: str, name: str, seed: int) -> Path:
    if Path(spec).name == "config.json":  # a run's own configuration resumes that run
        return Path(spec).parent
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-s{seed}"


def _list(words: Any) -> str:
    return ", ".join(words)
