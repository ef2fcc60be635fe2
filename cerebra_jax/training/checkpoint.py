"""Checkpoints through Orbax: the last two and the best, atomic, and never silently wrong.

The best is the one by validation. They are written while training goes on.

Orbax commits a step atomically (a rename), but restores an array whose bytes have flipped without a
word. So the sha256 of every leaf is saved *inside* the same atomic checkpoint and verified on
restore. Per leaf and not per file: the files do not exist yet when an asynchronous save returns, so
a file manifest could only be written after the commit, and a kill between the two would leave a
good checkpoint that cannot be verified.

The state is saved un-stacked and by name ({"params/embed": array}), so any number of devices can
restore it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from cerebra_jax.documents import read_or_nothing
from cerebra_jax.errors import DISK_ERRNOS, DiskError, Diverged, UserError
from cerebra_jax.training import frozen
from cerebra_jax.trees import named_leaves

KEEP = 2  # latest checkpoints; the best by validation is kept besides


class Damaged(Exception):
    """A checkpoint that cannot be trusted."""


class Saved(NamedTuple):
    """A checkpoint that was read, each of its arrays as its sha256 says."""

    step: int
    state: Any  # a train state; or, from `Checkpoints.named`, {"params/embed/table": array}
    meta: dict[str, Any]  # "score", "validated", "wall_s", "config", "data", "environment"


def leaves(state: Any) -> dict[str, np.ndarray]:
    """Returns {'params/embed': array on the host} of a state.

    The arrays are copies: the next step may reuse the device's memory.
    """
    tree = serialization.to_state_dict(state)
    on_host = jax.device_get(named_leaves(tree))
    return _for_each(np.array, on_host)


def _for_each(f: Callable[[np.ndarray], Any], named: dict[str, Any]) -> dict[str, Any]:
    """Returns {name: f(array)}, in threads: NumPy and hashlib let go of the interpreter."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(named, pool.map(f, named.values()), strict=True))


def digests(named: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns {name: sha256 of its dtype, shape and bytes}."""

    def one(a: np.ndarray) -> str:
        digest = hashlib.sha256(f"{a.dtype.name}{a.shape}".encode())
        digest.update(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    return _for_each(one, named)


def digest(tree: Any) -> str:
    """Returns one sha256 for a whole tree of arrays."""
    parts = sorted(digests(leaves(tree)).items())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class _Manager(ocp.CheckpointManager):
    """Keeps the best checkpoint by the scores in our own metadata, which have a sha256.

    Orbax has copies of them. It cannot open a folder where one is not JSON, and lets the best
    checkpoint go where one is missing.
    """

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation score of a checkpoint; None where it has none, or is damaged."""
        meta = read_or_nothing(Path(self.directory) / str(step) / "meta" / "metadata")
        if meta.get("own_sha256") != _own(meta) or meta["score"] is None:
            return None
        return {"score": meta["score"]}


class Checkpoints:
    """The checkpoints of one run. `say` gets one line for each damaged one that is passed over."""

    def __init__(self, folder: Path, say: Callable[[str], None], read_only: bool = False):
        """Opens (or makes) the folder; what a killed save left behind is cleared away."""
        self.folder = folder.absolute()
        self._say = say
        self._read_only = read_only
        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.folder.glob("*.orbax-checkpoint-tmp*"):
                if part.is_dir():  # a file of such a name is somebody else's
                    shutil.rmtree(part)
        self._manager = self._open()
        self._incomplete = self._without_orbax()
        self._writer = ThreadPoolExecutor(1)
        self._handing_over: Future | None = None  # what is being hashed and given to Orbax

    def _open(self) -> ocp.CheckpointManager:
        def score(metrics: dict[str, float]) -> float:
            return metrics["score"]

        best = policy.BestN(
            get_metric_fn=score, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=score,
            best_mode="min",
            read_only=self._read_only,
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(KEEP), best]),
        )
        return _Manager(self.folder, options=options, item_names=("state", "meta"))

    def _without_orbax(self) -> list[str]:
        """Returns the folders of steps that Orbax does not take for checkpoints; says which.

        Something inside them was renamed or deleted.
        """
        if not self.folder.is_dir():
            return []
        complete = set(map(str, self._manager.all_steps()))
        names = {path.name for path in self.folder.iterdir() if path.name.isdecimal()}
        found = sorted(names - complete, key=int)
        for name in found:
            self._say(f"warning: checkpoint {name} is damaged (it is not complete): left out")
        return found

    def preflight(self, state: Any) -> None:
        """Raises UserError where the disk cannot hold the checkpoints of a run."""
        need = (KEEP + 2) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise UserError(
                f"{self.folder} has {free / 1e6:.0f} MB free, checkpoints need {need / 1e6:.0f} MB",
                "free some space, or choose another --workdir",
            )

    def save(self, step: int, state: Any, meta: dict[str, Any], score: float | None) -> None:
        """Starts to save `state`; its validation `score` is better if less, None if not measured.

        It returns as soon as the state is copied: hashing and writing go on beside training. One
        save at a time: the one before is on disk when this one begins. Raises Diverged rather than
        save a number that is not finite, DiskError where an earlier save failed.
        """
        self.wait()
        named = leaves(state)
        for name, good in _for_each(_finite, named).items():
            if not good:
                raise Diverged(
                    f"step {step}: {name} is not finite", "nothing was saved; lower train.lr"
                )
        self._handing_over = self._writer.submit(self._hand_over, step, named, meta, score)

    def _hand_over(
        self, step: int, named: dict[str, np.ndarray], meta: dict[str, Any], score: float | None
    ) -> None:
        """Gives Orbax the arrays by name, and beside them their shapes and digests."""
        shapes = {name: _described(leaf) for name, leaf in named.items()}
        meta = meta | {"step": step, "sha256": digests(named), "shapes": shapes}
        meta["own_sha256"] = _own(meta)

        # a step that has a checkpoint was stopped by a signal, and evaluated only after the resume
        metrics = None if score is None else {"score": score}
        with _disk_errors():
            if step in self._manager.all_steps():
                self._manager.wait_until_finished()
                self._manager.delete(step)
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(_not_empty(named)), meta=ocp.args.JsonSave(meta)
            )
            self._manager.save(step, metrics=metrics, args=args)

    def _settled(self) -> ocp.CheckpointManager:
        """Returns Orbax's manager, when it has been given all that `save` was.

        Nobody else touches it before that. Raises what went wrong on the way.
        """
        handing_over, self._handing_over = self._handing_over, None
        if handing_over is not None:
            handing_over.result()
        return self._manager

    def check(self) -> None:
        """Raises DiskError as soon as an asynchronous save is known to have failed."""
        if self._handing_over is not None and not self._handing_over.done():
            return
        with _disk_errors():
            self._settled().check_for_errors()

    def wait(self) -> None:
        """Returns when everything is on disk; raises DiskError where it cannot be."""
        with _disk_errors():
            self._settled().wait_until_finished()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, latest first."""
        return sorted(self._settled().all_steps(), reverse=True)

    def by_validation(self) -> list[int]:
        """Returns the steps with a validation score, the best first, the later one of equals."""
        scores = []
        for step in self.steps():
            try:
                score = self._meta(step)["score"]
            except Damaged as e:
                self._say(
                    f"warning: the validation score of checkpoint {step} is damaged ({e}): left out"
                )
                continue
            if score is not None:
                scores.append((score, -step))
        return [-step for _, step in sorted(scores)]

    def latest(self, like: Any) -> Saved | None:
        """Returns the newest intact checkpoint; None where there is none at all.

        Damaged ones are moved aside with one warning line each. Raises UserError where none is
        intact: a run never begins from scratch without being told to.
        """
        steps = self.steps()
        if not steps and not self._incomplete:
            return None
        for saved, damaged in self._walk(steps, like):
            # else the step could not be saved again when training gets there
            aside = [*map(str, damaged), *self._incomplete]
            if aside and not self._read_only:
                self._manager.close()
                for name in aside:
                    self._set_aside(name)
                self._incomplete = []
                self._manager = self._open()
            return saved
        raise UserError(
            f"no checkpoint in {self.folder} is intact", "restore one from a backup, or use --fresh"
        )

    def best(self, like: Any, as_trained: bool = False) -> Saved | None:
        """Returns the intact checkpoint with the best validation score; None where none has one.

        Who only reads gets what the model runs with: pruned weights at zero and, unless
        `as_trained`, the thresholds that were measured for it since (`frozen`).
        """
        for saved, _ in self._walk(self.by_validation(), like):
            if not self._read_only:
                return saved
            state = saved.state.replace(params=saved.state.effective)
            if not as_trained:
                workdir = self.folder.parent
                routing = frozen.applied(workdir, saved.step, state.routing, self._say)
                state = state.replace(routing=routing)
            return saved._replace(state=state)
        return None

    def named(self) -> Saved | None:
        """Returns `best` as arrays by name, without a model that says what to expect."""
        for saved, _ in self._walk(self.by_validation(), None):
            return saved
        return None

    def close(self) -> None:
        """Waits for what is being saved, and lets go of the folder."""
        try:
            self._settled().close()
        finally:
            self._writer.shutdown()

    def _walk(self, steps: list[int], like: Any) -> Iterator[tuple[Saved, list[int]]]:
        """Yields the intact ones of `steps` in order, each with the damaged steps before it."""
        damaged: list[int] = []
        for i, step in enumerate(steps):
            try:
                saved = self._restore(step, like)
            except Damaged as e:
                damaged.append(step)
                rest = f"using {steps[i + 1]}" if i + 1 < len(steps) else "it was the last one"
                self._say(f"warning: checkpoint {step} is damaged ({e}): {rest}")
                continue
            yield saved, damaged

    def _meta(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside the arrays, verified; raises Damaged."""
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = self._settled().restore(step, args=args)["meta"]
            good = meta["own_sha256"] == _own(meta)
        except Exception as e:  # Orbax and TensorStore raise anything at all on damaged files
            raise Damaged(f"metadata: {_short(e)}") from None
        if not good:
            raise Damaged("sha256 mismatch in its metadata")
        if meta.get("step", step) != step:
            raise Damaged(f"it holds step {meta['step']}: its folder was renamed")
        return meta

    def _restore(self, step: int, like: Any) -> Saved:
        """Returns a checkpoint, verified leaf by leaf.

        It has the structure of `like`; None: it is its arrays by name.

        Raises Damaged, or UserError where it is another model's.
        """
        meta = self._meta(step)
        if like is None:
            zeros = {name: _zeros(text) for name, text in meta["shapes"].items()}
            return Saved(step, self._arrays(step, meta, zeros), meta)
        tree = serialization.to_state_dict(like)
        wanted = {name: np.zeros(x.shape, x.dtype) for name, x in named_leaves(tree).items()}
        _same_shapes(step, meta["shapes"], wanted)
        filled = fill(tree, self._arrays(step, meta, wanted))
        return Saved(step, serialization.from_state_dict(like, filled), meta)

    def _arrays(
        self, step: int, meta: dict[str, Any], wanted: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns the arrays of these names, shapes and dtypes, each as its sha256 says.

        Raises Damaged.
        """
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(_not_empty(wanted)))
            got = wanted | self._settled().restore(step, args=args)["state"]
        except Exception as e:
            raise Damaged(f"arrays: {_short(e)}") from None
        for name, value in digests(got).items():
            if value != meta["sha256"][name]:
                raise Damaged(f"sha256 mismatch in {name}")
        return got

    def _set_aside(self, step: str) -> None:
        """Moves a damaged checkpoint out of the way, for whoever wants to look at it."""
        aside = self.folder.parent / "damaged"
        aside.mkdir(exist_ok=True)
        names = (aside / f"{step}{suffix}" for suffix in ["", *(f".{i}" for i in range(1, 1000))])
        shutil.move(self.folder / step, next(p for p in names if not p.exists()))


def _not_empty(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays that hold a number. Orbax refuses the others, which a shape restores."""
    return {name: leaf for name, leaf in named.items() if leaf.size}


def _finite(leaf: np.ndarray) -> bool:
    """Returns whether all of an array is finite; whole numbers always are."""
    if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
        return True
    if leaf.dtype not in (np.float32, np.float64):
        leaf = leaf.astype(np.float32)
    # the extremes tell: they are not finite where anything is not, and nothing is copied
    return not leaf.size or bool(np.isfinite(leaf.min()) and np.isfinite(leaf.max()))


def _described(leaf: np.ndarray) -> str:
    """Returns dtype and shape of an array, as "float32[2, 3]"."""
    return f"{leaf.dtype.name}{list(leaf.shape)}"


def _same_shapes(step: int, saved: dict[str, str], wanted: dict[str, np.ndarray]) -> None:
    """Raises UserError where a checkpoint has other arrays than a model.

    Parameters are named first.
    """
    here = {name: _described(leaf) for name, leaf in wanted.items()}
    for name in sorted({**here, **saved}, key=lambda n: (not n.startswith("params/"), n)):
        there, own = (shapes.get(name, "not") for shapes in (saved, here))
        if there != own:
            raise UserError(
                f"checkpoint {step} has {name} {there}, this model {own}",
                "it is another model's, or another version's of cerebra_jax",
            )


def _own(meta: dict[str, Any]) -> str:
    """Returns the sha256 of the metadata without itself."""
    rest = {k: v for k, v in meta.items() if k != "own_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def fill(tree: Any, named: dict[str, Any], prefix: str = "") -> Any:
    """Returns the nested dict `tree` with its leaves taken from `named`; empty dicts stay."""
    if not isinstance(tree, dict):
        return named[prefix]
    return {k: fill(v, named, f"{prefix}/{k}" if prefix else k) for k, v in tree.items()}


def _zeros(text: str) -> np.ndarray:
    """Returns an array of a dtype and shape written as "float32[2, 3]"."""
    dtype, shape = text.rstrip("]").split("[")
    return np.zeros([int(n) for n in shape.split(",") if n], jax.numpy.dtype(dtype))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Raises DiskError for a full disk.

    TensorStore reports it as a ValueError or a bare Exception: its text is all there is.
    """
    try:
        yield
    except Exception as e:
        text = f"{os.strerror(e.errno)} {e}" if isinstance(e, OSError) and e.errno else str(e)
        for reason in map(os.strerror, DISK_ERRNOS):
            if reason in text:
                raise DiskError(
                    f"a checkpoint could not be written ({reason})",
                    "free some space and run the same command again: "
                    "what was saved before is intact",
                ) from e
        raise
