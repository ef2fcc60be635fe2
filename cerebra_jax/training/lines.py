"""Lines of metrics.jsonl: the figures of a training step, or of the evaluation of a split."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cerebra_jax.errors import Diverged
from cerebra_jax.policies import schedule
from cerebra_jax.training import metrics
from cerebra_jax.training.experiment import Experiment, Serving
from cerebra_jax.training.objective import OWN
from cerebra_jax.training.programs import Programs

COSTS = ("expected", "hard", "executed")


class Measured(NamedTuple):
    """What was measured: sums over a step's batch or over a split, and what ran."""

    step: int  # optimizer steps done
    split: str
    sums: metrics.Sums
    examples: dict[int, int]  # tokens of an example -> how many there were
    serving: Serving


def line(e: Experiment, m: Measured) -> dict[str, Any]:
    """Returns a line of metrics.jsonl.

    It has where it stands, the task's figures, scalars by name, and per-layer "gates".

    Costs are named by what they count, such as `hard_rel_flops`. What the program executes is there
    in FLOPs too; both are means over the examples.
    """
    # means, the task's own apart: it alone knows what to make of them
    own = {name.removeprefix(OWN): pair for name, pair in m.sums.items() if name.startswith(OWN)}
    formed = metrics.form({name: x for name, x in m.sums.items() if not name.startswith(OWN)})
    loss = metrics.form({"loss": own["loss"]})["loss"]
    figures = {} if loss is None else e.task.report(m.split, own)

    # per-layer figures, and scalars, among which the costs are named by their unit
    gates = {name: value for name, value in formed.items() if isinstance(value, list)}
    if e.divides:
        gates["by_layer"] = list(m.serving.by_layer) or [1.0] * e.cfg.net.depth
    unit = e.model.unit.name
    named = {name: f"{name}_rel_{unit}" for name in COSTS}
    scalars = {named.get(name, name): x for name, x in formed.items() if name not in gates}
    scalars.pop("program_next", None)

    executed, executed_flops = _executed(e, m)
    costs = {"executed_rel_flops": executed_flops}
    if m.serving.remaining is not None:
        costs["kept_rel_flops"] = m.serving.remaining
    costs[named["executed"]] = executed
    plain = {name: metrics.plain(value) for name, value in figures.items()}
    return _head(e, m, loss) | plain | scalars | costs | {"gates": gates}


def _head(e: Experiment, m: Measured, loss: float | None) -> dict[str, Any]:
    """Returns where a line stands; what a run does not have, its lines do not have either."""
    phase = schedule.phase(
        e.cfg.objective, max(0, m.step - 1), e.length, e.rounds.plan.ends, m.serving.quantized
    )
    head = {"step": m.step, "split": m.split, "phase": phase, "loss": loss}
    if e.sizes.slots:
        head["program"] = m.serving.size
    if m.serving.quantized:
        head["bits"] = 8
    if m.split == "train" and e.task.shape.lengths:
        head["length"] = max(m.examples)
    return head


def _executed(e: Experiment, m: Measured) -> tuple[float, float]:
    """Returns what the programs executed, in the run's unit and in FLOPs.

    Both are relative to dense, and means over the examples.
    """
    total = sum(m.examples.values())
    cost = flops = 0.0
    for tokens, count in m.examples.items():
        model = e.sizes.model(m.serving.size, tokens, by_layer=m.serving.by_layer)
        cost += count / total * model.executed
        flops += count / total * model.cost.executed_flops
    return cost, flops / e.model.dense.executed_flops


class Evaluated(NamedTuple):
    """What is evaluated: a state on the devices, after `step` steps, by its program."""

    state: Any
    step: int
    serving: Serving


def evaluate(
    programs: Programs, what: Evaluated, split: str, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    """Returns the line of a whole split, every example once.

    None where a signal stopped it on the way.
    """
    e = programs.experiment
    total, previous = None, None
    examples: collections.Counter[int] = collections.Counter()
    for batch in e.task.eval_batches(split, e.micro):
        if stop():
            return None
        tokens = e.tokens(batch)
        examples[tokens] += int(batch["w_BxL"].any(1).sum())
        program = programs.serving(what.serving, tokens)
        sums = program.eval(what.state, programs.shard(batch))
        # read one batch late: the device never waits for Python
        if previous is not None:
            total = metrics.add(total, jax.device_get(previous))
        previous = sums
    total = metrics.add(total, jax.device_get(previous))
    found = line(e, Measured(what.step, split, total, examples, what.serving))
    loss = found["loss"]
    # one value far off is enough for a huge squared error
    if loss is None or (e.task.shape.outputs != 1 and loss > e.largest_loss):
        shown = "not finite" if loss is None else f"{loss:.3g}"
        raise Diverged(f"step {what.step}: the {split} loss is {shown}", e.cure)
    return found
