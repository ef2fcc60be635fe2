"""Prices the runs of a sweep, in a process of its own: it imports JAX, which the sweep does not.

python -m cerebra_jax.cli.sweep_price < [config, ...] > [price, ...]     (JSON)
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from cerebra_jax import config
from cerebra_jax.display import say
from cerebra_jax.errors import UserError

_STEPS = 1000  # of a run whose data must tell: the last program of a budget does not depend on it


def prices(cfgs: list[config.RunCfg]) -> list[dict[str, Any]]:
    """Returns for each configuration what `price` does, or {"error": (what, hint)} where no such
    model can be built.
    """
    text = json.dumps([config.to_dict(cfg) for cfg in cfgs])
    words = [sys.executable, "-m", "cerebra_jax.cli.sweep_price"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, input=text, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"prices: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def price(cfg: config.RunCfg) -> dict[str, Any]:
    """Returns the price of one run; under a budget every step is at the price of its own program.

    {"executed": share of the dense FLOPs, "step_flops": of the last training step, "duration":
    train.duration, "steps", "flops": of the whole training}. The last two are None for epochs of a
    text: how many steps they are is known once the text is prepared.
    """
    from cerebra_jax.cost.device import present_platform
    from cerebra_jax.kernels.remat import train_factor
    from cerebra_jax.models import model as models
    from cerebra_jax.models.controls import control
    from cerebra_jax.tasks import registry as tasks
    from cerebra_jax.training.sizes import Length, plan_budget

    # how long it trains; an epoch of a text that is not prepared has 0 steps
    task, train = tasks.sketch(cfg), cfg.train
    cfg, vocab = tasks.fitted(cfg, task.shape), task.shape.vocab_size
    steps = config.to_steps(train.duration, 0, task.steps_per_epoch(train.batch_size)) or None
    total = steps or _STEPS

    # its programs: one, or those of a budget on its way
    plan = plan_budget(dataclasses.replace(cfg, twin=""), vocab, Length(total, total))
    if plan and cfg.twin:  # a twin of the model that the budget ends with
        cfg, plan = models.at_rate(cfg, plan.rates[-1]), None
    cfg = control(cfg, vocab)
    programs = [models.at_rate(cfg, rate) for rate in plan.rates] if plan else [cfg]
    built = [models.build(program, vocab) for program in programs]
    executed = built[-1].cost.executed_flops
    passes = train_factor(cfg.net.remat, present_platform())
    found = {
        "duration": train.duration,
        "step_flops": passes * train.batch_size * executed,
        "steps": steps,
        "flops": None,
    }

    # all of its steps
    if steps is not None:
        each = [built[plan.bucket(at) if plan else 0].cost.executed_flops for at in range(steps)]
        if task.shape.lengths:  # its examples come in the order of the run
            each = _by_length(cfg, task, vocab, steps)
            executed = sum(each) / max(1, steps)
        found["flops"] = passes * train.batch_size * sum(each)
    return found | {"executed": executed / built[-1].dense.executed_flops}


def _by_length(cfg: config.RunCfg, task: Any, vocab: int, steps: int) -> list[int]:
    """Returns the FLOPs of an example at each step, where batches are of similar length."""
    from cerebra_jax.cost.device import platform_of
    from cerebra_jax.models.model import cost_of

    batch, platform = cfg.train.batch_size, platform_of(cfg.objective.device)
    flops = {L: cost_of(cfg.net, L, vocab, platform).executed_flops for L in task.shape.lengths}
    return [flops[task.length(task.rows(cfg.seed, at, batch))] for at in range(steps)]


def main() -> None:
    """Reads configurations from stdin and writes their prices to stdout."""
    found = []
    for value in json.load(sys.stdin):
        try:
            found.append(price(config.parse(value)))
        except UserError as e:
            found.append({"error": (e.what, e.hint)})
    say(json.dumps(found))


if __name__ == "__main__":
    main()
