"""The parameters of CHIAR-Former as its authors' PyTorch code names and shapes them, and as ours
does. Imports no JAX.

Theirs: `layers.i.{dct_mix.w, dct_mix.norm.*, attn.qkv.*, attn.out_proj.*, attn.norm.*, ffn.0.*,
ffn.3.*, ffn_norm.*}`, matrices (out, in), q, k and v one after the other in one matrix, heads
inside each. Ours: matrices (in, out), k and v in one. Layer 1 has no attention, the last one no
filter. Nothing is rounded on the way: copies, transposes, factors 2.
"""

from __future__ import annotations

import re

import numpy as np

from cerebra_jax.config import KeptCfg, NetCfg
from cerebra_jax.errors import UserError

Named = dict[str, np.ndarray]

HEAD = "lm_head.weight"  # the token table once more
ROPE_BASE = 10_000.0
# what a state_dict of theirs may hold that the language model does not use
_UNUSED = {
    r"layers\.\d+\.attn\.rope\.(inv_freq|cos_cache|sin_cache)": "RoPE's tables, which are computed",
    r"_cls_head_\w+\.(weight|bias)": "heads of other tasks",
}
_OTHERS = {
    r"layers\.\d+\.router\..*": (
        "it routes by a learned gate, and only routing by a threshold can be imported"
    ),
    r".*rbf_mix\..*": (
        "it has RBF operators that see later tokens, and only DCT and attention can be imported"
    ),
    r"attns\..*": "it is the dense baseline, and only CHIAR can be imported",
    r"classifier\..*": "it is a classifier, and only a language model can be imported",
}


def names(net: NetCfg) -> dict[str, tuple[str, ...]]:
    """{their key: our parameters that it holds, side by side} of a net routed by thresholds, its
    layers not stacked.
    """
    last = net.depth - 1
    out = {"token_emb.weight": ("embed/table",)}
    if net.route.meta != "off":
        out |= _linear("meta_router.gate_proj", "meta_router/gate")
    for i in range(net.depth):
        theirs, ours = f"layers.{i}", f"layer_{i - 1:02d}/"
        if i in (0, last):
            ours = "first_" if i == 0 else "last_"
        if i < last:
            out[f"{theirs}.dct_mix.w"] = (f"{ours}filter/w",)
            out |= _norm(f"{theirs}.dct_mix.norm", f"{ours}filter/norm")
        if i > 0:
            attention = f"{ours}heavy/attention"
            out |= _linear(f"{theirs}.attn.qkv", f"{attention}/q", f"{attention}/kv")
            out |= _linear(f"{theirs}.attn.out_proj", f"{attention}/out")
            out |= _norm(f"{theirs}.attn.norm", f"{ours}heavy/norm")
        out |= _linear(f"{theirs}.ffn.0", f"{ours}mlp/ffn/up")
        out |= _linear(f"{theirs}.ffn.3", f"{ours}mlp/ffn/down")
        out |= _norm(f"{theirs}.ffn_norm", f"{ours}mlp/norm")
    return out | _norm("norm", "norm")


def _linear(theirs: str, *ours: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{theirs}.weight": tuple(f"{name}/kernel" for name in ours),
        f"{theirs}.bias": tuple(f"{name}/bias" for name in ours),
    }


def _norm(theirs: str, ours: str) -> dict[str, tuple[str, ...]]:
    return {f"{theirs}.weight": (f"{ours}/norm/scale",), f"{theirs}.bias": (f"{ours}/norm/bias",)}


def ours(theirs: Named, net: NetCfg) -> Named:
    """Our parameters of their `cleaned` state_dict, by name.

    UserError unless each tensor is there and of use.
    """
    table, out = names(net), {}
    if missing := [key for key in table if key not in theirs]:
        raise UserError(f"{_some(missing)} missing", "give the whole state_dict of the model")
    if strange := [key for key in theirs if key not in table]:
        raise UserError(
            f"{_some(strange)} not of a CHIAR-Former",
            "give the state_dict of the language model alone",
        )
    for key, parts in table.items():
        a = theirs[key].T if parts[0].endswith("/kernel") else theirs[key]
        if parts[0].endswith(
            "filter/w"
        ):  # their DCT and its inverse together are twice the identity
            a = a if net.compat else 2 * a
        cuts = [net.width] if len(parts) == 2 else []
        out |= zip(parts, np.split(a, cuts, axis=-1), strict=True)
    return _stacked(out, net) if net.scan else out


def theirs(ours: Named, net: NetCfg) -> Named:
    """Their state_dict of our parameters; the exact inverse of `ours`."""
    ours, out = _unstacked(ours, net) if net.scan else ours, {}
    for key, parts in names(net).items():
        a = np.concatenate([ours[name] for name in parts], axis=-1)
        if parts[0].endswith("filter/w"):
            a = a if net.compat else a / 2
        out[key] = np.ascontiguousarray(a.T if parts[0].endswith("/kernel") else a)
    return out | {HEAD: out["token_emb.weight"].copy()}


def fits(ours: Named, net: NetCfg) -> bool:
    """Whether their names can hold these parameters: those of CHIAR with thresholds, whole, and
    nothing else.
    """
    if net.name != "chiar" or net.route.mode != "threshold" or net.kept != KeptCfg():
        return False
    return set(_unstacked(ours, net) if net.scan else ours) == {
        name for parts in names(net).values() for name in parts
    }


def cleaned(theirs: Named) -> tuple[Named, list[str]]:
    """(their state_dict without what the language model does not use, a line on each kind that was
    left out).

    UserError for another model of theirs, or a head that is not the token table.
    """
    kept, notes = dict(theirs), []
    last = _depth(theirs) - 1
    idle = {
        r"layers\.0\.attn\..*": "attention of the first layer, which only filters",
        rf"layers\.{last}\.dct_mix\..*": "the filter of the last layer, which only attends",
    }
    for pattern, what in (_UNUSED | idle).items():
        if found := [key for key in kept if re.fullmatch(pattern, key)]:
            notes.append(f"left out {len(found)} tensors ({found[0]} …): {what}")
            kept = {key: a for key, a in kept.items() if key not in found}
    head = kept.pop(HEAD, None)
    if head is not None and not np.array_equal(head, kept.get("token_emb.weight"), equal_nan=True):
        raise UserError(
            f"{HEAD} is not token_emb.weight",
            "the head of a CHIAR-Former is tied to its token table",
        )
    for pattern, what in _OTHERS.items():
        if found := [key for key in kept if re.fullmatch(pattern, key)]:
            raise UserError(
                f"the checkpoint holds {found[0]}: {what}", "give a CHIAR-Former language model"
            )
    return kept, notes


def shape(theirs: Named) -> dict[str, int]:
    """depth, width, ffn_width, vocab, meta (0 or 1), and where RoPE's tables tell them heads and
    seq_len (else 0).

    UserError where it is no CHIAR-Former, or RoPE has another base than 10,000.
    """
    for key in ("token_emb.weight", "layers.0.ffn.0.weight"):
        if key not in theirs or theirs[key].ndim != 2:
            raise UserError(
                f"the checkpoint has no matrix {key}", "give the state_dict of a CHIAR-Former"
            )
    vocab, width = theirs["token_emb.weight"].shape
    depth = _depth(theirs)
    rope = f"layers.{depth - 1}.attn.rope"
    freq = theirs.get(f"{rope}.inv_freq", np.zeros(0, np.float32))
    if not np.allclose(freq, ROPE_BASE ** (-np.arange(freq.size) / max(1, freq.size)), rtol=1e-4):
        raise UserError(
            f"{rope}.inv_freq is not RoPE's of base {ROPE_BASE:,.0f}",
            "no other base can be imported",
        )
    if freq.size and width % (2 * freq.size):
        raise UserError(
            f"{rope}.inv_freq is of heads {2 * freq.size} wide, the model is {width}",
            "they do not fit",
        )
    return {
        "depth": depth,
        "width": width,
        "ffn_width": theirs["layers.0.ffn.0.weight"].shape[0],
        "vocab": vocab,
        "heads": width // (2 * freq.size) if freq.size else 0,
        "seq_len": len(theirs[f"{rope}.cos_cache"]) if f"{rope}.cos_cache" in theirs else 0,
        "meta": int("meta_router.gate_proj.weight" in theirs),
    }


def _depth(theirs: Named) -> int:
    layers = {int(found[1]) for key in theirs if (found := re.match(r"layers\.(\d{1,4})\.", key))}
    if len(layers) < 2 or layers != set(range(len(layers))):
        raise UserError(
            f"the checkpoint has the layers {sorted(layers)}",
            "a CHIAR-Former has 0, 1, … without a gap",
        )
    return len(layers)


def _stacked(ours: Named, net: NetCfg) -> Named:
    """The routed layers as one array each, `layers/…`, as a scan over them wants it."""
    out = {name: a for name, a in ours.items() if not name.startswith("layer_")}
    for name in [name for name in ours if name.startswith("layer_00/")]:
        rest = name.removeprefix("layer_00/")
        out[f"layers/{rest}"] = np.stack(
            [ours[f"layer_{i:02d}/{rest}"] for i in range(net.depth - 2)]
        )
    return out


def _unstacked(ours: Named, net: NetCfg) -> Named:
    out = {}
    for name, a in ours.items():
        if name.startswith("layers/"):
            out |= {
                f"layer_{i:02d}/{name.removeprefix('layers/')}": part for i, part in enumerate(a)
            }
        else:
            out[name] = a
    return out


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more are" if len(keys) > 3 else " are" if len(keys) > 1 else " is"
    return ", ".join(keys[:3]) + more
