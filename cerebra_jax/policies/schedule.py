"""The schedule of a run: one pure function of the step that turns every knob. Arrays, so no phase change retraces."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from cerebra_jax.config import ObjectiveCfg, to_steps
from cerebra_jax.types import Knobs


def schedule(cfg: ObjectiveCfg, total: int, per_epoch: int) -> Callable[..., Knobs]:
    """knobs_at(step): λ is 0 while warm, then rises linearly to `lam`; the temperature falls geometrically on the ramp.

    Cerebra 3.6: warm (λ = 0), then a linear ramp to λ_T.
    """
    warm, ramp = to_steps(cfg.warm, total, per_epoch), max(1, to_steps(cfg.ramp, total, per_epoch))
    fall = cfg.temperature_end / cfg.temperature

    def knobs_at(step) -> Knobs:
        t = jnp.clip((jnp.asarray(step, jnp.float32) - warm) / ramp, 0.0, 1.0)
        return Knobs(lam=cfg.lam * t, temperature=cfg.temperature * fall**t, rate=jnp.float32(1))

    return knobs_at


def phase(cfg: ObjectiveCfg, step: int, total: int, per_epoch: int, pruning: tuple[int, ...] = (),
          eight: bool = False) -> str:  # fmt: skip
    """The name of the phase a step belongs to: warm, ramp or full (dense runs and λ = 0: plain); between the first and
    the last round of `pruning`, prune; after it, in `eight` bits, qat."""
    if pruning and pruning[0] <= step <= pruning[1]:
        return "prune"
    if eight:
        return "qat"
    if cfg.lam == cfg.budget == 0.0:
        return "plain"
    warm, ramp = to_steps(cfg.warm, total, per_epoch), to_steps(cfg.ramp, total, per_epoch)
    return "warm" if step < warm else "ramp" if step < warm + ramp else "full"
