"""Our training step as a benchmark variant: the step that a run takes, on one device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import trees
from cerebra_jax.config import RunCfg
from cerebra_jax.cost.prices import TRAIN_FACTOR
from cerebra_jax.cost.timing import Variant, best_rate
from cerebra_jax.models import model as models
from cerebra_jax.policies.schedule import Length
from cerebra_jax.tasks.registry import sketch
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import state
from cerebra_jax.training.experiment import policies
from cerebra_jax.training.objective import Objective
from cerebra_jax.training.parallel import DataParallel
from cerebra_jax.training.step import make_train_step

# so many steps that the learning rate is constant over a benchmark
LENGTH = Length(total=1_000_000, per_epoch=1_000_000)


def random_batch(cfg: RunCfg, seed: int) -> dict[str, np.ndarray]:
    """A batch of random tokens."""
    rng = np.random.default_rng(seed)
    B, L, V = cfg.train.batch_size, cfg.task.seq_len, cfg.task.vocab_size
    text_BxT = rng.integers(0, V, (B, L + 1), dtype=np.int32)
    ones_BxL = np.ones((B, L), np.float32)
    return {
        "inputs_BxL": text_BxT[:, :-1],
        "labels_BxL": text_BxT[:, 1:],
        "w_BxL": ones_BxL,
        "ex_B": np.arange(B, dtype=np.int32),
    }


def build(cfg: RunCfg, folder: Path) -> Variant:
    """The step of cfg.net.name.

    Its first weights and three batches go into `folder` as .npz, its losses into info.
    """
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, warmup="0 steps"))
    model = models.build(cfg, cfg.task.vocab_size)
    optimizer = optim.make(cfg.train, LENGTH)
    step = make_train_step(Objective(model, sketch(cfg), policies(cfg)), optimizer, cfg, LENGTH)
    batches = [random_batch(cfg, seed) for seed in range(3)]
    now = state.init(model, optimizer, batches[0], jax.random.key(0))
    params = {name: np.asarray(x) for name, x in trees.named_leaves(now.params).items()}
    np.savez(folder / f"{cfg.net.name}.npz", **params)
    for i, batch in enumerate(batches):
        np.savez(folder / f"batch_{i}.npz", **batch)

    device = jax.devices()[0]
    run = DataParallel(step, step, [device])
    key = jax.random.key(1)
    held = SimpleNamespace(state=run.place(now), batches=[run.shard(b) for b in batches], done=0)
    memory = run.programs[0].lower(held.state, held.batches[0], key).compile().memory_analysis()
    temp = memory.temp_size_in_bytes
    program = (
        temp
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )

    def steps(n: int) -> float:
        for _ in range(n):
            held.state, metrics = run.step(held.state, held.batches[held.done % len(batches)], key)
            held.done += 1
        nats, tokens = jax.device_get(metrics["task/loss"])
        return float(nats / tokens)

    # large enough for the cores, small enough to take milliseconds
    n = 1024 if device.platform == "cpu" else 8192
    a = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), cfg.net.dtype)
    matmul = jax.jit(jnp.matmul)
    info = {
        "params": sum(x.size for x in params.values()),
        "losses": [steps(1) for _ in batches],
        "flops": TRAIN_FACTOR * cfg.train.batch_size * model.cost.executed_flops,
        "temp_bytes": temp,
        "program_bytes": program,
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
    }
    return Variant(
        steps, lambda: best_rate(lambda: matmul(a, a).block_until_ready(), 2 * n**3), info
    )
