"""Parameters that come from outside become the checkpoint of a run, and those of a run go out by name."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from cerebra_jax.config import RunCfg, to_dict
from cerebra_jax.errors import UserError
from cerebra_jax.models import prunable as units
from cerebra_jax.models import quantization as int8
from cerebra_jax.models import quantized_names as names
from cerebra_jax.tasks import registry as tasks
from cerebra_jax.training import frozen
from cerebra_jax.training import results as result
from cerebra_jax.training.checkpoint import Checkpoints, fill, leaves
from cerebra_jax.training.experiment import Session

Named = dict[str, np.ndarray]
PARTS = ("params/", "routing/")  # what goes out and comes in; the optimizer begins anew


def save(cfg: RunCfg, workdir: Path, named: Named, step: int, score: float | None, say: Callable[[str], None],
         data: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Writes the checkpoint of a run that ended after `step` steps with these parameters, and thresholds if given, or
    anything else of its state.

    `score`: of its validation, `data`: what it was trained on, if known. UserError where an array is missing, unknown
    or of another shape.
    """
    # the sampler has a table of the examples, which only the text itself can count
    task = tasks.build(cfg, say) if cfg.sampler.on else tasks.sketch(cfg)
    table = named.get("params/embed/table")
    if (
        cfg.task.name == "text" and table is not None
    ):  # a small text gives a BPE fewer tokens than were asked for
        task.shape = task.shape._replace(vocab_size=len(table))
    s = Session(dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, devices=1)), task)
    state = s.fresh().replace(step=np.int32(step))
    own = leaves(state)
    for name in sorted({n for n in own if n.startswith(PARTS)} | set(named)):
        if name not in named and name.startswith("routing/"):
            continue
        here, given = (str(list(x[name].shape)) if name in x else "none" for x in (own, named))
        if here != given:
            raise UserError(
                f"{name} is {given} in the file, {here} in the model", "their configurations differ"
            )
    state = serialization.from_state_dict(
        state, fill(serialization.to_state_dict(state), own | named)
    )
    if score is None:  # as good as guessing: whatever is trained further is better
        score = math.log(task.shape.vocab_size)
    meta = {"step": step, "score": score, "wall_s": 0.0, "config": to_dict(cfg)}
    meta |= {
        "data": data or {"dataset": "not known here"},
        "environment": result.environment(s.parallel.devices),
    }
    checkpoints = Checkpoints(workdir / "checkpoints", say)
    try:
        checkpoints.preflight(s.like)
        checkpoints.save(step, state, meta, score)
        checkpoints.wait()
    finally:
        checkpoints.close()


def convert(
    cfg: RunCfg, workdir: Path, to: Path, say: Callable[[str], None]
) -> tuple[int, dict, dict]:
    """Writes the best checkpoint of a run with int8 weights into another folder; cfg: of the new run. -> (its step,
    bytes of the weights that are int8 now and of all parameters before, and the same after)."""
    step, named, meta = _best(workdir, say)
    params = {
        name.removeprefix("params/"): a for name, a in named.items() if name.startswith("params/")
    }
    rounded = int8.convert(traverse_util.unflatten_dict(params, sep="/"), cfg.net.dtype)
    after = {
        name: np.asarray(a) for name, a in traverse_util.flatten_dict(rounded, sep="/").items()
    }
    left = (
        "params/",
        "opt_state/",
        "sampler/",
        "prune/",
    )  # what only training needs goes; masks are in the weights
    state = {name: a for name, a in named.items() if not name.startswith(left)}
    state |= {f"params/{name}": a for name, a in after.items()}
    checkpoints = Checkpoints(to / "checkpoints", say)
    try:
        checkpoints.save(step, state, meta | {"config": to_dict(cfg)}, meta["score"])
        checkpoints.wait()
    finally:
        checkpoints.close()

    def sizes(tree: Named) -> dict[str, int]:
        linear = sum(
            a.nbytes for name, a in tree.items() if names.holds(re.sub("/(int8|scale)$", "", name))
        )
        return {"linear": linear, "all": sum(a.nbytes for a in tree.values())}

    return step, sizes(params), sizes(after)


def masked(named: Named) -> Named:
    """The arrays of a checkpoint with what is pruned at zero."""
    out = dict(named)
    for part in ("units", "elements"):
        for key, mask in named.items():
            name = key.removeprefix(f"prune/{part}/")
            if name != key:
                weights = out[f"params/{name}"]
                out[f"params/{name}"] = weights * units.spread(name, mask, weights)
    return out


def load(workdir: Path, say: Callable[[str], None]) -> tuple[int, Named, float]:
    """(step, parameters and thresholds by name, validation score) of the best checkpoint of a run, as `eval` has it."""
    step, named, meta = _best(workdir, say)
    return step, {name: a for name, a in named.items() if name.startswith(PARTS)}, meta["score"]


def _best(workdir: Path, say: Callable[[str], None]) -> tuple[int, Named, dict]:
    """(step, everything in it by name, what was saved beside it) of the best checkpoint, thresholds as readers take
    them."""
    checkpoints = Checkpoints(workdir / "checkpoints", say, read_only=True)
    try:
        found = checkpoints.named()
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"{workdir} has no intact validated checkpoint", "train it first")
    step, named, meta = found
    named = masked(named)
    routing = {
        name.removeprefix(PARTS[1]): a for name, a in named.items() if name.startswith(PARTS[1])
    }
    routing = frozen.applied(workdir, step, routing, say)
    return step, named | {PARTS[1] + name: a for name, a in routing.items()}, meta
