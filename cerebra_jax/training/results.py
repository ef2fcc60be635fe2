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
from typing import Any

import jax

import cerebra_jax
from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.models import registry
from cerebra_jax.training import metrics

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(devices: Sequence[Any]) -> dict[str, Any]:
    """What the bits of a run depend on besides its configuration and data."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = int(
        os.environ.get("NPROC", cores)
    )  # XLA's threads, of a run that has a share of the machine
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    device = {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
    }
    return versions | device | {"cores": cores, "code": code()}


def code() -> str:
    """Hash of this package's own source: another version of the step gives other bits, committed or not."""
    root, digest = Path(cerebra_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def drift(old: dict[str, Any], new: dict[str, Any]) -> str:
    """One line on what differs from the environment of a checkpoint; empty where nothing does."""
    changed = [f"{k} {old.get(k)} -> {v}" for k, v in new.items() if old.get(k) != v]
    if not changed:
        return ""
    return f"warning: {', '.join(changed)}: this run goes on, but not with the bits of an uninterrupted one"


def same_data(old: dict[str, Any], task: Any) -> None:
    """UserError where the data or their tokenizer are not what a checkpoint was trained on, if it knows (one that was
    imported does not)."""
    new = task.info()
    for name, a, b in (
        ("data", old, new),
        ("tokenizer", old.get("tokenizer", {}), new.get("tokenizer", {})),
    ):
        a, b = a.get("sha256", ""), b.get("sha256", "")
        if a and a != b:
            what = f"{old['dataset']} is not what it was: {name} sha256 {a[:12]} -> {b[:12]}"
            raise UserError(what, "give it as it was, or use --fresh")


def opening(s: Any) -> list[str]:
    """What is about to run, before the first compilation."""
    L, t, net = s.cfg.task.seq_len, s.cfg.train, s.cfg.net  # noqa: N806
    device = s.parallel.devices[0]
    lengths = f"{', '.join(map(str, s.task.shape.lengths or (L,)))}"
    forward = f"{s.model.cost.executed_flops / L / 1e6:.3g} MFLOP/token forward"
    unit = "" if s.model.unit.name == "flops" else f" in {s.model.unit.label}"
    how = registry.describe(s.model.net, s.model.pricing.platform)
    return [
        *([s.notice] if s.notice else []),
        f"model {net.name} · {parameters(s.like.params):,} parameters · {net.depth} layers of width {net.width} · "
        f"{forward}, {s.executed:.3f} of dense as executed{unit}{how and f' · {how}'}",
        f"data {s.task.dataset} · {s.total:,} steps of {t.batch_size} x {lengths} tokens "
        f"({s.total / s.per_epoch:.2g} epochs) on {len(s.parallel.devices)} x {device.device_kind}",
        *(
            [f"8 bits from step {s.eight_from:,} on: the best checkpoint is one of those"]
            if s.cfg.quant.bits
            else []
        ),
    ]


def parameters(params: Any) -> int:
    """How many numbers a model learns."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def result(
    s: Any, log: Path, best: int, valid: dict, test: dict, digest: str, wall: float
) -> dict[str, Any]:
    """What result.json holds. FLOPs are forward, per token, 1 MAC = 2 FLOPs; relative ones are shares of dense."""
    cfg, L = s.cfg, s.cfg.task.seq_len  # noqa: N806
    steps = [line for line in metrics.read(log) if line["split"] == "train"]
    lengths = [line["length"] for line in steps] if s.task.shape.lengths else [L] * s.total
    tokens = cfg.train.batch_size * sum(lengths)
    laps = [line["step_ms"] for line in steps if line["step_ms"]]
    step_ms = statistics.median(laps) if laps else None
    unit, model = s.model.unit, s.model
    dense, dense_executed = (
        cost / L for cost in models.dense_costs(model.net, L, s.task.shape.vocab_size, unit)
    )
    relative = {name: test[f"{name}_rel_{unit.name}"] for name in ("expected", "hard", "executed")}
    per_token = {name: rel and rel * dense for name, rel in relative.items()}
    ran = (line["program"] for line in steps) if s.shares else map(s.bucket, range(s.total))
    trained = sum(map(s.flops_of, ran, lengths))
    passes = (
        4 if cfg.net.remat else 3
    )  # forward, backward at twice its price, and the forward pass that remat repeats
    own = s.sampler_flops() * max(0, s.total - s.first_draw)
    train_total = passes * trained * cfg.train.batch_size + own
    devices = s.parallel.devices
    info = s.task.info()
    return {
        "task": cfg.task.name,
        "dataset": s.task.dataset,
        "notice": s.notice,
        "metrics": [m._asdict() for m in s.task.metrics],
        "chosen_on": s.task.choice.key,
        "data": info,
        "model": cfg.net.name,
        "net": dataclasses.asdict(s.model.net),
        "causal": s.model.causal,
        "seed": cfg.seed,
        "params": parameters(s.like.params),
        "steps": s.total,
        "seq_len": L,
        "tokens": tokens,
        **(
            {"steps_of_length": collections.Counter(map(str, lengths))}
            if s.task.shape.lengths
            else {}
        ),
        "best_step": best,
        **({"bits": 8, "bits_from_step": s.eight_from} if s.cfg.quant.bits else {}),
        "val": valid,
        "test": test,
        "costs": {
            "counts": unit.name,
            "unit": f"{unit.label}, forward, per token{' (1 MAC = 2 FLOPs)' if unit.name == 'flops' else ''}; "
            "executed is relative to the dense program as executed",
            **per_token,
            "executed": relative["executed"] * dense_executed,
            "dense": dense,
            "dense_executed": dense_executed,
            "relative": relative,
            "executed_flops": round(test["executed_rel_flops"] * model.dense.executed_flops) / L,
            "train_total": train_total,
            "sampler": {
                "train_flops": own,
                "share_of_train": own / train_total,
                "bytes": size(s.like.sampler),
            },
        },
        "step_ms": step_ms,
        "tokens_per_s": step_ms and tokens / s.total / step_ms * 1e3,
        "wall_s": wall,
        **memory(devices),
        "device": environment(devices) | {"host_platform": platform.platform()},
        "versions": versions(),
        "commit": commit(),
        "params_sha256": digest,
    }


def size(tree: Any) -> int:
    """Bytes of a tree of arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory(devices: Sequence[Any]) -> dict[str, Any]:
    """Peak memory of a device where it counts it, of the whole process where not (CPU)."""
    stats = devices[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}


def versions() -> dict[str, str]:
    """Versions of what computed the result."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"cerebra_jax": cerebra_jax.__version__, "python": platform.python_version()} | found


def commit() -> str | None:
    """The commit of the checkout this package runs from, `-dirty` where files differ; None where it is installed."""
    root = Path(cerebra_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    words = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
