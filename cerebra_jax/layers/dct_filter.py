"""The DCT filter: each token's features are weighed in the frequency domain (CHIAR 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels import dct
from cerebra_jax.layers.norm import Norm
from cerebra_jax.layers.parameters import Module
from cerebra_jax.layers.prunable import Group
from cerebra_jax.layers.rows import Rows


class SpectralFilter(Module):
    """Computes iDCT(w ⊙ DCT(x)) over the features of each token, w = 1 at the start: (B, L, D) ->
    same.

    It mixes features, not tokens. The matrix of a folded filter may be there as `folded/matrix`.
    """

    width: int
    method: str

    pairwise = False
    step = 1

    @classmethod
    def of(cls, net: NetCfg, heads: int, out_scale: float, platform: str) -> SpectralFilter:
        """Returns the filter of a configuration; it has no heads."""
        method = dct.methods(net.route.dct, net.width, platform, net.dtype).filter
        return cls(net.width, method, parent=None)

    @nn.compact
    def __call__(self, queries: Rows, keys: Rows | None = None) -> jax.Array:
        w_D = self.param("w", nn.initializers.ones, (self.width,), jnp.float32)
        made = self.has_variable("folded", "matrix")
        matrix_DxD = self.get_variable("folded", "matrix") if made else None
        return dct.filtered(queries.x, w_D, self.method, matrix_DxD)

    def decode(self, rows: Rows, memory: tuple, place=None):
        """Returns the result for a chunk of tokens; there is nothing to remember."""
        return self(rows), memory

    def init_cache(self, batch: int, slots: int, length: int) -> tuple:
        """Returns the empty memory."""
        return ()


class Filter(Module):
    """Computes LN(x + iDCT(w ⊙ DCT(x))): CHIAR's light operator.

    Returns it, and the Spectrum of x where a router looks at it (`seen`), else None. `compat`:
    scaled as CHIAR's published code does it. The matrix of a folded filter may be there as
    `folded/matrix`, from `fold`.
    """

    width: int
    methods: dct.Methods
    seen: bool = False
    compat: bool = False

    @nn.compact
    def __call__(self, x_BxLxD):
        w_D = self.param("w", nn.initializers.ones, (self.width,), jnp.float32)
        spectrum = None
        if self.seen:
            spectrum = dct.spectrum(x_BxLxD, self.methods.transform)
            y_BxLxD = self._seen(spectrum, w_D, x_BxLxD.dtype)
        else:
            made = self.has_variable("folded", "matrix")
            matrix_DxD = self.get_variable("folded", "matrix") if made else None
            y_BxLxD = dct.filtered(x_BxLxD, w_D, self.methods.filter, matrix_DxD)
        if self.compat:
            y_BxLxD = 2 * y_BxLxD
            if self.seen:
                scale = dct.published_scale(self.width)[None, None]
                spectrum = jax.tree.map(lambda X: X * scale.astype(X.dtype), spectrum)
        return Norm(name="norm")(x_BxLxD + y_BxLxD), spectrum

    def _seen(self, spectrum: dct.Spectrum, w_D, dtype):
        """Returns what coefficients that a router looks at become."""
        if spectrum.kept is not None:
            return dct.weighed(spectrum.kept, w_D)
        y_BxLxD = dct.idct(w_D[None, None] * spectrum.exact, self.methods.transform)
        return y_BxLxD.astype(dtype)

    def prunable(self, place: str, layer: int) -> list[Group]:
        """Returns its coefficients: they can be masked, and nothing is smaller without them."""
        return [Group(f"{place}/w", layer, "dct", self.width, ())]


def fold(params: Any, scan: bool, seen: bool) -> dict[str, Any]:
    """Returns the collection `folded`: of fixed weights, the matrix of each filter computed as one.

    `seen`: routers look at the filters of the routed layers, which then are two transforms.
    """
    found = {}
    for name, layer in params.items():
        if name == "first_filter":
            found[name] = {"matrix": dct.folded(layer["w"])}
        elif isinstance(layer, Mapping) and "filter" in layer and not seen:
            make = jax.vmap(dct.folded) if scan else dct.folded
            found[name] = {"filter": {"matrix": make(layer["filter"]["w"])}}
    return found
