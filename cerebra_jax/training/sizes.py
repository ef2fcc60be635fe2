"""The sizes of a run's program: the same parameters, with more or fewer slots for tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from cerebra_jax.config import RunCfg
from cerebra_jax.models import model as models
from cerebra_jax.policies import adaptive_capacity, budget
from cerebra_jax.policies.schedule import Length


@dataclasses.dataclass(frozen=True, eq=False)
class Sizes:
    """The configurations of a run's programs, the dearest first, and their models.

    Most runs have one. Under a budget larger ones lead down to the one that the run ends in, by the
    `plan`. Under a λ the router's own wishes choose among several (`slots` per token of each).
    """

    cfgs: tuple[RunCfg, ...]
    vocab: int
    plan: budget.Plan | None = None
    slots: tuple[float, ...] = ()
    platform: str = ""  # which the programs are for; "": the present one

    @property
    def final(self) -> int:
        """The size that a run ends in, where adaptive capacity does not choose."""
        return len(self.cfgs) - 1 if self.plan else 0

    @property
    def tokens(self) -> int:
        """L: the tokens of the longest example."""
        return self.cfgs[0].task.seq_len

    def model(self, size: int, length: int = 0, quantized: bool = False) -> models.Model:
        """Returns the model of a size for examples of `length` tokens (0: L); built once.

        Its costs are relative to the dense Transformer at L.
        """
        return self._built(size, length or self.tokens, quantized)

    @functools.cached_property
    def _built(self) -> Callable[[int, int, bool], models.Model]:
        return functools.cache(self._build)

    def _build(self, size: int, length: int, quantized: bool) -> models.Model:
        cfg = self.cfgs[size]
        cfg = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, seq_len=length))
        return models.build(cfg, self.vocab, self.tokens, quantized, self.platform)


def sizes(cfg: RunCfg, vocab: int, length: Length, platform: str = "") -> Sizes:
    """Returns the sizes of a configuration for a vocabulary of `vocab` tokens.

    Their programs are for `platform`, cpu, gpu or tpu; "": for the present one.
    """
    plan = plan_budget(cfg, vocab, length)
    if plan:
        rated = tuple(models.at_rate(cfg, rate) for rate in plan.rates)
        return Sizes(rated, vocab, plan, platform=platform)
    cfgs = adaptive_capacity.programs(cfg)
    if len(cfgs) == 1:
        return Sizes((cfg,), vocab, platform=platform)
    return Sizes(tuple(cfgs), vocab, None, adaptive_capacity.slots(cfgs), platform)


def plan_budget(cfg: RunCfg, vocab: int, length: Length) -> budget.Plan | None:
    """Returns the plan of objective.budget, priced by the model's own costs; None without one."""
    if cfg.objective.budget == 0.0:
        return None
    prices = budget.Prices(*models.pricing(cfg, vocab))
    return budget.plan(cfg.objective, cfg.net, cfg.task.seq_len, prices, length)
