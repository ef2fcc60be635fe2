"""The savings certificate: what a model saves against dense, counted and timed on one device.

Six figures: the analytic price, the count of the program's jaxpr, XLA's own count of an unrolled
build, bytes, modelled time on the target (objective.device), and paired wall-clock of the forward
pass and of the training step here. The first two must agree as integers, and the counted programs
must be cheaper than dense, in FLOPs and in time. Time is the clock's where the target is the device
that JAX computes on here, and the modelled one where it is not. XLA's count is shown beside them
(cost/prices.py says why).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import ROUTED
from cerebra_jax.config import QuantCfg, RunCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import device, prices, timing, traffic, xla
from cerebra_jax.errors import UserError
from cerebra_jax.kernels.fused_call import lowering_for
from cerebra_jax.models.model import Model, neutral_knobs
from cerebra_jax.policies import thresholds
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import results
from cerebra_jax.training.experiment import Experiment, Serving, prepare, resolved
from cerebra_jax.training.programs import Programs
from cerebra_jax.training.state import TrainState
from cerebra_jax.types import Batch

ROUNDS = 9
BATCHES = 8  # of the validation split, on which expected and hard cost are measured
TRAINED = 3  # training batches that the timed steps take in turn


class Forward(NamedTuple):
    """What the forward pass gives: its loss, and the costs of each example."""

    loss: jax.Array
    expected_B: jax.Array
    hard_B: jax.Array


class Inputs(NamedTuple):
    """What both programs of a variant run on, placed on the device."""

    state: TrainState
    batches: list[Batch]
    key: jax.Array


class Target(NamedTuple):
    """The chip that a certificate is for."""

    chip: device.Device
    platform: str
    here: bool  # JAX computes on it now

    @classmethod
    def of(cls, cfg: RunCfg) -> Target:
        """Returns objective.device; without one, what JAX computes on here."""
        name = cfg.objective.device
        chip = device.given(name) if name else device.detect()
        return cls(chip, device.platform_of(name), device.is_present(name))

    def seconds(self, program: Any, dtype: str, *args: Any) -> float:
        """Returns the modelled time of a program, traced on shapes.

        On a GPU it is that of the kernels that the program becomes; elsewhere every counted
        operation is at the roofline.
        """
        if self.platform == "gpu":
            with lowering_for(self.platform):
                return traffic.estimate(jax.make_jaxpr(program)(*args), self.chip).seconds
        counted = jaxpr.operations(lambda _, *given: program(*given), {}, *args)
        return sum(
            device.roofline_seconds(
                one.op.flops + one.op.int8, one.op.bytes + one.op.weights, self.chip, dtype
            )
            for one in counted
        )


class Variant:
    """A model with its two programs compiled for one device.

    `row` holds its figures, `runs` what is timed: each takes a number of calls. Counted, and
    modelled, are the programs for the target.
    """

    def __init__(self, cfg: RunCfg, task: Task, state: TrainState | None):
        """Compiles and counts; `state` is a trained one, or None for a fresh one.

        The thresholds of a fresh one are set by a few validation batches.
        """
        # which model, in which precision
        self.experiment = e = prepare(_one_device(cfg), task)
        if state is not None:
            self.serving = e.serving(state)
        else:
            self.serving = e.first._replace(quantized=bool(cfg.quant.bits))
        self.model = e.model_of(self.serving)
        self.programs = Programs(e)
        self.target = Target.of(cfg)
        self.aimed = e  # the same for the target's platform
        if self.target.platform != device.present_platform():
            self.aimed = prepare(_one_device(cfg), task, self.target.platform)

        # what it runs on
        shard = self.programs.shard
        batches = [shard(task.train_batch(cfg.seed, i, e.micro)) for i in range(TRAINED)]
        held_out = itertools.islice(task.eval_batches("valid", e.micro), BATCHES)
        held_out = [shard(batch) for batch in held_out]
        placed = self.programs.place(e.fresh() if state is None else state)
        if state is None and placed.routing:
            placed = placed.replace(routing=_settle(self.model, placed, held_out))
        inputs = Inputs(placed, batches, e.key)

        # its programs, counted and ready to be timed
        forward = forward_pass(e, self.model)
        compiled = forward.lower(placed, batches[0]).compile()
        self.runs: dict[str, Callable[[int], None]] = {
            "forward": functools.partial(_run_forward, compiled, inputs)
        }
        costs = [_costs(compiled(placed, batch), batch) for batch in held_out]
        expected, hard = np.concatenate(costs, axis=1).mean(1).tolist()
        self.row = {"expected": expected, "hard": hard}
        self.row |= self._counted(forward, compiled, inputs)
        if not cfg.quant.stored:  # there is no training step of stored integers
            self._add_train(inputs)

    def _counted(self, forward: Any, compiled: Any, inputs: Inputs) -> dict[str, Any]:
        """Returns what the forward pass costs, by three counts.

        The training step's place is empty.
        """
        B = self.experiment.micro
        aimed = forward_pass(self.aimed, self.aimed.model_of(self.serving))
        args = (inputs.state, inputs.batches[0])
        count = jaxpr.count(aimed, *args)
        xla, note = _xla(self.experiment, self.serving, compiled)
        return {
            "executed_flops": self.model.cost.executed_flops,
            "counted_flops": count.flops / B,
            "counted_int8": count.int8 / B,
            "counted_train_flops": None,
            "counted_train_int8": None,
            "elementwise": count.elementwise / B,
            "xla_flops": xla and xla / B,
            "xla_note": note,
            "bytes": {"forward": count.bytes},
            "seconds": {"forward": self.target.seconds(aimed, self.model.net.dtype, *args)},
            "memory": {"forward": _memory(compiled)},
        }

    def _add_train(self, inputs: Inputs) -> None:
        """Enters the training step into the figures, and into what is timed.

        Accumulated micro-batches would be a loop around the step that is counted here.
        """
        B = self.experiment.micro
        train, _ = self.programs.serving(self.serving).programs
        aimed, _ = Programs(self.aimed).serving(self.serving).programs
        args = (inputs.state, inputs.batches[0], inputs.key)
        count = jaxpr.count(aimed, *args)
        self.row["seconds"]["train"] = self.target.seconds(aimed, self.model.net.dtype, *args)
        compiled = train.lower(*args).compile()
        self.row["counted_train_flops"] = count.flops / B
        self.row["counted_train_int8"] = count.int8 / B
        self.row["bytes"]["train"] = count.bytes
        self.row["memory"]["train"] = _memory(compiled)
        self.runs["train"] = _TrainRuns(compiled, inputs)


def _run_forward(compiled: Any, inputs: Inputs, n: int) -> None:
    """Runs the forward pass n times."""
    for i in range(n):
        found = compiled(inputs.state, inputs.batches[i % TRAINED])
    jax.block_until_ready(found)


class _TrainRuns:
    """Runs the training step n times.

    It owns a moving state: the step gives its state's memory away.
    """

    def __init__(self, compiled: Any, inputs: Inputs):
        self._compiled = compiled
        self._inputs = inputs
        self._state: TrainState | None = None

    def __call__(self, n: int) -> None:
        if self._state is None:  # a copy is made for whoever times it only
            self._state = jax.tree.map(jnp.copy, self._inputs.state)
        for i in range(n):
            batch = self._inputs.batches[i % TRAINED]
            self._state, _ = self._compiled(self._state, batch, self._inputs.key)
        jax.block_until_ready(self._state)


def _silent(line: str) -> None:
    """Logs nothing."""


def certify(
    cfg: RunCfg,
    task: Task,
    state: TrainState | None,
    say: Callable[[str], None] = _silent,
    rounds: int | None = None,
) -> dict[str, Any]:
    """Returns the certificate of a model, trained (`state`) or fresh.

    Where "problems" is not empty, it says why the model is not certified. `rounds`: of the timing,
    ROUNDS unless given. FLOPs are per example of L tokens, bytes per batch, times in seconds per
    batch. Beside the model stand its dense control and, where it has a random router, its random
    control.
    """
    # every variant, compiled and counted
    rounds = rounds or ROUNDS
    cfg = resolved(cfg, task)
    variants: dict[str, Variant] = {}
    for name, control in controls(cfg, task).items():
        say(f"compiling and counting {name}")
        variants[name] = Variant(control, task, state if name == "model" else None)
    rows = {name: variant.row for name, variant in variants.items()}
    for name, times in _timed(variants, rounds, say).items():
        rows[name]["time"] = times
    rows["model"]["masked_flops"] = _masked(cfg, task)

    # the certificate
    target = variants["model"].target
    problems = verdict(rows) + too_slow(rows, target)
    return {
        "certified": not problems,
        "problems": problems,
        "model": cfg.net.name,
        "trained_steps": None if state is None else int(state.step),
        "rounds": rounds,
        "target": {"device": target.chip.name, "platform": target.platform, "here": target.here},
        "rows": rows,
        "conventions": prices.CONVENTIONS,
        "config": config.to_dict(cfg),
        **_circumstances(variants["model"]),
    }


def _circumstances(own: Variant) -> dict[str, Any]:
    """Returns the shapes that a certificate is for, and what it was measured with."""
    return {
        "batch": own.experiment.micro,
        "tokens": own.experiment.sizes.tokens,
        "dense_model_flops": own.model.dense.model_flops,
        "machine": timing.machine(),
        "device": results.environment(own.programs.devices),
        "versions": results.versions(),
        "commit": results.commit(),
    }


def _timed(
    variants: dict[str, Variant], rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Returns {variant: {"forward": times, "train": times}}, measured in interleaved rounds."""
    times: dict[str, dict[str, Any]] = {name: {} for name in variants}
    for kind in variants["model"].runs:
        say(f"timing {kind}, {rounds} rounds")
        here = {name: timing.here(variant.runs[kind]) for name, variant in variants.items()}
        found = list(timing.rounds_of(here, rounds))
        cells = {name: [cell_of[name] for cell_of in found] for name in variants}
        for name, own in cells.items():
            q1, median, q3 = timing.quartiles([cell.wall for cell in own])
            ratio = timing.compare(own, cells["dense"])._asdict()
            times[name][kind] = {"median": median, "q1": q1, "q3": q3, "ratio": ratio}
    return times


def verdict(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Returns why a model is not certified, one line a reason; empty where it is."""
    # the price is the program
    problems = []
    for name, row in rows.items():
        counted = _operations(row, "counted")
        if counted != row["executed_flops"]:
            problems.append(
                f"{name}: the price of the forward pass is {row['executed_flops']:,} FLOPs, "
                f"its program has {counted:,.0f}"
            )

    # the programs are cheaper than those of dense
    model, dense = rows["model"], rows["dense"]
    kinds = {"counted": "forward pass"}
    if model["counted_train_flops"] is not None:
        kinds["counted_train"] = "training step"
    for key, what in kinds.items():
        ratio = _operations(model, key) / _operations(dense, key)
        if ratio >= 1.0:
            problems.append(
                f"the compiled {what} has {ratio:.4f} of the FLOPs of the dense one: "
                "it saves nothing"
            )

    # and than that without dispatch
    masked = model["masked_flops"]
    if masked is not None and _operations(model, "counted") >= masked:
        problems.append(
            "routing saves nothing: the program runs what it would run without dispatch"
        )
    return problems


def too_slow(rows: dict[str, dict[str, Any]], target: Target) -> list[str]:
    """Returns which programs take no less time than the dense ones, one line each."""
    model, dense = rows["model"], rows["dense"]
    problems = []
    for kind, seconds in model["seconds"].items():
        if target.here:
            ratio, source = model["time"][kind]["ratio"]["median"], "by the clock"
        else:
            ratio, source = seconds / dense["seconds"][kind], f"modelled for {target.chip.name}"
        if ratio >= 1.0:
            what = {"forward": "forward pass", "train": "training step"}[kind]
            problems.append(f"the {what} takes {ratio:.3f} of the time of the dense one, {source}")
    return problems


def _operations(row: dict[str, Any], key: str) -> float:
    """Returns FLOPs and int8 operations together: a product in 8 bits is not saved."""
    return row[f"{key}_flops"] + (row[f"{key}_int8"] if f"{key}_int8" in row else 0)


def controls(cfg: RunCfg, task: Task) -> dict[str, RunCfg]:
    """Returns {"model": cfg, "dense": its dense Transformer, "random": its random router}.

    Not every model has a random router.

    The controls are in float.
    """
    plain = dataclasses.replace(cfg, quant=QuantCfg())
    if cfg.net.name == "transformer":
        return {"model": cfg, "dense": plain}
    found = {"model": cfg, "dense": dataclasses.replace(plain, twin="dense")}
    if cfg.net.route.mode == "random":
        return found
    try:
        return found | {"random": resolved(dataclasses.replace(plain, twin="random"), task)}
    except UserError:  # this model has no random router
        return found


def _masked(cfg: RunCfg, task: Task) -> float | None:
    """Returns the counted FLOPs of the forward pass that runs both branches and masks.

    None for a model without routing. A routed model may be cheaper than dense for other reasons
    (CHIAR's first layer has no attention).
    """
    if cfg.net.name not in ROUTED:
        return None
    route = dataclasses.replace(cfg.net.route, dispatch=False)
    net = dataclasses.replace(cfg.net, route=route)
    plain = dataclasses.replace(cfg.objective, lam=0.0, budget=0.0)
    unrouted = _one_device(dataclasses.replace(cfg, objective=plain, net=net))
    e = prepare(unrouted, task, device.platform_of(cfg.objective.device))
    count = jaxpr.count(forward_pass(e, e.model), e.like, task.example(e.micro))
    return (count.flops + count.int8) / e.micro


def _one_device(cfg: RunCfg) -> RunCfg:
    """Returns the configuration on one device, with one micro-batch a step."""
    size = cfg.train.batch_size // cfg.train.accum
    train = dataclasses.replace(cfg.train, devices=1, accum=1, batch_size=size)
    return dataclasses.replace(cfg, train=train)


def forward_pass(e: Experiment, model: Model) -> Any:
    """Returns forward(state, batch) -> Forward, jitted: the forward pass with its loss alone."""

    def forward(state: TrainState, batch: Batch) -> Forward:
        variables = {"params": state.params, "routing": state.routing}
        out, aux = model.apply(variables, batch, neutral_knobs())
        loss, _ = e.task.loss(out, batch, model.net.loss_chunk)
        return Forward(loss, aux.expected_B, aux.hard_B)

    return jax.jit(forward)


def _costs(found: Forward, batch: Batch) -> np.ndarray:
    """Returns (2, N): expected and hard cost of the N examples of a batch that are not padding."""
    real = thresholds.real_rows(batch)
    return np.stack([np.asarray(x, np.float64)[real] for x in (found.expected_B, found.hard_B)])


def _settle(model: Model, state: TrainState, batches: list[Batch]) -> dict[str, jax.Array]:
    """Returns running thresholds as they stand after these batches.

    Those that nothing observes stay.
    """

    @jax.jit
    def seen(routing, batch):
        variables = {"params": state.params, "routing": routing}
        _, aux = model.apply(variables, batch, neutral_knobs())
        return aux.observed

    # a layer's scores depend on the decisions below it: one pass for each
    routing = state.routing
    layers = len(next(iter(routing.values())))
    for _ in range(layers):
        for i, batch in enumerate(batches):
            real = thresholds.real_rows(batch)
            found = {name: x[:, real].mean(1) for name, x in seen(routing, batch).items()}
            routing = thresholds.follow(routing, found, i, 1.0)
    return routing


def _xla(e: Experiment, serving: Serving, compiled: Any) -> tuple[float | None, str]:
    """Returns XLA's FLOPs of the forward pass, unrolled, and what it cannot see.

    None where it gives no figure.
    """
    tokens = e.micro * e.sizes.tokens
    net = dataclasses.replace(e.cfg.net, scan=False, remat="off", loss_chunk=tokens)
    plain = prepare(dataclasses.replace(e.cfg, net=net), e.task)
    forward = forward_pass(plain, plain.model_of(serving))
    batch = e.task.example(e.micro)
    loops = xla.loops(forward, plain.like, batch)
    note = f"{loops} loops, counted once each" if loops else ""
    try:
        if net != e.cfg.net:
            compiled = forward.lower(plain.like, batch).compile()
        return xla.compiled_flops(compiled), note
    except ValueError as error:
        return None, str(error)


def _memory(compiled: Any) -> dict[str, int] | None:
    """Returns the bytes of temporaries, and of everything that is alive during a call.

    None where the backend does not say.
    """
    m = compiled.memory_analysis()
    if m is None:
        return None
    whole = m.temp_size_in_bytes + m.argument_size_in_bytes
    whole += m.output_size_in_bytes - m.alias_size_in_bytes
    return {"temporary": m.temp_size_in_bytes, "whole": whole}
