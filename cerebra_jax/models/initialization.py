"""How the parameters of a model are computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr


def by_operation(f: jax.stages.Wrapped, *args: Any) -> Any:
    """Computes f(*args) one operation at a time, without those that the result does not need.

    f: a jitted function that draws the parameters of a model.

    Draws of one shape share a compiled program, and the forward pass that a Flax module goes
    through when it is initialised is left out. As one program, in which XLA unrolls each draw, a
    small model takes as long to compile as its training step. Draws are multiplied by their scale
    apart, so that the two ways may differ in the last bit.
    """
    traced = f.trace(*args)
    whole = traced.jaxpr
    needed, _ = dce_jaxpr(whole.jaxpr, [True] * len(whole.jaxpr.outvars), instantiate=True)
    given = jax.tree.leaves(args)
    leaves = jaxpr_as_fun(ClosedJaxpr(needed, whole.consts))(*given)
    # a result may be donated: it must not be a constant of f, which the next call takes too
    held = set(map(id, (*given, *whole.consts)))
    leaves = [jnp.copy(x) if id(x) in held else x for x in leaves]
    return jax.tree.unflatten(jax.tree.structure(traced.out_info), leaves)
