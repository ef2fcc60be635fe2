"""Dropout as a module."""

from __future__ import annotations

import flax.linen as nn

from cerebra_jax.kernels.dropout import dropout


class Drop(nn.Module):
    """Drops entries at random, keyed by the example's index in the global batch.

    It is the identity without a `dropout` rng, as in evaluation.
    """

    rate: float

    def __call__(self, ex_B, x_BxLxD):
        on = self.rate > 0 and self.has_rng("dropout")
        key = self.make_rng("dropout") if on else None
        return dropout(key, ex_B, x_BxLxD, self.rate)
