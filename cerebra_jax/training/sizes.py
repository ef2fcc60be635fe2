"""The sizes of a run's program: the same parameters, with more or fewer slots for tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from cerebra_jax.config import RunCfg
from cerebra_jax.models import model as models
from cerebra_jax.models import stack
from cerebra_jax.models.controls import control
from cerebra_jax.models.shapes import layer_shapes
from cerebra_jax.policies import adaptive_capacity, budget, division
from cerebra_jax.policies.division import Division
from cerebra_jax.policies.schedule import Length


@dataclasses.dataclass(frozen=True, eq=False)
class Sizes:
    """The configurations of a run's programs, the dearest first, and their models.

    Most runs have one. Under a budget larger ones lead down to the one that the run ends in, by the
    `plan`. Under a λ the router's own wishes choose among several (`slots` per token of each). By
    demand the layers of each of them may have other slots, of the same cost in all: a `Division`,
    which is empty where the slots stand as configured.
    """

    cfg: RunCfg
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
        return self.cfg.task.seq_len

    def model(
        self, size: int, length: int = 0, quantized: bool = False, by_layer: Division = ()
    ) -> models.Model:
        """Returns the model of a size for examples of `length` tokens (0: L); built once.

        Its costs are relative to the dense Transformer at L.
        """
        return self._built(size, length or self.tokens, quantized, by_layer)

    @functools.cached_property
    def _built(self) -> Callable[[int, int, bool, Division], models.Model]:
        return functools.cache(self._build)

    def _build(self, size: int, length: int, quantized: bool, by_layer: Division) -> models.Model:
        cfg = self.configured(size, by_layer)
        cfg = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, seq_len=length))
        return models.build(cfg, self.vocab, self.tokens, quantized, self.platform)

    # slots by demand

    def configured(self, size: int, by_layer: Division) -> RunCfg:
        """Returns the configuration of a size whose slots are divided so."""
        if not by_layer:
            return self.cfgs[size]
        cfg, plan = with_division(self.cfg, by_layer), self.planned(size, by_layer)
        return models.at_rate(cfg, plan.rates[size]) if plan else cfg

    def planned(self, size: int, by_layer: Division) -> budget.Plan | None:
        """Returns the plan that a size follows whose slots are divided so; None without a budget.

        Its executed costs are those of `plan`, up to the rounding of whole slots.
        """
        return self._planned(size, by_layer) if self.plan and by_layer else self.plan

    @functools.cached_property
    def _planned(self) -> Callable[[int, Division], budget.Plan]:
        @functools.cache
        def make(size: int, by_layer: Division) -> budget.Plan:
            assert self.plan is not None, "called under a budget"
            cfg = with_division(self.cfg, by_layer)
            prices = budget.Prices(*models.pricing(cfg, self.vocab))
            target = cfg.objective.budget
            return budget.divided(self.plan, size, target, cfg.net, self.tokens, prices)

        return make

    def divide(self, size: int, now: Division, wanted: Sequence[float]) -> Division:
        """Returns the division of a size by what each layer wants; `now` where it would stay.

        Its program executes no more than the size with even slots does, or than the budget.
        """
        even, route = self.cfgs[size], self.cfgs[size].net.route
        prices = models.pricing_of(self.cfg, self.vocab)
        level = prices.relative(even.net)
        if self.plan and size == self.final:
            level = self.cfg.objective.budget

        def pays(by_layer: Division) -> bool:
            return prices.relative(with_division(even, by_layer).net) <= level

        return division.divided(wanted, now, 1.0 / (route.rate * route.capacity), pays)

    def layer_slots(self, size: int, by_layer: Division) -> tuple[int, ...]:
        """Returns how many tokens of L find a slot in each layer."""
        net = self.configured(size, by_layer).net
        routes = (shape.route for shape in layer_shapes(net))
        return tuple(stack.capacity_of(net, r, self.tokens, True).layout.K for r in routes)


def with_division(cfg: RunCfg, by_layer: Division) -> RunCfg:
    """Returns the configuration that begins with the slots that a run has found by demand."""
    if not by_layer:
        return cfg
    route = dataclasses.replace(cfg.net.route, by_layer=by_layer, by_demand=False)
    return dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))


def sizes(cfg: RunCfg, vocab: int, length: Length, platform: str = "") -> Sizes:
    """Returns the sizes of a configuration for a vocabulary of `vocab` tokens.

    Their programs are for `platform`, cpu, gpu or tpu; "": for the present one.
    """
    plan = plan_budget(cfg, vocab, length)
    if plan:
        rated = tuple(models.at_rate(cfg, rate) for rate in plan.rates)
        return Sizes(cfg, rated, vocab, plan, platform=platform)
    cfgs = adaptive_capacity.programs(cfg)
    if len(cfgs) == 1:
        return Sizes(cfg, (cfg,), vocab, platform=platform)
    return Sizes(cfg, tuple(cfgs), vocab, None, adaptive_capacity.slots(cfgs), platform)


def controlled(cfg: RunCfg, vocab: int, length: Length) -> RunCfg:
    """Returns what really runs: cfg, or the control that it names.

    A control runs at the rate that a budget ends with for the model it is compared with.
    """
    if cfg.twin and (plan := plan_budget(dataclasses.replace(cfg, twin=""), vocab, length)):
        cfg = models.at_rate(cfg, plan.rates[-1])
    return control(cfg, vocab)


def plan_budget(cfg: RunCfg, vocab: int, length: Length) -> budget.Plan | None:
    """Returns the plan of objective.budget, priced by the model's own costs; None without one."""
    if cfg.objective.budget == 0.0:
        return None
    prices = budget.Prices(*models.pricing(cfg, vocab))
    return budget.plan(cfg.objective, cfg.net, cfg.task.seq_len, prices, length)
