"""The layers that net.heavy and net.light may name: one line each. No JAX here.

A layer is a class in its own file with `of(net, heads, out_scale, platform)`, `__call__(queries,
keys)`, `decode(rows, memory, place)`, `init_cache(batch, slots, length)` and, where pruning can
remove something of it, `prunable(place, layer)`: see layers/attention.py and layers/gla.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Mixer(NamedTuple):
    """Where a layer stands, and where it may be used."""

    module: str
    name: str
    heavy: bool = True
    light: bool = True
    state: bool = False  # a state reads the selected tokens: they are queries and keys alike


MIXERS = {
    "attention": Mixer("cerebra_jax.layers.attention", "Attention", light=False),
    "ssm": Mixer("cerebra_jax.layers.ssm", "SelectiveStateSpace", state=True),
    "gla": Mixer("cerebra_jax.layers.gla", "GatedLinearAttention", state=True),
    "dct": Mixer("cerebra_jax.layers.dct_filter", "SpectralFilter", heavy=False),
    "local": Mixer("cerebra_jax.layers.short_conv", "ShortConv", heavy=False),
}
HEAVY = tuple(name for name, mixer in MIXERS.items() if mixer.heavy)
LIGHT = ("compressed", *(name for name, mixer in MIXERS.items() if mixer.light), "none")
RECURRENT = tuple(name for name, mixer in MIXERS.items() if mixer.state)
