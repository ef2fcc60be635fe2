"""CHIAR's published code: a float64 pass, from the equations, gives the logits of net.compat."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cerebra_jax.errors import UserError
from cerebra_jax.models import model as models
from cerebra_jax.models import published_chiar as chiar

D, DEPTH, HEADS, V = 64, 4, 4, 50


def state_dict(
    rng: np.random.RandomState,
    depth: int = DEPTH,
    width: int = D,
    vocab: int = V,
    meta: bool = True,
):
    """Random float32 tensors by the authors' names; large: every term shows in the logits."""
    out = {}

    def linear(name, rows, cols):
        out[f"{name}.weight"] = rng.randn(rows, cols) * cols**-0.5
        out[f"{name}.bias"] = 0.2 * rng.randn(rows)

    def norm(name):
        # features whose mean is far from 0: their first coefficient counts in the entropy
        out[f"{name}.weight"] = 1 + 0.3 * rng.randn(width)
        out[f"{name}.bias"] = 0.3 + 0.2 * rng.randn(width)

    out["token_emb.weight"] = 0.15 * rng.randn(vocab, width)
    if meta:
        linear("meta_router.gate_proj", 1, width)
    for i in range(depth):
        if i < depth - 1:
            out[f"layers.{i}.dct_mix.w"] = 1 + 0.3 * rng.randn(width)
            norm(f"layers.{i}.dct_mix.norm")
        if i > 0:
            linear(f"layers.{i}.attn.qkv", 3 * width, width)
            linear(f"layers.{i}.attn.out_proj", width, width)
            norm(f"layers.{i}.attn.norm")
        linear(f"layers.{i}.ffn.0", 4 * width, width)
        linear(f"layers.{i}.ffn.3", width, 4 * width)
        norm(f"layers.{i}.ffn_norm")
    norm("norm")
    out["lm_head.weight"] = out["token_emb.weight"]
    return {name: np.asarray(a, np.float32) for name, a in out.items()}


def forward(sd, ids_BxT, heads):
    """(logits, thresholds, share that attends), float64.

    Each threshold is put into a gap of its layer's entropies, so that float32 decides alike, with
    about half of the tokens on either side.
    """
    p = {name: a.astype(np.float64) for name, a in sd.items()}
    D = p["token_emb.weight"].shape[1]
    depth = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("layers."))
    k, n = np.arange(D)[:, None], np.arange(D)[None]
    basis = math.sqrt(2 / D) * np.cos(np.pi * k * (2 * n + 1) / (2 * D))
    basis[0] /= math.sqrt(2)  # orthonormal DCT-II
    scale = np.where(np.arange(D) == 0, 2 * math.sqrt(2), 2.0)  # of the published coefficients

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        std = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / std * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def dct(x):
        return (x @ basis.T) * scale

    def idct(X):  # idct(dct(x)) = 2x
        return 2 * (X / scale) @ basis

    def filtered(x, layer):
        return norm(x + idct(p[f"{layer}.dct_mix.w"] * dct(x)), f"{layer}.dct_mix.norm")

    def fed(x, layer):
        h = linear(x, f"{layer}.ffn.0")
        h = h * 0.5 * (1 + scipy.special.erf(h / math.sqrt(2)))
        return norm(x + linear(h, f"{layer}.ffn.3"), f"{layer}.ffn_norm")

    def rope(x):  # (B, H, T, C), pairs (i, i + C/2) turned by t / 10000^(2i/C)
        T, C = x.shape[2:]
        angle = np.arange(T)[:, None] / 10_000.0 ** (2 * np.arange(C // 2) / C)
        a, b = x[..., : C // 2], x[..., C // 2 :]
        first = a * np.cos(angle) - b * np.sin(angle)
        second = b * np.cos(angle) + a * np.sin(angle)
        return np.concatenate([first, second], -1)

    def attended(x, layer):
        B, T, _ = x.shape
        qkv = np.split(linear(x, f"{layer}.attn.qkv"), 3, axis=-1)
        q, k, v = (y.reshape(B, T, heads, D // heads).transpose(0, 2, 1, 3) for y in qkv)
        scores = rope(q) @ rope(k).transpose(0, 1, 3, 2) / math.sqrt(D // heads)
        scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = weights / weights.sum(-1, keepdims=True) @ v
        out = linear(out.transpose(0, 2, 1, 3).reshape(B, T, D), f"{layer}.attn.out_proj")
        return norm(x + out, f"{layer}.attn.norm")

    x, taus, shares = p["token_emb.weight"][ids_BxT], [], []
    g = 1.0
    if "meta_router.gate_proj.weight" in p:
        g = 1 / (1 + np.exp(-linear(x.mean((0, 1)), "meta_router.gate_proj")))
    x = g * fed(filtered(x, "layers.0"), "layers.0") + (1 - g) * x
    for i in range(1, depth):
        layer = f"layers.{i}"
        if i == depth - 1:
            x = fed(attended(x, layer), layer)
            continue
        power = dct(x) ** 2
        power /= power.sum(-1, keepdims=True)
        entropy = -(power * np.log(power)).sum(-1) / math.log(D)
        ranked = np.sort(entropy.ravel())
        middle = ranked[len(ranked) // 3 : 2 * len(ranked) // 3]
        widest = np.argmax(np.diff(middle))
        taus.append((middle[widest] + middle[widest + 1]) / 2)
        attends = entropy > taus[-1]
        shares.append(attends.mean())
        x = fed(np.where(attends[..., None], attended(x, layer), filtered(x, layer)), layer)
    return norm(x, "norm") @ p["token_emb.weight"].T, np.array(taus), np.array(shares)


def nested(named):
    tree = {}
    for name, a in named.items():
        *above, leaf = name.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(a)
    return tree


def run(cfg, sd, ids, taus):
    """(logits, Aux) of our model with these tensors."""
    model = models.build(cfg, V)
    params = nested(chiar.ours(chiar.cleaned(sd)[0], cfg.net))
    routing = {"tau": jnp.asarray(taus, jnp.float32), "spread": jnp.ones(len(taus))}
    batch = {"inputs_BxL": ids, "ex_B": np.arange(len(ids), dtype=np.int32)}

    @jax.jit
    def forward(variables):
        out, aux = model.apply(variables, batch, models.neutral_knobs())
        return out.logits(), aux

    return forward({"params": params, "routing": routing})


PARITY = {"compat": True, "depth": DEPTH, "width": D, "heads": HEADS, "ffn_width": 4 * D}


FITTED = {"meta": "batch", "rate": 0.8, "capacity": 1.25, "dct": "matmul"}
CASES = [
    (17, {"route": {"meta": "batch", "dispatch": False}}),
    (24, {"route": FITTED, "scan": True}),
    (9, {"route": {"meta": "off", "dispatch": False}}),
]


@pytest.mark.parametrize(("T", "more"), CASES)
def test_logits_are_those_of_the_equations_in_float64(T, more, tiny_cfg):
    rng = np.random.RandomState(T)
    cfg = tiny_cfg({"net": PARITY | more, "task.seq_len": T})
    sd = state_dict(rng, meta=cfg.net.route.meta != "off")
    ids = rng.randint(0, V, (3, T)).astype(np.int32)
    want, taus, shares = forward(sd, ids, HEADS)
    assert ((shares > 0.2) & (shares < 0.8)).all()
    got, aux = run(cfg, sd, ids, taus)
    np.testing.assert_allclose(np.asarray(aux.stats["kept"]).mean(1), shares, atol=1e-6)
    assert want.std() > 0.5
    np.testing.assert_allclose(got, want, atol=1e-4)

    # without the published numerics it is another model
    other = tiny_cfg({"net": PARITY | more | {"compat": False}, "task.seq_len": T})
    plain, _ = run(other, sd, ids, taus)
    assert np.abs(plain - want).max() > 1e-3


def test_names_go_there_and_back_bit_by_bit(tiny_cfg):
    sd = state_dict(np.random.RandomState(0), depth=5)
    for more in ({"compat": True}, {"compat": False}, {"scan": True}):
        net = tiny_cfg({"net": PARITY | {"depth": 5} | more}).net
        ours = chiar.ours(chiar.cleaned(sd)[0], net)
        assert chiar.fits(ours, net)
        assert not chiar.fits(ours | {"more/w": np.zeros(1)}, net)
        back = chiar.theirs(ours, net)
        assert back.keys() == sd.keys()
        for name, tensor in sd.items():
            assert back[name].tobytes() == tensor.tobytes(), name
            assert back[name].shape == tensor.shape, name


def test_ours_are_the_parameters_of_the_model(tiny_cfg):
    """Names and shapes, stacked or not, with the MetaRouter and without."""
    batch = {"inputs_BxL": np.zeros((1, 32), np.int32), "ex_B": np.zeros(1, np.int32)}
    for more in ({}, {"scan": True}, {"route": {"meta": "off"}}):
        cfg = tiny_cfg({"net": PARITY | {"depth": 5} | more})
        sd = state_dict(np.random.RandomState(0), depth=5, meta=cfg.net.route.meta != "off")
        params = nested(chiar.ours(chiar.cleaned(sd)[0], cfg.net))
        model = models.build(cfg, V)
        like = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, like)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def frequencies(half):
    """RoPE's frequencies of heads twice as wide."""
    return 1e4 ** (-np.arange(half, dtype=np.float32) / half)


REFUSED = [
    ({"layers.2.attn.qkv.bias": None}, r"layers\.2\.attn\.qkv\.bias is missing"),
    ({"layers.1.extra": zeros(3)}, r"layers\.1\.extra is not of a CHIAR-Former"),
    ({"meta_router.gate_proj.weight": None}, r"meta_router\.gate_proj\.bias is not of"),
    ({"lm_head.weight": zeros(V, D)}, r"lm_head\.weight is not token_emb"),
    ({"layers.1.router.gate_proj.weight": zeros(2, D + 1)}, "learned gate"),
    ({"layers.1.rbf_mix.w": zeros(3)}, "RBF"),
    ({"layers.9.ffn.0.bias": zeros(3)}, r"the layers \[0, 1, 2, 3, 9\]"),
    ({"token_emb.weight": None}, "no matrix token_emb"),
    ({"layers.3.attn.rope.inv_freq": zeros(8) + 1}, "base 10,000"),
    ({"layers.3.attn.rope.inv_freq": frequencies(7)}, "heads 14 wide"),
]


@pytest.mark.parametrize(("change", "line"), REFUSED)
def test_what_is_not_a_checkpoint_of_theirs_is_refused(change, line, tiny_cfg):
    changed = state_dict(np.random.RandomState(0)) | change
    sd = {name: a for name, a in changed.items() if a is not None}
    with pytest.raises(UserError, match=line):
        shape = chiar.shape(sd)
        meta = "batch" if shape["meta"] else "off"
        net = tiny_cfg({"net": PARITY | {"route": {"meta": meta}}}).net
        chiar.ours(chiar.cleaned(sd)[0], net)


def test_what_their_model_does_not_use_is_left_out_with_a_line():
    sd = state_dict(np.random.RandomState(0))
    more = {"_cls_head_imdb.weight": zeros(2, D) + 1}
    more["layers.0.attn.qkv.bias"] = zeros(3 * D) + 1
    more["layers.3.dct_mix.w"] = zeros(D) + 1
    for i in (1, 2, 3):
        more[f"layers.{i}.attn.rope.cos_cache"] = zeros(40, 16) + 1
        more[f"layers.{i}.attn.rope.inv_freq"] = frequencies(8)
    assert chiar.shape(sd | more) == chiar.shape(sd) | {"heads": HEADS, "seq_len": 40}
    kept, notes = chiar.cleaned(sd | more)
    assert kept.keys() == sd.keys() - {"lm_head.weight"} and len(notes) == 4
