"""The savings certificate: what a model really saves against its dense twin, counted and timed on one device.

Five independent figures: the analytic price, the count of the program's jaxpr, XLA's own count of an unrolled build,
bytes, and paired wall-clock of the forward pass and of the training step. The first two must agree as integers, and the
counted programs must be cheaper than dense; XLA's count and the clock are shown beside them (cost/prices.py says why).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import ROUTED
from cerebra_jax.config import QuantCfg, RunCfg
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import prices, timing
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.policies import thresholds
from cerebra_jax.training import results as result
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.experiment import Session, resolved
from cerebra_jax.training.state import TrainState

ROUNDS = 9
BATCHES = 8  # of the validation split, on which expected and hard cost are measured


class Variant:
    """A model with its two programs compiled for one device; `row` holds its figures, `runs` what is timed."""

    def __init__(self, cfg: RunCfg, task: Any, state: TrainState | None):
        """`state`: a trained one; None for a fresh one, whose thresholds are set by a few validation batches."""
        s = self.s = Session(_one_device(cfg), task)
        if state is not None:
            s.adopt_of(state)
        elif cfg.quant.bits:
            s.adopt(s.adopted, True)
        train, forward = s.parallel.programs[0], _forward(s)
        self._batches = [s.parallel.shard(task.train_batch(cfg.seed, i, s.micro)) for i in range(3)]
        held_out = [
            s.parallel.shard(b)
            for b in itertools.islice(task.eval_batches("valid", s.micro), BATCHES)
        ]
        fresh = state is None
        self._state = s.parallel.place(s.fresh() if fresh else state)
        if fresh and self._state.routing:
            self._state = self._state.replace(routing=_settle(s.model, self._state, held_out))
        self._forward = forward.lower(self._state, self._batches[0]).compile()
        self.runs = {"forward": self._run_forward}
        if not cfg.quant.stored:  # there is no training step of stored integers
            # accumulated micro-batches are a loop around the step that is timed here
            self._train = train.lower(self._state, self._batches[0], s.key).compile()
            self.runs["train"] = self._run_train
        self.row = self._figures(train, forward, held_out)

    def _figures(self, train: Any, forward: Any, held_out: list) -> dict[str, Any]:
        s, B = self.s, self.s.micro
        batch = self._batches[0]
        costs_2xN = np.concatenate(
            [_costs(self._forward(self._state, b), b) for b in held_out], axis=1
        )
        expected, hard = costs_2xN.mean(1).tolist()
        count = jaxpr.count(forward, self._state, batch)
        step = jaxpr.count(train, self._state, batch, s.key) if "train" in self.runs else None
        xla, note = _xla(s, self._forward)
        return {
            "expected": expected,
            "hard": hard,
            "executed_flops": s.model.cost.executed_flops,
            "counted_flops": count.flops / B,
            "counted_int8": count.int8 / B,
            "counted_train_flops": step and step.flops / B,
            "counted_train_int8": step and step.int8 / B,
            "elementwise": count.elementwise / B,
            "xla_flops": xla and xla / B,
            "xla_note": note,
            "bytes": {"forward": count.bytes} | ({"train": step.bytes} if step else {}),
            "memory": {"forward": _memory(self._forward)}
            | ({"train": _memory(self._train)} if step else {}),
        }

    def _run_forward(self, n: int) -> None:
        for i in range(n):
            out = self._forward(self._state, self._batches[i % 3])
        jax.block_until_ready(out)

    def _run_train(self, n: int) -> None:
        if not hasattr(self, "_moving"):  # the step gives its state's memory away
            self._moving = jax.tree.map(jnp.copy, self._state)
        for i in range(n):
            self._moving, _ = self._train(self._moving, self._batches[i % 3], self.s.key)
        jax.block_until_ready(self._moving)


def certify(cfg: RunCfg, task: Any, state: TrainState | None, say: Callable[[str], None] = lambda line: None,
            rounds: int | None = None) -> dict[str, Any]:  # fmt: skip
    """The certificate of a model, trained (`state`) or fresh; "problems" says why it is not certified, if so.

    FLOPs and bytes are per example of L tokens where they are FLOPs, per batch where they are bytes; times are seconds
    per batch. Beside the model stand its dense twin and, where it has a random router, its random twin.
    """
    cfg, rounds = resolved(cfg, task), rounds or ROUNDS
    variants: dict[str, Variant] = {}
    for name, twin in twins(cfg, task).items():
        say(f"compiling and counting {name}")
        variants[name] = Variant(twin, task, state if name == "model" else None)
    rows = {name: v.row for name, v in variants.items()}
    for kind in variants["model"].runs:
        say(f"timing {kind}, {rounds} rounds")
        cells: dict[str, list[timing.Cell]] = {name: [] for name in variants}
        for found in timing.rounds_of(
            {name: timing.here(v.runs[kind]) for name, v in variants.items()}, rounds
        ):
            for name, cell in found.items():
                cells[name].append(cell)
        for name, cs in cells.items():
            q1, median, q3 = timing.quartiles([c.wall for c in cs])
            ratio = timing.compare(cs, cells["dense"])._asdict()
            rows[name].setdefault("time", {})[kind] = {
                "median": median,
                "q1": q1,
                "q3": q3,
                "ratio": ratio,
            }
    s = variants["model"].s
    rows["model"]["masked_flops"] = _masked(cfg, task)
    problems = verdict(rows)
    return {
        "certified": not problems,
        "problems": problems,
        "model": cfg.net.name,
        "trained_steps": None if state is None else int(state.step),
        "batch": s.micro,
        "tokens": s.cfg.task.seq_len,
        "rounds": rounds,
        "dense_model_flops": s.model.dense.model_flops,
        "rows": rows,
        "conventions": prices.CONVENTIONS,
        "config": config.to_dict(cfg),
        "machine": timing.machine(),
        "device": result.environment(s.parallel.devices),
        "versions": result.versions(),
        "commit": result.commit(),
    }


def verdict(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Why a model is not certified, one line a reason; empty where it is."""
    problems = []
    for name, row in rows.items():
        counted = _operations(row, "counted")
        if counted != row["executed_flops"]:
            problems.append(f"{name}: the price of the forward pass is {row['executed_flops']:,} FLOPs, "
                            f"its program has {counted:,.0f}")  # fmt: skip
    kinds = [("counted", "forward pass"), ("counted_train", "training step")]
    for key, what in kinds[: 1 if rows["model"]["counted_train_flops"] is None else 2]:
        share = _operations(rows["model"], key) / _operations(rows["dense"], key)
        if share >= 1.0:
            problems.append(
                f"the compiled {what} has {share:.4f} of the FLOPs of the dense one: it saves nothing"
            )
    masked = rows["model"]["masked_flops"]
    if masked is not None and _operations(rows["model"], "counted") >= masked:
        problems.append(
            "routing saves nothing: the program runs what it would run without dispatch"
        )
    return problems


def _operations(row: dict[str, Any], key: str) -> float:
    """FLOPs and int8 operations together: what 8 bits do to a product is no saving of it."""
    return row[f"{key}_flops"] + row.get(f"{key}_int8", 0)


def twins(cfg: RunCfg, task: Any) -> dict[str, RunCfg]:
    """{"model": cfg, "dense": its dense Transformer, "random": its random router, where it has one}, these in float."""
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


def _masked(cfg: RunCfg, task: Any) -> float | None:
    """Counted FLOPs of the forward pass that runs both branches and masks, None for a model without routing.

    A routed model may be cheaper than dense for other reasons (CHIAR's first layer has no attention)."""
    if cfg.net.name not in ROUTED:
        return None
    route = dataclasses.replace(cfg.net.route, dispatch=False)
    plain = dataclasses.replace(cfg.objective, lam=0.0, budget=0.0)
    masked = dataclasses.replace(
        cfg, objective=plain, net=dataclasses.replace(cfg.net, route=route)
    )
    s = Session(_one_device(masked), task)
    count = jaxpr.count(_forward(s), s.like, task.example(s.micro))
    return (count.flops + count.int8) / s.micro


def trained(
    cfg: RunCfg, task: Any, workdir: Path, say: Callable[[str], None], as_trained=False
) -> TrainState:
    """The best checkpoint of a run (`Checkpoints.best`); UserError where there is none."""
    return scored(cfg, task, workdir, say, as_trained)[0]


def scored(cfg: RunCfg, task: Any, workdir: Path, say: Callable[[str], None],
           as_trained: bool = False) -> tuple[TrainState, float]:  # fmt: skip
    """`trained`, and its validation score; less is better."""
    s = Session(_one_device(cfg), task)
    checkpoints = Checkpoints(workdir / "checkpoints", say, read_only=True)
    try:
        best = checkpoints.best(s.like, as_trained)
    finally:
        checkpoints.close()
    if best is None:
        raise UserError(
            f"{workdir} has no intact validated checkpoint",
            "train it first, or certify its --config",
        )
    result.same_data(best[2]["data"], task)
    return best[1], best[2]["score"]


def _one_device(cfg: RunCfg) -> RunCfg:
    """The configuration on one device, one micro-batch a step: what is compiled, counted and timed."""
    size = cfg.train.batch_size // cfg.train.accum
    return dataclasses.replace(
        cfg, train=dataclasses.replace(cfg.train, devices=1, accum=1, batch_size=size)
    )


def _forward(s: Session) -> Any:
    """forward(state, batch) -> (loss, expected_B, hard_B): the forward pass with its loss and nothing else, jitted."""

    def forward(state, batch):
        variables = {"params": state.params, "routing": state.routing}
        out, aux = s.model.apply(variables, batch, models.neutral_knobs())
        return s.task.loss(out, batch, s.model.net.loss_chunk)[0], aux.expected_B, aux.hard_B

    return jax.jit(forward)


def _costs(found: Any, batch: Any) -> np.ndarray:
    """(2, N): expected and hard cost of the N examples of a batch that are not padding."""
    real = np.asarray(batch["w_BxL"]).any(axis=1)
    return np.stack([np.asarray(x, np.float64)[real] for x in found[1:]])


def _settle(model: Any, state: TrainState, batches: list) -> dict[str, jax.Array]:
    """Running thresholds as they stand after these batches; those that nothing observes stay."""

    @jax.jit
    def seen(routing, batch):
        aux = model.apply(
            {"params": state.params, "routing": routing}, batch, models.neutral_knobs()
        )[1]
        return {name: value.mean(1) for name, value in aux.observed.items()}

    routing = state.routing
    for _ in range(
        len(next(iter(routing.values())))
    ):  # a layer's scores depend on the decisions below it
        for i, batch in enumerate(batches):
            observed = seen(routing, batch)
            routing = thresholds.follow(routing, observed, i, 1.0) if observed else routing
    return routing


def _xla(s: Session, compiled: Any) -> tuple[float | None, str]:
    """(XLA's FLOPs of the forward pass, unrolled; what it cannot see), None where it gives no figure."""
    net = dataclasses.replace(
        s.cfg.net, scan=False, remat=False, loss_chunk=s.micro * s.cfg.task.seq_len
    )
    plain = Session(dataclasses.replace(s.cfg, net=net), s.task)
    plain.adopt(s.adopted, s.in_eight)
    forward, batch = _forward(plain), s.task.example(s.micro)
    remaining = jaxpr.loops(forward, plain.like, batch)
    note = f"{remaining} loops, counted once each" if remaining else ""
    try:
        if net != s.cfg.net:
            compiled = forward.lower(plain.like, batch).compile()
        return jaxpr.compiled_flops(compiled), note
    except ValueError as e:
        return None, str(e)


def _memory(compiled: Any) -> dict[str, int] | None:
    """Bytes of temporaries, and of everything that is alive during a call; None where the backend does not say."""
    m = compiled.memory_analysis()
    if m is None:
        return None
    whole = (
        m.temp_size_in_bytes
        + m.argument_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
    )
    return {"temporary": m.temp_size_in_bytes, "whole": whole}
