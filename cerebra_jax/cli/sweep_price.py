"""Prices the runs of a sweep, in a process of its own: it imports JAX, which the sweep does not.

python -m cerebra_jax.cli.sweep_price < [[config, FLOPs or null], ...] > [price, ...]     (JSON)

A run that is given by its training FLOPs gets its number of steps here. Prices are those of a CPU
(or of objective.device), whatever machine asks: the same sweep has the same steps everywhere.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from cerebra_jax import config
from cerebra_jax.checks import MOST_STEPS, Problem
from cerebra_jax.display import say
from cerebra_jax.errors import UserError

_STEPS = 1000  # for which a budget is planned; which programs it has does not depend on them


def prices(asked: Sequence[tuple[config.RunCfg, float | None]]) -> list[dict[str, Any]]:
    """Returns for each (configuration, training FLOPs or None) what `price` does.

    {"error": (what, hint)} where no such model can be built, or has no such number of steps.
    """
    text = json.dumps([(config.to_dict(cfg), flops) for cfg, flops in asked])
    words = [sys.executable, "-m", "cerebra_jax.cli.sweep_price"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, input=text, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"prices: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def price(cfg: config.RunCfg, flops: float | None = None) -> dict[str, Any]:
    """Returns the price of one run; under a budget every step is at the price of its own program.

    With `flops` its steps are those whose training FLOPs are nearest to this number, in the place
    of train.duration; UserError where the run decides for itself what it executes.

    {"executed": share of the dense FLOPs, "step_flops": of the last training step, "duration":
    train.duration, "steps", "flops": of the whole training, "seconds": of it by a model, which
    "modelled" names}. "steps", "flops" and "seconds" are None for epochs of a text: how many steps
    they are is known once the text is prepared.
    """
    if flops is not None:
        for problem in _unforeseen(cfg):
            raise UserError(*problem)
    train = cfg.train
    run = _programs(cfg)
    steps = config.to_steps(train.duration, 0, run.per_epoch) or None
    duration = train.duration
    if flops is not None:
        steps = _nearest(run.spent, flops)
        duration = f"{steps} steps"
    last = run.models[-1]
    found = {
        "executed": last.cost.executed_flops / last.dense.executed_flops,
        "step_flops": run.costs[-1],
        "duration": duration,
        "steps": steps,
        "flops": None,
        "seconds": None,
        "modelled": run.modelled,
    }
    if steps is not None:
        found["flops"] = run.spent(steps)
        times = found["flops"] / run.costs[-1]  # of the last step
        found["seconds"] = times * run.step_seconds
        if run.task.shape.lengths:
            found["executed"] *= times / steps
    return found


class _Run(NamedTuple):
    """Holds the programs of a run with their prices, however long it is."""

    cfg: config.RunCfg  # as it really runs
    task: Any
    plan: Any  # of a budget, None without one
    models: list[Any]  # of each program
    costs: list[int]  # FLOPs of a training step of each program

    @property
    def per_epoch(self) -> int:
        """Returns the steps of an epoch, 0 for a text that is not prepared."""
        return self.task.steps_per_epoch(self.cfg.train.batch_size)

    def spent(self, steps: int) -> int:
        """Returns the FLOPs of the first `steps` steps of a run that ends there."""
        from cerebra_jax.policies.schedule import Length

        if self.task.shape.lengths:  # its examples come in the order of the run
            return self._spent_by_length(steps)
        if self.plan is None:
            return steps * self.costs[0]
        length = Length(steps, self.per_epoch or steps)
        counts = self.plan.over(self.cfg.objective, length).counts(steps)
        return sum(count * cost for count, cost in zip(counts, self.costs, strict=True))

    def _spent_by_length(self, steps: int) -> int:
        cfg, task, model = self.cfg, self.task, self.models[-1]
        batch = cfg.train.batch_size
        lengths = [task.length(task.rows(cfg.seed, at, batch)) for at in range(steps)]
        cost = {L: self._flops_at(L) for L in task.shape.lengths}
        full = model.cost.executed_flops
        return self.costs[-1] // full * sum(cost[length] for length in lengths)

    def _flops_at(self, length: int) -> int:
        from cerebra_jax.models.model import cost_of

        pricing = self.models[-1].pricing
        return cost_of(self.cfg.net, length, pricing.vocab, pricing.platform).executed_flops

    @property
    def modelled(self) -> str:
        """Returns what `step_seconds` are."""
        from cerebra_jax.cost import device, preview

        name = device.given(self.cfg.objective.device).name
        return f"{preview.EFFICIENCY:g} of the roofline of {name} (objective.device)"

    @property
    def step_seconds(self) -> float:
        """Returns the modelled time of a step of the last program, as so many forward passes."""
        from cerebra_jax.cost import preview, units

        objective = dataclasses.replace(self.cfg.objective, unit="seconds")
        model = self.models[-1]
        unit = units.unit(objective, self.cfg.net.dtype, self.cfg.train.batch_size)
        forward = dataclasses.replace(model.pricing, unit=unit).executed(model.net)
        return self.costs[-1] / model.cost.executed_flops * forward / preview.EFFICIENCY


def _programs(cfg: config.RunCfg) -> _Run:
    """Returns the programs of a configuration: one, or those of a budget on its way."""
    from cerebra_jax.kernels.remat import train_factor
    from cerebra_jax.models import model as models
    from cerebra_jax.policies.schedule import Length
    from cerebra_jax.tasks import registry as tasks
    from cerebra_jax.training import sizes

    task = tasks.sketch(cfg)
    cfg, vocab = tasks.fitted(cfg, task.shape), task.shape.vocab_size
    # which programs there are does not depend on the length
    length = Length(_STEPS, _STEPS)
    cfg = sizes.controlled(cfg, vocab, length)
    plan = sizes.plan_budget(cfg, vocab, length)
    programs = [models.at_rate(cfg, rate) for rate in plan.rates] if plan else [cfg]
    built = [models.build(program, vocab) for program in programs]
    examples = train_factor(cfg.net.remat, built[-1].pricing.platform) * cfg.train.batch_size
    costs = [examples * model.cost.executed_flops for model in built]
    return _Run(cfg, task, plan, built, costs)


def _unforeseen(cfg: config.RunCfg) -> Iterator[Problem]:
    """Yields what lets a run decide for itself how many FLOPs it executes."""
    from cerebra_jax.policies import adaptive_capacity

    what = "its steps are to follow from its FLOPs, but "
    if cfg.sampler.on:
        yield f"{what}the work of a sampler depends on the data", "give train.duration instead"
    if cfg.task.buckets > 1:
        yield f"{what}task.buckets lets batches differ", "use task.buckets=0, or train.duration"
    if cfg.train.patience:
        yield f"{what}train.patience may end it early", "use train.patience=0"
    if cfg.objective.budget and "epoch" in f"{cfg.objective.warm} {cfg.objective.ramp}":
        hint = "write them as shares of the run: 0.1 frac"
        yield f"{what}objective.warm or objective.ramp counts epochs", hint
    if cfg.net.route.by_demand:
        yield f"{what}net.route.by_demand moves its slots", "write net.route.by_layer"
    if len(adaptive_capacity.programs(cfg)) > 1:
        yield f"{what}its program follows what its router learns", "use objective.budget, or no lam"


def _nearest(spent: Callable[[int], int], flops: float) -> int:
    """Returns the number of steps that spend most nearly so many FLOPs, the smaller one of two.

    UserError where that is none, or more than a run has.
    """
    most = 1
    while spent(most) < flops and most < MOST_STEPS:
        most *= 2
    over = bisect.bisect_left(range(most), flops, key=spent)
    steps = over if spent(over) - flops < flops - spent(over - 1) else over - 1
    if not 0 < steps <= MOST_STEPS:
        what = f"{flops:g} training FLOPs are {'no step' if steps <= 0 else 'too many steps'}"
        raise UserError(what, f"a step takes {spent(1):,}: give some hundred times as many")
    return steps


def main() -> None:
    """Reads what is asked from stdin and writes the prices to stdout.

    Configurations that differ in their seed or learning rate alone are priced once.
    """
    known: dict[tuple[config.RunCfg, float | None], dict[str, Any]] = {}
    found = []
    for value, flops in json.load(sys.stdin):
        cfg = config.parse(value)
        train = dataclasses.replace(cfg.train, lr=1.0)
        seed = cfg.seed if cfg.task.buckets > 1 else 0  # of the order of batches
        key = dataclasses.replace(cfg, seed=seed, train=train), flops
        if key not in known:
            known[key] = _price_or_error(cfg, flops)
        found.append(known[key])
    say(json.dumps(found))


def _price_or_error(cfg: config.RunCfg, flops: float | None) -> dict[str, Any]:
    try:
        return price(cfg, flops)
    except UserError as e:
        return {"error": (e.what, e.hint)}


if __name__ == "__main__":
    main()
