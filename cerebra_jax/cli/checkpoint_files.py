"""Makes a configuration and named parameters of a file of tensors, and the other way.

Imports no JAX.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.cli import settings
from cerebra_jax.cli.tensor_files import Found
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.models import published_chiar as chiar

# The authors' checkpoints hold what was set by hand (vars of their Config), not their Config's
# defaults, which are these, in their evaluation.
PUBLISHED = {"tau": (0.8935 + 0.8973) / 2, "seq_len": 256, "batch_size": 16}
GPT2 = 50_257  # tokens
SCHEMES = ("chiar", "cerebra_jax")  # whose names a file of ours uses
_FIGURES = {"step": int, "score": float, "val_ppl": float}


# the values of net.route by which the authors' code gives the same logits
_THEIRS = {
    "meta": ("batch", "off"),
    "kv": ("all",),
    "dispatch": (False,),
    "score": ("spectral",),
}


class Model(NamedTuple):
    """Holds a model from outside: {"params/embed/table": array, "routing/tau": ...}, and how its
    run is configured.
    """

    cfg: RunCfg
    named: dict[str, np.ndarray]
    step: int
    score: float | None  # of its validation, less is better
    notes: list[str]


def model(found: Found, overrides: Mapping[str, str], tau: tuple[float, ...]) -> Model:
    """Returns the model of a file; UserError says what it lacks."""
    step, score, ppl = (_number(found.about, key, kind) for key, kind in _FIGURES.items())
    require(0 <= step < 1 << 31, f"the file is of step {step}", "it should be a number of steps")
    score = math.log(ppl) if score is None and ppl and ppl > 0 else score
    own = "config" in found.about
    base, assumed = (_own(found.about), {}) if own else _published(found)
    notes = [line for key, line in assumed.items() if key not in overrides]
    # it is trained already: `train` on the folder only measures it
    base["train"]["duration"] = f"{max(1, step)} steps"
    base["sampler"] = dataclasses.asdict(config.SamplerCfg())  # its table is not in the file
    if not own and "task.tokenizer" not in overrides and base["task"]["vocab_size"] != GPT2:
        what = f"nothing says which tokenizer has {base['task']['vocab_size']:,} tokens"
        raise UserError(what, "give --config.task.tokenizer=..., and its files")
    heads = base["net"]["heads"]
    what = "nothing says how many attention heads there are"
    require(heads or "net.heads" in overrides, what, "give --config.net.heads=...")
    base["net"]["heads"] = heads or 1
    cfg = settings.changed(base, overrides)
    require(
        heads in (0, cfg.net.heads),
        f"net.heads is {cfg.net.heads}, the file says {heads}",
        "leave it out",
    )
    if own and found.about["names"] == "cerebra_jax":
        return Model(cfg, found.tensors, step, score, notes)
    tensors, unused = chiar.cleaned(found.tensors)
    named = {f"params/{name}": a for name, a in chiar.ours(tensors, cfg.net).items()}
    R = cfg.net.depth - 2
    if not tau:
        tau, note = _tau(found.about)
        notes.append(note)
    require(
        len(tau) in (1, R),
        f"there are {len(tau)} thresholds for {R} routed layers",
        "give one, or one of each",
    )
    named["routing/tau"] = np.broadcast_to(np.asarray(tau, np.float32), R).copy()
    return Model(cfg, named, step, score, unused + notes)


def plain(
    cfg: RunCfg, named: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str], str]:
    """Returns (tensors, text of the file, a line for a person) of the parameters and thresholds of
    a run.
    """
    about = {"cerebra_jax": cerebra_jax.__version__, "config": json.dumps(config.to_dict(cfg))}
    params = {
        name.removeprefix("params/"): a for name, a in named.items() if name.startswith("params/")
    }
    if not chiar.fits(params, cfg.net):
        return named, about | {"names": "cerebra_jax"}, "names as in the checkpoint"
    tau = json.dumps([float(t) for t in named["routing/tau"]])
    line = (
        "names as in CHIAR's published code (its RoPE tables are computed: "
        "load_state_dict(..., strict=False))"
    )
    route = cfg.net.route
    others = [] if cfg.net.compat else ["net.compat=False"]
    for key, theirs in _THEIRS.items():
        value = getattr(route, key)
        if value not in theirs:
            others.append(f"net.route.{key}={value}")
    line += f"; that code gives other logits than {', '.join(others)}" if others else ""
    return chiar.theirs(params, cfg.net), about | {"names": "chiar", "tau": tau}, line


def _own(about: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration in a file that `export` wrote."""
    try:
        base, names = json.loads(about["config"]), about["names"]
        cfg = config.parse_data(base, "the file")
        if names not in SCHEMES:
            raise KeyError(names)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError("the file's text is not what export writes", "export it again") from None
    return config.to_dict(cfg)


def _published(found: Found) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the configuration of a checkpoint of the authors, and a line on each key that is not
    from the file.
    """
    about = found.about.get("cfg", {})
    about = about if isinstance(about, dict) else {}
    mode, rope = about.get("routing_mode", "threshold"), about.get("rope_base", chiar.ROPE_BASE)
    require(
        mode == "threshold",
        f"the checkpoint routes by {mode}",
        "only routing by a threshold can be imported",
    )
    require(
        rope == chiar.ROPE_BASE,
        f"its RoPE has the base {rope}",
        f"only {chiar.ROPE_BASE:g} can be imported",
    )
    shape = chiar.shape(found.tensors)
    base = config.to_dict(RunCfg())
    notes: dict[str, str] = {}
    seq_len = _number(about, "max_seq_len", int) or shape["seq_len"]
    if not seq_len:
        seq_len = PUBLISHED["seq_len"]
        notes["task.seq_len"] = (
            f"task.seq_len={seq_len}: the file names none, this is the authors' default"
        )
    base["task"] |= {"vocab_size": shape["vocab"], "seq_len": seq_len}
    if shape["vocab"] == GPT2:
        base["task"]["tokenizer"] = "gpt2"
    base["net"] |= {"name": "chiar", "compat": True}
    base["net"] |= {key: shape[key] for key in ("depth", "width", "ffn_width")}
    base["net"]["heads"] = shape["heads"] or _number(about, "n_heads", int)
    meta = "batch" if shape["meta"] else "off"
    base["net"]["route"] |= {"meta": meta, "tau": "calibrated", "dispatch": False}
    notes["net.route.dispatch"] = (
        "every token runs both operators, as in the authors' code, and no slots overflow: import "
        "it with --config.net.route.dispatch=True --config.net.route.rate=... to save what is "
        "routed away"
    )
    base["train"]["batch_size"] = PUBLISHED["batch_size"]
    if shape["meta"]:
        notes["net.route.meta"] = (
            "not causal: its MetaRouter averages the batch, later tokens too; eval and generate "
            "take --config.net.route.meta=prefix"
        )
    return base, notes


def _tau(about: dict[str, Any]) -> tuple[tuple[float, ...], str]:
    """Returns (thresholds, where they are from)."""
    if "config" in about:  # a file of ours
        try:
            return tuple(float(t) for t in json.loads(about["tau"])), "thresholds as exported"
        except (KeyError, TypeError, ValueError):
            raise UserError(
                "the thresholds in the file's text are not what export writes", "give --tau=..."
            ) from None
    cfg = about.get("cfg", {})
    if isinstance(cfg, dict) and {"tau_low", "tau_high"} <= cfg.keys():
        tau = (_number(cfg, "tau_low", float) + _number(cfg, "tau_high", float)) / 2
        return (tau,), f"threshold {tau:g}, the middle of the checkpoint's tau_low and tau_high"
    tau = PUBLISHED["tau"]
    note = "the file names none, this is the authors' default; --tau=... is another"
    return (tau,), f"threshold {tau:g}: {note}"


def _number(about: Mapping[str, Any], key: str, kind: type) -> Any:
    """Returns a number of the file; 0 for an int, None for a float where there is none."""
    value = about.get(key, None)
    if value is None:
        return 0 if kind is int else None
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = math.nan
    require(math.isfinite(number), f"{key} of the file is {value!r}", "it should be a number")
    return number
