"""What the runs of a sweep will take, in a process of its own: it imports JAX, which the sweep does not.

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
from cerebra_jax.errors import UserError


def prices(cfgs: list[config.RunCfg]) -> list[dict[str, Any]]:
    """For each {"executed": share of dense FLOPs, "steps", "flops"}: those of training, None where only the data tell
    (a duration in epochs); or {"error": (what, mend)} where no such model can be built."""
    text = json.dumps([config.to_dict(cfg) for cfg in cfgs])
    words = [sys.executable, "-m", "cerebra_jax.cli.sweep_price"]
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        raise RuntimeError(f"prices: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def price(cfg: config.RunCfg) -> dict[str, Any]:
    """The price of one run; under a budget every step at that of its own program."""
    from cerebra_jax.cost.prices import TRAIN_FACTOR
    from cerebra_jax.models import model as models
    from cerebra_jax.models.controls import control
    from cerebra_jax.tasks import registry as tasks
    from cerebra_jax.training.sizes import Length, plan_budget

    task, train = tasks.sketch(cfg), cfg.train
    cfg, vocab = tasks.fitted(cfg, task.shape), task.shape.vocab_size
    per_epoch = getattr(task, "steps_per_epoch", None)  # a sketch of a text has none
    known = per_epoch is not None or "epoch" not in train.duration
    steps = (
        config.to_steps(train.duration, 0, per_epoch(train.batch_size) if per_epoch else 1)
        if known
        else None
    )
    total = steps or 1000  # the last program of a budget does not depend on it
    plan = plan_budget(dataclasses.replace(cfg, twin=""), vocab, Length(total, total))
    if plan and cfg.twin:  # a twin of the model that the budget ends with
        cfg, plan = models.at_rate(cfg, plan.rates[-1]), None
    cfg = control(cfg, vocab)
    built = [
        models.build(c, vocab)
        for c in ([models.at_rate(cfg, r) for r in plan.rates] if plan else [cfg])
    ]
    flops, executed = None, built[-1].cost.executed_flops
    if steps is not None:
        each = [built[plan.bucket(at) if plan else 0].cost.executed_flops for at in range(steps)]
        if task.shape.lengths:  # its examples come in the order of the run
            of = {
                L: models.MODELS[cfg.net.name].cost(cfg.net, L, vocab).executed_flops
                for L in task.shape.lengths
            }
            each = [
                of[task.length(task.rows(cfg.seed, at, train.batch_size))] for at in range(steps)
            ]
            executed = sum(each) / max(1, steps)
        flops = (TRAIN_FACTOR + cfg.net.remat) * train.batch_size * sum(each)
    return {"executed": executed / built[-1].dense.executed_flops, "steps": steps, "flops": flops}


def main() -> None:
    """Reads configurations, writes their prices."""
    found = []
    for value in json.load(sys.stdin):
        try:
            found.append(price(config.parse(value)))
        except UserError as e:
            found.append({"error": (e.what, e.mend)})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
