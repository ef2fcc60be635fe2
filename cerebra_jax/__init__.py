"""cerebra_jax: models that are cheap by design. Importing it loads no JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cerebra_jax.trained import Trained

__version__ = "0.1.0"


def load(workdir: Any) -> Trained:
    """The best checkpoint of a run, to predict or generate with; UserError where the folder holds none."""
    from cerebra_jax.trained import Trained

    return Trained(workdir)
