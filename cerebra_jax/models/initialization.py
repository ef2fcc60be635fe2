"""How the first parameters of a model are drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr


def by_operation(f: jax.stages.Wrapped, *args: Any) -> Any:
    """Computes f(*args) one operation at a time, without those that the result does not need.

    f: a jitted function that draws the parameters of a model, and closes over no tracers. It is
      traced once for arguments of the same shapes.

    Draws of one shape share a compiled program, and the forward pass that a Flax module goes
    through when it is initialised is left out. As one program, in which XLA unrolls each draw, a
    small model takes as long to compile as its training step. A draw and its product with the scale
    are two programs here, so the result may differ in the last bit from that of one program.
    """
    traced = f.trace(*args)
    whole = traced.jaxpr
    needed, _ = dce_jaxpr(whole.jaxpr, [True] * len(whole.jaxpr.outvars), instantiate=True)
    leaves = jaxpr_as_fun(ClosedJaxpr(needed, whole.consts))(*jax.tree.leaves(args))
    # a result may be donated: it is no argument, no constant of f, and no other result
    own = {variable for step in needed.eqns for variable in step.outvars}
    for i, variable in enumerate(needed.outvars):
        if isinstance(variable, Literal) or variable not in own:
            leaves[i] = jnp.array(leaves[i])
        else:
            own.remove(variable)
    return jax.tree.unflatten(jax.tree.structure(traced.out_info), leaves)
