"""What a token is to a model: its row of the table, its n-grams' rows, the number it carries."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from cerebra_jax.config import NetCfg
from cerebra_jax.kernels.lookup import lookup
from cerebra_jax.layers.dropout import Drop
from cerebra_jax.layers.linear import normal
from cerebra_jax.layers.parameters import Dense, Module


class Embed(Module):
    """Looks tokens up in a table, (B, L) int32 -> (B, L, D); returns them and the table.

    The same table is the output matrix (tied head). With n-grams, (B, L, G) rows of the same table
    or −1 for none, a token is its row + the mean of theirs: a word that training never showed is
    known by its parts. Bojanowski et al. 2017, arXiv:1607.04606.
    """

    vocab: int
    width: int
    std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids_BxL, subwords_BxLxG=None):
        shape = (self.vocab, self.width)
        table_VxD = self.param("table", normal(self.std), shape, jnp.float32)
        x_BxLxD = lookup(table_VxD, ids_BxL)
        if subwords_BxLxG is not None:
            there_BxLxG = subwords_BxLxG >= 0
            rows_BxLxGxD = lookup(table_VxD, jnp.maximum(subwords_BxLxG, 0))
            rows_BxLxGxD = jnp.where(there_BxLxG[..., None], rows_BxLxGxD, 0.0)
            x_BxLxD += rows_BxLxGxD.sum(2) / jnp.maximum(there_BxLxG.sum(2), 1)[..., None]
        return x_BxLxD.astype(self.dtype), table_VxD


class Columns(Module):
    """Scales tokens by the numbers they carry: value · embedding + a bias of the place.

    Gorishniy et al. 2021, arXiv:2106.11959.
    """

    @nn.compact
    def __call__(self, x_BxLxD, values_BxL):
        bias_LxD = self.param("bias", normal(), x_BxLxD.shape[1:], jnp.float32)
        dtype = x_BxLxD.dtype
        return values_BxL[..., None].astype(dtype) * x_BxLxD + bias_LxD.astype(dtype)[None]


def embed(net: NetCfg, vocab: int, batch):
    """Returns ((B, L, D), the token table or None) of a batch's tokens or features, with dropout.

    To be called inside a compact method.
    """
    if net.features:
        init = normal(net.features**-0.5)
        dense = Dense(net.width, True, net.dtype, kernel_init=init, name="features")
        x_BxLxD, table_VxD = dense(batch["features_BxLxN"].astype(net.dtype)), None
    else:
        subwords_BxLxG = batch["subwords_BxLxG"] if net.subwords else None
        look_up = Embed(vocab, net.width, net.init_std, net.dtype, name="embed")
        x_BxLxD, table_VxD = look_up(batch["inputs_BxL"], subwords_BxLxG)
        if "values_BxL" in batch:
            x_BxLxD = Columns(name="columns")(x_BxLxD, batch["values_BxL"])
    return Drop(net.dropout)(batch["ex_B"], x_BxLxD), table_VxD
