"""States whose every number depends on their step, saved and restored without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cerebra_jax.training.checkpoint import Checkpoints


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    routing: dict

    @property
    def effective(self) -> dict:
        return self.params


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale(-0.1))


def state(step: int, width: int = 16) -> State:
    """A state whose every float depends on the step, incompressible as trained weights are."""
    draw = jax.random.normal(jax.random.key(step), (width, 32))
    params = {
        "embed": {"table": draw},
        "head": {"kernel": draw[:4].astype(jnp.bfloat16), "bias": draw[0]},
    }
    opt = OPTIMIZER.update(params, OPTIMIZER.init(params))[1]
    return State(jnp.int32(step), params, opt, {"tau": draw[1]})


def save(folder: Path, scores: dict[int, float | None]) -> None:
    """Saves the states of these steps with their validation scores."""
    checkpoints = Checkpoints(folder, print)
    for step, nats in scores.items():
        checkpoints.save(step, state(step), {"step": step, "score": nats}, nats)
    checkpoints.wait()
    checkpoints.close()


def restore(folder: Path, **kwargs: Any) -> tuple[Any, list[str]]:
    """Returns the latest checkpoint and what was said on the way."""
    said: list[str] = []
    checkpoints = Checkpoints(folder, said.append, **kwargs)
    try:
        return checkpoints.latest(state(0)), said
    finally:
        checkpoints.close()


def assert_is(found: Any, step: int) -> None:
    """Fails where a checkpoint is not, number for number, the state of a step."""
    at, restored, meta = found
    want = jax.tree.leaves_with_path(state(step))
    got = jax.tree.leaves_with_path(restored)
    assert (at, meta["step"]) == (step, step)
    assert [path for path, _ in got] == [path for path, _ in want]
    for (path, a), (_, b) in zip(got, want, strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(
            np.asarray(a, np.float32), np.asarray(b, np.float32), err_msg=str(path)
        )
