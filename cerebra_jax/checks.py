"""Values of a configuration that are each allowed but do not go together.

`together` is the one entry point: `config.parse` calls it, and it raises UserError for the first
rule that is broken. The rules stand with what they are about:

    here                           what concerns every run
    cerebra_jax.tasks.registry     what the task of the configuration demands
    cerebra_jax.models.rules       what its model demands

A rule is a plain `if` in a generator, which yields (what is wrong, how to put it right). This
module stands below tasks and models and therefore imports neither. It knows the two other homes by
name (`RULES`) and imports them when it is called, as a program loads its plug-ins. None of the
three imports JAX, so a mistyped configuration is refused in a fraction of a second.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cerebra_jax.errors import UserError

if TYPE_CHECKING:
    from cerebra_jax.config import RunCfg

Problem = tuple[str, str]  # what is wrong, and how to put it right
RULES = ("cerebra_jax.tasks.registry", "cerebra_jax.models.rules")  # modules with a `check(cfg)`

MOST_STEPS = (1 << 31) - 1  # steps are counted in 32 bits

ROUTED = ("chiar", "cerebra", "mod")
UNROUTED = ("window", "lstm", "ssm", "cnn", "fnet", "mlp")  # beside the dense Transformer


def together(cfg: RunCfg) -> None:
    """Raises UserError for the first rule that a configuration breaks.

    General rules come first, then those of its task, then those of its model.
    """
    for problem in check(cfg):
        raise UserError(*problem)
    for name in RULES:
        for problem in importlib.import_module(name).check(cfg):
            raise UserError(*problem)


def check(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what is wrong with a configuration, whatever its task and its model are."""
    net, train = cfg.net, cfg.train

    # sizes that divide each other
    if net.width % net.heads:
        what = f"net.width {net.width} is not divisible by net.heads {net.heads}"
        yield what, f"use net.heads={math.gcd(net.width, net.heads)}"
    elif net.width // net.heads % 2:
        yield f"head width {net.width // net.heads} is odd", "RoPE needs an even one"
    if train.batch_size % train.accum:
        what = f"train.batch_size {train.batch_size} is not divisible by train.accum {train.accum}"
        yield what, "change one of them"

    # what stands between the fields of a table
    delimiter = cfg.task.delimiter
    if delimiter not in ("", "tab", "\\t") and (len(delimiter) > 1 or delimiter in '"\r\n'):
        what = f"task.delimiter is {delimiter!r}"
        yield what, "give one sign, such as ';', or tab; leave it empty to have it found out"

    # options that need another option
    if cfg.task.tokenizer == "gpt2" and not cfg.task.gpt2_dir:
        what = "task.tokenizer is gpt2 but task.gpt2_dir is empty"
        yield what, "give the folder with vocab.json and merges.txt"
    if cfg.quant.stored and cfg.quant.bits != 8:
        yield "quant.stored is True without quant.bits", "use quant.bits=8"
    if net.pooler and not net.pool:
        yield "net.pooler is set without net.pool", "use net.pool=mean or max"

    # options that exclude each other
    if train.patience:
        late = {
            "prune": cfg.prune.on,
            "quant.bits": bool(cfg.quant.bits),
            "objective.budget": bool(cfg.objective.budget),
        }
        for name in (name for name, on in late.items() if on):
            hint = "its phases have to end: use train.patience=0"
            yield f"train.patience is set with {name}", hint
    if cfg.sampler.on and train.on_nonfinite == "rollback":
        hint = "the sampler would draw the same examples again: use train.on_nonfinite=skip"
        yield "train.on_nonfinite is rollback with a sampler", hint
    if cfg.prune.on and net.scan:
        yield "prune is set with net.scan", "layers end at different widths: net.scan=False"
    if cfg.task.buckets > 1 and cfg.objective.budget:
        what = f"task.buckets is {cfg.task.buckets} and objective.budget is set"
        yield what, "a budget is one program's: use one of them"


def to_steps(duration: str, total: int, per_epoch: int) -> int:
    """Returns the steps of a duration; raises UserError where it is none.

    It is written "0.1 frac" (of `total`), "3 epochs" (of `per_epoch` steps) or "500 steps".
    """
    units = {"step": 1, "steps": 1, "epoch": per_epoch, "epochs": per_epoch, "frac": total}
    try:
        number, unit = duration.split()
        steps = round(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        what = f"cannot read the duration {duration!r}"
        raise UserError(what, 'write "500 steps", "3 epochs" or "0.1 frac"') from None
    if steps < 0:
        raise UserError(f"the duration {duration!r} is negative", "use a positive one")
    if steps > MOST_STEPS:
        what = f"the duration {duration!r} is {steps:.3g} steps"
        raise UserError(what, f"a run has at most {MOST_STEPS:,}")
    return steps


def require(ok: bool, what: str, hint: str) -> None:
    """Raises UserError(what, hint) unless ok."""
    if not ok:
        raise UserError(what, hint)


def counts(values: str | tuple[int, ...]) -> tuple[int, ...]:
    """Returns the integers of a tuple or of text such as "3,0,2"; raises ValueError for others."""
    return tuple(int(value) for value in _entries(values))


def numbers(values: str | tuple[float, ...]) -> tuple[float, ...]:
    """Returns the numbers of a tuple or of text such as "0.5,1.5"; raises ValueError for others."""
    return tuple(float(value) for value in _entries(values))


def words(values: str | tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names in a tuple or in text such as "age, income"; empty ones are left out."""
    return tuple(word.strip() for word in _entries(values) if word.strip())


def _entries(values: str | tuple) -> tuple:
    if not isinstance(values, str):
        return tuple(values)
    return tuple(values.split(",")) if values else ()


def joined(values: str | Iterable[object]) -> str:
    """Returns a list as it is written on the command line: "3,0,2"."""
    if isinstance(values, str):
        return values
    return ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)
