"""AdamW with linear warm-up, cosine decay and clipping; weight decay on matrices only."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax
import optax

from cerebra_jax import trees
from cerebra_jax.config import TrainCfg
from cerebra_jax.errors import UserError
from cerebra_jax.policies.schedule import Length

# every parameter of every model, by name, exactly once
DECAY_RULES = [
    (r"(.*/)?(kernel|table)", "decay"),
    (r"(.*/)?(bias|scale|w|null|log_a)", "keep"),
]


def learning_rate(cfg: TrainCfg, length: Length) -> optax.Schedule:
    """Returns the schedule: linear over the warm-up, then a cosine.

    It rises to `lr`, and ends at `lr · lr_end` in the last step.

    The first step has `lr / warm-up`, not 0: a step that changes nothing costs as much as any
    other.
    """
    total = length.total
    warmup = min(length.steps(cfg.warmup), total - 1)
    from_zero = optax.warmup_cosine_decay_schedule(0.0, cfg.lr, warmup, total, cfg.lr * cfg.lr_end)

    def lr_at(step: Any) -> Any:
        return from_zero(step + 1)

    return lr_at


def make(cfg: TrainCfg, length: Length) -> optax.GradientTransformation:
    """Returns clipping by the global norm, then AdamW; what cfg.freeze names stays as it is.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def still(params: Any) -> Any:
        names = frozen(cfg.freeze, trees.named_leaves(params))
        return trees.map_named(lambda name: name in names, params)

    def decayed(params: Any) -> Any:
        labels = trees.label(params, DECAY_RULES)
        return jax.tree.map(lambda lab, held: lab == "decay" and not held, labels, still(params))

    first = [optax.masked(optax.set_to_zero(), still)] if cfg.freeze else []
    return optax.chain(
        *first,
        optax.clip_by_global_norm(cfg.clip),
        optax.scale_by_adam(cfg.b1, cfg.b2),
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate(cfg, length)),
    )


def frozen(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Returns the parameters that train.freeze names; `*` stands for any signs.

    UserError where a pattern names none, or nothing is left to train.
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        own = fnmatch.filter(names, pattern)
        if not own:
            some = ", ".join(names[:: max(1, len(names) // 5)])
            raise UserError(f"train.freeze: {pattern!r} names no parameter", f"some: {some}")
        found.update(own)
    if found and len(found) == len(names):
        raise UserError("train.freeze holds every parameter still", "freeze fewer")
    return found
