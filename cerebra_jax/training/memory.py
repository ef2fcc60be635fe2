"""Refuses a run that does not fit into memory, before its first step.

It is looked at twice. `outline` knows shapes only, and refuses at once what is far too large.
`require_room` knows the compiled step, which training then runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from cerebra_jax.config import RunCfg, reads
from cerebra_jax.cost import memory
from cerebra_jax.cost.preview import tree_bytes
from cerebra_jax.errors import UserError
from cerebra_jax.kernels import remat
from cerebra_jax.tasks.registry import fitted
from cerebra_jax.tasks.task import Task
from cerebra_jax.training.parallel import choose_devices

CURES = 3  # at most in a message, the cheapest first
FORCE = "--force tries it all the same"


class Need(NamedTuple):
    """Bytes that a training step needs on its machine or device."""

    state: int  # whatever the batch: parameters, gradients, the optimizer's state
    batch: int  # the inputs of all micro-batches
    activations: int  # grow with the tokens of a micro-batch

    @property
    def total(self) -> int:
        """Returns all of it."""
        return sum(self)


NOTHING = Need(0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Room:
    """Holds what a run has to fit into, and what can be changed in it."""

    cfg: RunCfg  # as it really runs
    devices: Sequence[Any]
    has_length: bool = True  # task.seq_len is the user's choice
    forced: bool = False

    @classmethod
    def of(cls, cfg: RunCfg, task: Task, forced: bool = False) -> Room:
        """Returns the room that a run has on the devices that it uses here."""
        with reads.paused():
            train, has_length = cfg.train, cfg.task.seq_len > 0
            devices = choose_devices(train.devices, train.batch_size, train.accum)
            return cls(fitted(cfg, task.shape), devices, has_length, forced)

    @property
    def on_one(self) -> int:
        """Returns how many devices share the memory: those of a CPU are one machine."""
        return len(self.devices) if self.devices[0].platform == "cpu" else 1

    def outline(self, task: Task) -> None:
        """Raises UserError where a batch and two activations are too large by themselves.

        Nothing is compiled or traced: it takes no time.
        """
        with reads.paused():
            train, net = self.cfg.train, self.cfg.net
            activation = self._activation()
        batch = self.on_one * train.batch_size // len(self.devices) * tree_bytes(task.example(1))
        free = memory.free(self.devices[0])
        if batch + 2 * activation <= free:
            return
        # what a layer keeps, in activations: twice what its matmuls read, as compiled steps do
        per_layer = 16 + 4 * net.ffn_width // net.width
        self._refuse("about ", Need(0, batch, net.depth * per_layer * activation), free)

    def outline_state(self, like: Any) -> None:
        """Raises UserError where the state and its gradients are too large by themselves."""
        need = Need(self.on_one * (tree_bytes(like) + tree_bytes(like.params)), 0, 0)
        if need.total > (free := memory.free(self.devices[0])):
            self._refuse("at least ", need, free)

    def require_room(self, compiled: Any, like: Any) -> None:
        """Raises UserError where a compiled step needs more memory than is free.

        Its state, which is `like` these shapes, and its batch are in memory already.
        """
        found = compiled.memory_analysis()
        if found is None:  # a platform that does not tell
            return
        inputs = found.argument_size_in_bytes
        made = found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
        made = max(0, made) + found.generated_code_size_in_bytes
        free = memory.free(self.devices[0])
        if self.on_one * made <= free:
            return
        state, gradients = tree_bytes(like), min(made, tree_bytes(like.params))
        parts = (state + gradients, max(0, inputs - state), made - gradients)
        need = Need(*(self.on_one * part for part in parts))
        self._refuse("", need, free + self.on_one * inputs)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns an error of full memory into a UserError that says what takes less."""
        try:
            yield
        except Exception as error:
            if not memory.is_exhausted(error):
                raise
            said = " ".join(str(error).split())[:100] or type(error).__name__
            what = f"the memory of {self._name()} is not enough ({said})"
            cures = [words for words, _ in self.cures(NOTHING, 0)]
            raise UserError(what, _listed(cures)) from error

    def cures(self, need: Need, free: int) -> list[tuple[str, int]]:
        """Returns settings that need less memory and about how many bytes less, cheapest first.

        More micro-batches cost next to nothing, recomputation a third of the time; smaller batches
        and shorter sequences are other experiments. need: NOTHING where it is not known.
        """
        with reads.paused():
            found = [self._accumulating(need, free), self._recomputing(need)]
            if need.state + need.batch > free:
                found = [self._smaller(need, free)]
            if self.has_length and self.cfg.task.seq_len > 1:
                less = (need.batch + need.activations) // 2
                found.append((f"task.seq_len={self.cfg.task.seq_len // 2}", less))
        useful = [cure for cure in found if cure and (cure[1] > 0 or need == NOTHING)]
        return useful[:CURES]

    def _accumulating(self, need: Need, free: int) -> tuple[str, int] | None:
        """Returns the least train.accum with which it fits, or else the largest one."""
        train, n = self.cfg.train, len(self.devices)
        larger = [a for a in _divisors(train.batch_size // n) if a > train.accum]
        larger = [a for a in larger if a % train.accum == 0] or larger
        if not larger:
            return None

        def saved(accum: int) -> int:
            return need.activations - need.activations * train.accum // accum

        fits = [a for a in larger if need.total - saved(a) <= free]
        accum = larger[0] if need == NOTHING else fits[0] if fits else larger[-1]
        return f"train.accum={accum}", saved(accum)

    def _smaller(self, need: Need, free: int) -> tuple[str, int] | None:
        """Returns the largest divisor of the batch with which it fits, or else the least one."""
        size, varying = self.cfg.train.batch_size, need.batch + need.activations
        least = self.cfg.train.accum * len(self.devices)
        smaller = [least * d for d in _divisors(size // least)[:-1]]
        if not smaller:
            return None
        fits = [n for n in smaller if need.state + varying * n // size <= free]
        chosen = fits[-1] if fits else smaller[0]
        return f"train.batch_size={chosen}", varying - varying * chosen // size

    def _recomputing(self, need: Need) -> tuple[str, int] | None:
        """Returns net.remat=full, with which the inputs of the layers and one layer are kept."""
        net = self.cfg.net
        if remat.chosen(net.remat, self.devices[0].platform) == "full" or net.depth < 2:
            return None
        kept = net.depth * self._activation() + need.activations // net.depth
        return "net.remat=full", need.activations - kept

    def _activation(self) -> int:
        """Returns the bytes of one number for each feature of each token of a micro-batch."""
        train, net = self.cfg.train, self.cfg.net
        rows = self.on_one * train.batch_size // train.accum // len(self.devices)
        return rows * self.cfg.task.seq_len * net.width * jnp.dtype(net.dtype).itemsize

    def _refuse(self, least: str, need: Need, free: int) -> None:
        if self.forced:
            return
        needs, has = memory.shown(need.total), memory.shown(free)
        what = f"training needs {least}{needs} of memory, and {has} are free on {self._name()}"
        if need.state > free:
            alone = f"{memory.shown(need.state)} of it are parameters, gradients and optimizer"
            raise UserError(what, f"{alone}: use a smaller net.width or net.depth; {FORCE}")
        found = self.cures(need, free)
        cures = [f"{words} (about {memory.shown(less)} less)" for words, less in found]
        is_enough = any(need.total - less <= free for _, less in found)
        raise UserError(what, f"{_listed(cures, 'or' if is_enough else 'and')}; {FORCE}")

    def _name(self) -> str:
        return str(self.devices[0].device_kind)


def _listed(cures: list[str], word: str = "or") -> str:
    if not cures:
        return "use a smaller train.batch_size, net.width or net.depth"
    *first, last = cures
    return "use " + (f"{', '.join(first)} {word} {last}" if first else last)


def _divisors(n: int) -> list[int]:
    """Returns all divisors of n in order."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})
