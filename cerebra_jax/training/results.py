"""result.json, and the lines that open a run."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib.metadata
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.config import reads
from cerebra_jax.cost.device import present_platform
from cerebra_jax.documents import NUMBER
from cerebra_jax.errors import UserError
from cerebra_jax.kernels.remat import train_factor
from cerebra_jax.models import model as models
from cerebra_jax.models import registry
from cerebra_jax.policies import division
from cerebra_jax.policies.budget import named
from cerebra_jax.policies.division import Division
from cerebra_jax.policies.sampler import CLIPPED
from cerebra_jax.tasks.task import Task
from cerebra_jax.training import metrics, parallel
from cerebra_jax.training.experiment import Experiment, Serving
from cerebra_jax.training.programs import Programs, sampler_flops

# parameters that grow with the vocabulary, the features or the outputs, by their first name
_EMBEDDING_AND_HEAD = ("embed", "features", "columns", "head")
DIVIDED = {"by_layer": [NUMBER]}  # of the gates of a run that divides its slots
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Ended(NamedTuple):
    """How a run ended."""

    steps: int  # optimizer steps that it took; fewer than planned where it stopped early
    best: int  # step of the best checkpoint by validation
    serving: Serving  # its program
    valid: dict[str, Any]  # its lines
    test: dict[str, Any]
    digest: str  # sha256 of the parameters after the last step
    wall: float  # seconds, of all sessions


def environment(devices: Sequence[Any]) -> dict[str, Any]:
    """Returns what the bits of a run depend on besides its configuration and data."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1
    # XLA's threads, of a run that has a share of the machine
    cores = int(os.environ.get("NPROC", available))
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    device = {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
    }
    return versions | device | {"cores": cores, "code": code()}


def code() -> str:
    """Returns a hash of this package's own source: another version of the step gives other bits."""
    root, digest = Path(cerebra_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def drift(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns a line on what differs from the environment of a checkpoint.

    Empty where nothing does.
    """
    changed = [f"{k} {old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v]
    if not changed:
        return ""
    return (
        f"warning: {', '.join(changed)}: "
        "this run goes on, but not with the bits of an uninterrupted one"
    )


def same_data(old: dict[str, Any], task: Task) -> None:
    """Raises UserError where the data or their tokenizer are not what a checkpoint was trained on.

    A checkpoint that was imported does not know what it was trained on.
    """
    new = task.info()
    pairs = {
        "data": (old, new),
        "tokenizer": (old.get("tokenizer", {}), new.get("tokenizer", {})),
    }
    for name, (there, here) in pairs.items():
        a, b = there.get("sha256", ""), here.get("sha256", "")
        if a and a != b:
            raise UserError(
                f"{old['dataset']} is not what it was: {name} sha256 {a[:12]} -> {b[:12]}",
                "give it as it was, or use --fresh",
            )


def opening(programs: Programs) -> list[str]:
    """Returns lines on what is about to run, before the first compilation."""
    e, devices = programs.experiment, programs.devices
    cfg, net, model = e.cfg, e.cfg.net, e.model
    lines = [e.notice] if e.notice else []

    # the model, and what it costs
    forward = f"{model.cost.executed_flops / e.sizes.tokens / 1e6:.3g} MFLOP/token forward"
    unit = "" if model.unit.name == "flops" else f" in {model.unit.label}"
    chosen = registry.describe(model.net, model.pricing.platform)
    parts = [
        f"model {net.name}",
        f"{parameters(e.like.params):,} parameters",
        f"{net.depth} layers of width {net.width}",
        f"{forward}, {model.executed:.3f} of dense as executed{unit}",
    ]
    lines.append(" · ".join([*parts, chosen] if chosen else parts))

    # the data, and how much of it
    lengths = ", ".join(map(str, e.task.shape.lengths or (e.sizes.tokens,)))
    total = e.length.total
    steps = f"{total:,} steps of {cfg.train.batch_size} x {lengths} tokens"
    epochs = f"({total / e.length.per_epoch:.2g} epochs)"
    on = f"on {len(devices)} x {devices[0].device_kind}"
    lines.append(f"data {e.task.dataset} · {steps} {epochs} {on}")
    lines += parallel.idle(devices, cfg.train)
    lines += doubts(e)
    if cfg.train.patience:
        every = e.length.steps(cfg.train.eval_every)
        validations = math.ceil(total / every) if every else 1
        if validations <= cfg.train.patience + 1:
            what = f"warning: train.patience is {cfg.train.patience} and the run has {validations}"
            lines.append(f"{what} validations: it cannot end early (train.eval_every)")
    if cfg.quant.bits:
        first = f"8 bits from step {e.quantized_from:,} on"
        lines.append(f"{first}: the best checkpoint is one of those")
    return lines


def doubts(e: Experiment) -> list[str]:
    """Returns warnings of settings that do not fit the length of the run or its data."""
    lines = []
    with reads.paused():
        given = {key: config.value(e.cfg, key) for key in config.durations()}
    for key, duration in given.items():
        steps = e.length.steps(duration)
        if steps > e.length.total and not key.endswith("_every"):
            what = f"warning: {key} is {duration!r}, step {steps:,}"
            lines.append(f"{what}, and the run has {e.length.total:,}")
    size = e.cfg.train.batch_size
    if 0 < e.task.examples < size:
        what = f"warning: train.batch_size is {size:,} and there are {e.task.examples:,}"
        lines.append(f"{what} training examples: a step takes some of them more than once")
    return lines + _missed_budget(e)


def _missed_budget(e: Experiment) -> list[str]:
    """Returns a warning where whole slots of short examples do not meet the budget."""
    plan, budget = e.sizes.plan, e.cfg.objective.budget
    if plan is None or not plan.misses(budget):
        return []
    what = f"warning: objective.budget is {budget:g}, which no program of {e.sizes.tokens} tokens"
    lower, upper = named(plan.levels[-1]), named(plan.next)
    near = f"the nearest are {lower:g} and {upper:g} of dense {e.model.unit.label}"
    return [f"{what} meets: {near}, and this run ends at the lower one"]


def parameters(params: Any) -> int:
    """Returns how many numbers a model learns."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def non_embedding(params: Any) -> int:
    """Returns how many numbers a model learns outside of embedding and head."""
    outside = (leaf for name, leaf in params.items() if name not in _EMBEDDING_AND_HEAD)
    return sum(map(parameters, outside))


def result(programs: Programs, log: Path, ended: Ended) -> dict[str, Any]:
    """Returns what result.json holds; `log` is the run's metrics.jsonl."""
    e = programs.experiment
    task, cfg, model = e.task, e.cfg, e.model_of(ended.serving)
    steps = [line for line in metrics.read(log) if line["split"] == "train"]
    lengths = _lengths(e, steps, ended.steps)
    tokens = cfg.train.batch_size * sum(lengths)
    found = {
        "task": cfg.task.name,
        "dataset": task.dataset,
        "notice": e.notice,
        "metrics": [m._asdict() for m in task.metrics],
        "chosen_on": task.choice.key,
        "data": task.info(),
        "model": cfg.net.name,
        "net": dataclasses.asdict(model.net),
        "causal": model.causal,
        "seed": cfg.seed,
        "params": parameters(e.like.params),
        "params_non_embedding": non_embedding(e.like.params),
        "steps": ended.steps,
        "seq_len": e.sizes.tokens,
        "tokens": tokens,
    }
    if task.shape.lengths:
        found["steps_of_length"] = collections.Counter(map(str, lengths))
    found["best_step"] = ended.best
    if ended.steps < e.length.total:
        found["planned_steps"] = e.length.total
    if cfg.quant.bits:
        found |= {"bits": 8, "bits_from_step": e.quantized_from}
    return found | {
        "val": ended.valid,
        "test": ended.test,
        "costs": _costs(e, model, steps, ended),
        **_times(steps, ended.steps, tokens),
        "wall_s": ended.wall,
        **memory(programs.devices),
        "device": environment(programs.devices) | {"host_platform": platform.platform()},
        "versions": versions(),
        "commit": commit(),
        "params_sha256": ended.digest,
    }


def _times(lines: list[dict[str, Any]], steps: int, tokens: int) -> dict[str, float | None]:
    """Returns how long training took, without compilation, evaluations and saves.

    {"step_ms": median of the steps, "train_s": seconds of all steps, those that were not measured
    as long as the mean of the others, "tokens_per_s"}; None where no step was measured.
    """
    laps = [lap for lap in metrics.column(lines, "step_ms") if lap]
    if not laps:
        return {"step_ms": None, "train_s": None, "tokens_per_s": None}
    step_ms = statistics.median(laps)
    return {
        "step_ms": step_ms,
        "train_s": statistics.fmean(laps) * steps / 1e3,
        "tokens_per_s": tokens / steps / step_ms * 1e3,
    }


def clipped(found: dict[str, Any]) -> list[str]:
    """Returns what the clip of importance weights left out of the gradient, if it did anything."""
    cut = found["costs"]["sampler"]["clipped"]
    if not cut:
        return []
    what = f"sampler · sampler.clip cut off {cut:.2%} of the weight of the examples"
    return [f"{what}: the gradient leaves so much of them out; a larger sampler.clip cuts less"]


def _lengths(e: Experiment, steps: list[dict[str, Any]], total: int) -> list[int]:
    """Returns the tokens of an example of each step."""
    if e.task.shape.lengths:
        return metrics.column(steps, "length")
    return [e.sizes.tokens] * total


def _costs(
    e: Experiment, model: models.Model, steps: list[dict[str, Any]], ended: Ended
) -> dict[str, Any]:
    """Returns the costs of a run and of its result.

    FLOPs are forward, per token, 1 MAC = 2 FLOPs; relative ones are shares of dense.
    """
    # of the result, on the test split
    test = ended.test
    L, unit = e.sizes.tokens, model.unit
    dense, dense_executed = (cost / L for cost in model.pricing.dense(model.net))
    relative = {name: test[f"{name}_rel_{unit.name}"] for name in ("expected", "hard", "executed")}
    per_token = {name: rel and rel * dense for name, rel in relative.items()}
    executed_flops = round(test["executed_rel_flops"] * model.dense.executed_flops) / L

    # of training
    first = e.sampling.first if e.sampling else ended.steps
    own = sampler_flops(e) * max(0, ended.steps - first)
    cut = [line[CLIPPED] for line in steps if isinstance(line.get(CLIPPED), float)]
    train_total = _trained(e, steps, ended.steps) + own
    macs = " (1 MAC = 2 FLOPs)" if unit.name == "flops" else ""
    return {
        "counts": unit.name,
        "unit": f"{unit.label}, forward, per token{macs}; "
        "executed is relative to the dense program as executed",
        **per_token,
        "executed": relative["executed"] * dense_executed,
        "dense": dense,
        "dense_executed": dense_executed,
        "relative": relative,
        "executed_flops": executed_flops,
        "train_total": train_total,
        "sampler": {
            "train_flops": own,
            "share_of_train": own / train_total,
            "clipped": statistics.fmean(cut) if cut else 0.0,
            "bytes": size(e.like.sampler),
        },
    }


def _trained(e: Experiment, steps: list[dict[str, Any]], total: int) -> int:
    """Returns the executed FLOPs of all training steps, each in the program that took it."""
    if e.sizes.slots:
        ran = metrics.column(steps, "program")
    elif e.sizes.plan:
        ran = [e.sizes.plan.bucket(step) for step in range(total)]
    else:
        ran = [0] * total
    divisions: list[Division] = [()] * total
    if e.divides:
        gates = metrics.column(steps, "gates", DIVIDED)
        divisions = [division.stored(row["by_layer"]) for row in gates]
    steps_ran = zip(ran, _lengths(e, steps, total), divisions, strict=False)
    models_ran = (e.sizes.model(size, L, by_layer=own) for size, L, own in steps_ran)
    forward = sum(model.cost.executed_flops for model in models_ran)
    passes = train_factor(e.cfg.net.remat, e.sizes.platform or present_platform())
    return passes * forward * e.cfg.train.batch_size


def size(tree: Any) -> int:
    """Returns the bytes of a tree of arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory(devices: Sequence[Any]) -> dict[str, Any]:
    """Returns the peak memory of a device, of the whole process on a CPU."""
    stats = devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}


def versions() -> dict[str, str]:
    """Returns the versions of what computed the result."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"cerebra_jax": cerebra_jax.__version__, "python": platform.python_version()} | found


def commit() -> str | None:
    """Returns the commit of the checkout that this package runs from; None where it is installed.

    It ends in `-dirty` where files differ from the commit.
    """
    root = Path(cerebra_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    line = ["git", "-C", str(root), *describe]
    try:
        found = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
