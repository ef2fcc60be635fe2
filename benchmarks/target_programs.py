"""The programs of a configuration for a device that is not at hand, from shapes alone.

Nothing is allocated. Import `common` before it, which finds the package.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cerebra_jax import config
from cerebra_jax.config import RunCfg
from cerebra_jax.models import sampling
from cerebra_jax.tasks.registry import sketch
from cerebra_jax.training.experiment import Experiment, prepare
from cerebra_jax.training.programs import Programs

MODELS = ("dense", "chiar", "cerebra", "mod")
PROMPT = 64  # tokens of each prompt that decoding continues
WRITTEN = 128  # tokens that it writes


class Cell(NamedTuple):
    """Says how large a program is."""

    length: int  # tokens of an example
    rows: int  # examples of a batch
    depth: int
    decodes: bool = False  # it writes tokens; else it is a training step

    @classmethod
    def of(cls, text: str) -> Cell:
        """Reads "256x64x28", or "decode". Raises ValueError for anything else."""
        if text == "decode":
            return cls(256, 8, 28, True)
        length, rows, depth = map(int, text.split("x"))
        return cls(length, rows, depth)

    @property
    def name(self) -> str:
        return "decode" if self.decodes else f"{self.length}x{self.rows}x{self.depth}"


class Lowerable(NamedTuple):
    """Holds a jitted function and the shapes that it is compiled for."""

    function: Any
    arguments: tuple

    def lower(self) -> Any:
        """Returns the program before compilation, for the devices that the shapes name."""
        return self.function.lower(*self.arguments)

    def lower_for(self, platform: str) -> Any:
        """Returns the program before compilation, for a platform: cpu, cuda or tpu."""
        return self.function.trace(*self.arguments).lower(lowering_platforms=(platform,))


def configuration(model: str, cell: Cell, settings: dict[str, Any], size: str = "400m") -> RunCfg:
    """Returns configs/wikitext.py of that model and size for a cell, without dropout.

    settings: values of other keys, {"net.remat": True}.
    """
    path = Path(__file__).resolve().parent.parent / "configs" / "wikitext.py"
    spec = importlib.util.spec_from_file_location("wikitext", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(f"{model}-{size}")
    own = {
        "net.depth": cell.depth,
        "net.dropout": 0.0,
        "net.dtype": "bfloat16",
        "net.scan": True,
        "task.seq_len": cell.length,
        "train.batch_size": cell.rows,
        "train.duration": "1000 steps",
    }
    for key, value in (own | settings).items():
        *sections, last = key.split(".")
        setattr(functools.reduce(getattr, sections, made), last, value)
    return config.parse(made)


def experiment(cfg: RunCfg, platform: str) -> Experiment:
    """Returns the experiment of a configuration for a platform, on text that is not there."""
    return prepare(cfg, sketch(cfg), platform)


def train_step(e: Experiment, devices: Sequence[Any] = ()) -> Lowerable:
    """Returns the training step for these devices; without any, for no device in particular."""
    rows, length = e.cfg.train.batch_size, e.cfg.task.seq_len
    batch = {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
        for name, x in e.task.example(1).items()
    }
    assert batch["inputs_BxL"].shape == (rows, length)
    key = jax.eval_shape(lambda: jax.random.key(0))
    programs = Programs(e, devices or jax.local_devices()[:1])
    function, _ = programs.serving(e.first).programs
    state = e.like
    if not devices:
        return Lowerable(function, (state, batch, key))

    # where the arrays are
    mesh = Mesh(np.array(devices), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    state, key = _placed(state, everywhere), _placed(key, everywhere)
    if len(devices) == 1:
        return Lowerable(function, (state, _placed(batch, everywhere), key))
    share = rows // len(devices)
    split = {
        name: jax.ShapeDtypeStruct((len(devices), share, *x.shape[1:]), x.dtype)
        for name, x in batch.items()
    }
    return Lowerable(function, (state, split, key))


def decoding(e: Experiment, devices: Sequence[Any] = ()) -> Lowerable:
    """Returns the program that reads prompts and writes WRITTEN tokens after each."""
    model, rows = e.model, e.cfg.train.batch_size

    def write(variables, key, prompts, drawing):
        return sampling.generate(model, variables, key, prompts, WRITTEN, drawing)[0]

    number = jax.ShapeDtypeStruct((), jnp.float32)
    arguments = (
        {"params": e.like.params, "routing": e.like.routing},
        jax.eval_shape(lambda: jax.random.key(0)),
        sampling.Prompts(
            jax.ShapeDtypeStruct((rows, PROMPT), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
        ),
        sampling.Drawing(number, number),
    )
    if devices:
        mesh = Mesh(np.array(devices[:1]), ("data",))
        arguments = _placed(arguments, NamedSharding(mesh, PartitionSpec()))
    return Lowerable(jax.jit(write), arguments)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def program(cfg: RunCfg, cell: Cell, platform: str, devices: Sequence[Any] = ()) -> Lowerable:
    """Returns the program of a cell."""
    e = experiment(cfg, platform)
    return decoding(e, devices) if cell.decodes else train_step(e, devices)
