"""Counted prices are those derived by hand, as integers: layers, whole models, decoded tokens."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from cerebra_jax.config import NetCfg
from cerebra_jax.cost.units import FLOPS
from cerebra_jax.models.model import Pricing, cost_of, dense_of, token_cost
from tests.cost import handwritten as by_hand

# sizes without common factors, so that no formula is right by chance
L, V, D, H, F = 37, 51, 20, 2, 28
SHAPE = {"depth": 3, "width": D, "heads": H, "ffn_width": F}
PAIRS = by_hand.causal_pairs(L)


@pytest.fixture(scope="module")
def net_of(tiny_cfg):
    """net_of(name, **keys of the net): a causal one of SHAPE."""

    def make(name: str, **keys) -> NetCfg:
        return tiny_cfg({"task.seq_len": L, "net": SHAPE | {"name": name} | keys}).net

    return make


def model_of(net: NetCfg) -> dict[str, int]:
    return cost_of(net, L, V, "cpu").model


def executed_of(net: NetCfg) -> dict[str, int]:
    return cost_of(net, L, V, "cpu").executed


def alike(parts: dict[str, int], layers=range(3)) -> dict[str, int]:
    """The same parts in each of the layers, and the head of a language model."""
    found = {f"layer_{i:02d}/{part}": flops for i in layers for part, flops in parts.items()}
    return found | {"head": L * 2 * D * V}


# the dense models


@pytest.mark.parametrize("kind", ["gelu", "gated"])
def test_a_dense_model(net_of, kind):
    """8 D² a token and 4 D a visible pair; 4 D F or 6 D F a token; a program runs the square."""
    net = net_of("transformer", ffn=kind)
    ffn = L * by_hand.feed_forward(D, F, kind)
    want = alike({"attention": 8 * D * D * L + 4 * D * PAIRS, "ffn": ffn})
    assert by_hand.attention(D, D, L, L, PAIRS) == want["layer_00/attention"]
    assert model_of(net) == want
    assert executed_of(net) == alike({"attention": 8 * D * D * L + 4 * D * L * L, "ffn": ffn})


def test_a_dense_model_of_which_units_are_left(net_of):
    """Heads of width C make an attention that is narrower inside; 0 in the lists means all."""
    net = net_of("transformer", kept={"heads": "1,0,2", "ffn": "8,5,0"})
    want = {"head": L * 2 * D * V}
    for i, (inner, hidden) in enumerate(((10, 8), (20, 5), (20, 28))):
        want[f"layer_{i:02d}/attention"] = by_hand.attention(D, inner, L, L, PAIRS)
        want[f"layer_{i:02d}/ffn"] = L * by_hand.feed_forward(D, hidden)
    assert model_of(net) == want


def test_an_encoder_with_features_and_a_pooled_head(net_of):
    net = net_of("transformer")
    more = {"causal": False, "features": 3, "outputs": 5, "pool": "mean", "pooler": True}
    attention = by_hand.attention(D, D, L, L, L * L)
    want = alike({"attention": attention, "ffn": L * by_hand.feed_forward(D, F)})
    want |= {"embed": L * 2 * 3 * D, "head": 2 * D * 5 + by_hand.feed_forward(D, F)}
    assert model_of(dataclasses.replace(net, **more)) == want
    # without outputs, logits by a matrix of its own: there is no token table
    own = dataclasses.replace(net, features=3)
    assert model_of(own) == model_of(net) | {"embed": L * 2 * 3 * D}


@pytest.mark.parametrize(("causal", "reach"), [(True, (6, 0)), (False, (3, 3))])
def test_a_sliding_window(net_of, causal, reach):
    net = dataclasses.replace(net_of("window", window=7), causal=causal)
    attention = by_hand.attention(D, D, L, L, by_hand.window_pairs(L, *reach))
    want = alike({"attention": attention, "ffn": L * by_hand.feed_forward(D, F)})
    assert model_of(net) == want


def test_the_recurrences_and_the_convolution(net_of):
    lstm = {"lstm": L * by_hand.lstm(D, D)}
    assert by_hand.lstm(D, D) == 16 * D * D
    assert model_of(net_of("lstm")) == executed_of(net_of("lstm")) == alike(lstm)

    conv = {"conv": L * by_hand.gated_conv(D, 3)}
    assert model_of(net_of("cnn", kernel=3)) == executed_of(net_of("cnn", kernel=3)) == alike(conv)

    # the recurrence runs whole steps: 48 of 37 tokens
    net, price = net_of("ssm", ssm_state=3, kernel=4), by_hand.state_space(D, 3)
    assert model_of(net) == alike({"scan": L * (price.maps + price.scan)})
    assert executed_of(net) == alike({"scan": L * price.maps + 48 * price.scan})


def test_gated_linear_attention(net_of):
    net, price = net_of("transformer", heavy="gla"), by_hand.gated_linear_attention(D, H)
    ffn = L * by_hand.feed_forward(D, F)
    assert model_of(net) == alike({"attention": L * (price.maps + price.scan), "ffn": ffn})
    run = L * price.maps + 48 * price.scan
    assert executed_of(net) == alike({"attention": run, "ffn": ffn})


def test_fourier_mixing_and_the_mlp(net_of):
    encoder = {"causal": False, "outputs": 5}
    net = dataclasses.replace(net_of("transformer"), name="fnet", **encoder)
    ffn = by_hand.feed_forward(D, F)
    want = alike({"mix": by_hand.real_fft(L * D), "ffn": L * ffn}) | {"head": 2 * D * 5}
    assert model_of(net) == executed_of(net) == want
    flat = dataclasses.replace(net, name="mlp")
    assert model_of(flat) == alike({"ffn": ffn}) | {"flat": 2 * L * D * D, "head": 2 * D * 5}
    pooled = dataclasses.replace(flat, pool="mean")
    assert model_of(pooled) == alike({"ffn": ffn}) | {"head": 2 * D * 5}


# cerebra and mod


R, S = 0.3, 0.6
WIN = by_hand.windows(L, R)
E, NARROW = by_hand.share(S, D), by_hand.share(S, F)
SLOTS = by_hand.share(0.25, L)


@pytest.mark.parametrize("kind", ["conv", "attention", "hybrid"])
@pytest.mark.parametrize("causal", [True, False])
def test_cerebra(net_of, kind, causal):
    compress = {"kind": kind, "r": R, "s": S, "heads": 2}
    mode = "threshold" if causal else "topk"
    route = {"mode": "threshold", "rate": 0.25, "capacity": 1.0, "kv": "routed"}
    net = net_of("cerebra", compress=compress, route=route)
    route = dataclasses.replace(net.route, mode=mode)
    net = dataclasses.replace(net, causal=causal, route=route)
    seen = WIN.causal_pairs if causal else L * WIN.count
    parts = {
        "router": L * 2 * D,
        "compressor": by_hand.compressor(kind, D, E, H, WIN),
        "light": by_hand.light_attention(D, E, E, L, WIN, seen),
        "attention": by_hand.attention(D, D, L, L, PAIRS if causal else L * L),
        "ffn": L * by_hand.feed_forward(D, F),
    }
    assert model_of(net) == alike(parts)

    # as it runs: the slots, all windows, and the rest of the FFN for the slots
    rest = by_hand.feed_forward(D, F - NARROW)
    parts["light"] = by_hand.light_attention(D, E, E, L, WIN, L * WIN.count)
    parts["attention"] = by_hand.attention(D, D, SLOTS, SLOTS, SLOTS * SLOTS)
    parts["ffn"] = L * by_hand.feed_forward(D, NARROW) + SLOTS * rest
    assert executed_of(net) == alike(parts)


def test_cerebra_with_all_keys_and_one_hot_moves(net_of):
    """Every token is a key; to the slots and back, for attention and for the FFN: 2 K L D each."""
    route = {"rate": 0.25, "capacity": 1.0, "kv": "all", "lowering": "onehot"}
    found = executed_of(net_of("cerebra", route=route))
    assert found["layer_01/attention"] == by_hand.attention(D, D, SLOTS, L, SLOTS * L)
    assert found["layer_01/dispatch"] == 4 * 2 * SLOTS * L * D


@pytest.mark.parametrize("kv", ["all", "routed"])
@pytest.mark.parametrize("name", ["cerebra", "mod", "chiar"])
def test_what_a_kept_token_and_a_visible_pair_cost(net_of, name, kv):
    """q and the output, with kv=routed k and v, and what it has of the FFN; 4 D a pair."""
    net = net_of(name, compress={"s": S}, route={"kv": kv})
    pricing = Pricing(L, V, FLOPS, "cpu")
    dense = sum(model_of(dense_of(net)).values())
    ffn = {"cerebra": F - NARROW, "mod": F, "chiar": 0}[name]
    projections = {"all": 4, "routed": 8}[kv] * D * D
    for one in pricing.decisions(net).layers:
        token = projections + by_hand.feed_forward(D, ffn)
        assert one.token * dense == pytest.approx(token, rel=1e-12)
        assert one.pair * dense == pytest.approx(4 * D, rel=1e-12)


def test_a_mixture_of_depths(net_of):
    """The second block has a router, and runs for its slots."""
    route = {"rate": 0.25, "capacity": 1.0, "kv": "routed"}
    net = net_of("mod", route=route)
    ffn = by_hand.feed_forward(D, F)
    attention = by_hand.attention(D, D, L, L, PAIRS)
    router = {"layer_01/router": L * 2 * D}
    assert model_of(net) == alike({"attention": attention, "ffn": L * ffn}) | router
    found = executed_of(net)
    assert found["layer_00/attention"] == by_hand.attention(D, D, L, L, L * L)
    assert found["layer_01/attention"] == by_hand.attention(D, D, SLOTS, SLOTS, SLOTS * SLOTS)
    assert found["layer_01/ffn"] == SLOTS * ffn


# chiar


@pytest.mark.parametrize("method", ["fft", "matmul", "folded"])
@pytest.mark.parametrize("score", ["spectral", "permuted"])
def test_chiar(net_of, method, score):
    """A threshold looks at what the filter has computed; other orders have a DCT of their own.

    A folded filter is one matrix only where nobody looks at its coefficients.
    """
    net = net_of("chiar", route={"dct": method, "score": score, "meta": "prefix"})
    transform = "fft" if method == "folded" else method
    looked_at = transform if score == "spectral" else method
    ffn, attention = L * by_hand.feed_forward(D, F), by_hand.attention(D, D, L, L, PAIRS)
    want = {
        "layer_00/filter": L * by_hand.dct_filter(D, method),
        "layer_00/meta_router": L * 2 * D,
        "layer_01/filter": L * by_hand.dct_filter(D, looked_at),
        "layer_01/attention": attention,
        "layer_02/attention": attention,
        "head": L * 2 * D * V,
    }
    want |= {f"layer_{i:02d}/ffn": ffn for i in range(3)}
    if score == "permuted":
        want["layer_01/router"] = L * by_hand.dct(D, transform)
    assert model_of(net) == want


@pytest.mark.parametrize("length", [37, 150])
def test_the_third_operator_of_chiar(net_of, length):
    """Its program runs chunks of its slots; a token costs its share of that program."""
    route = {"rbf": 0.3, "kv": "routed", "capacity": 1.0, "mode": "hard"}
    net = net_of("chiar", rbf_features=5, route=route)
    mixer, slots = by_hand.Mixer(D, H, 5), by_hand.share(0.3, length)
    cost = cost_of(net, length, V, "cpu")
    assert cost.executed["layer_01/rbf"] == mixer.program(slots)
    assert cost.model["layer_01/rbf"] == round(Fraction(mixer.program(slots) * length, slots))
    assert cost.model["layer_01/router"] == length * 2 * D * 3  # a score for each operator

    every = dataclasses.replace(net, route=dataclasses.replace(net.route, kv="all"))
    assert cost_of(every, length, V, "cpu").executed["layer_01/rbf"] == mixer.program(length)


# decoding


def test_a_decoded_token_of_a_dense_model(net_of):
    """Every slot of the cache is visited, whatever the position."""
    token = token_cost(net_of("transformer"), L, V, "cpu")
    parts = {"attention": by_hand.attention(D, D, 1, 1, L), "ffn": by_hand.feed_forward(D, F)}
    assert token.always == alike(parts) | {"head": 2 * D * V}
    assert not any(token.kept.values()) and not any(token.window.values())


def test_a_decoded_token_of_cerebra(net_of):
    """A kept token looks at the slots; one that ends a window compresses it, and adds its key."""
    compress = {"kind": "conv", "r": R, "s": S, "heads": 2}
    route = {"rate": 0.25, "capacity": 1.0, "kv": "routed"}
    token = token_cost(net_of("cerebra", compress=compress, route=route), L, V, "cpu")
    always = {
        "router": 2 * D,
        "light": 2 * by_hand.linear(D, E) + 4 * E * WIN.count,
        "ffn": by_hand.feed_forward(D, NARROW),
    }
    kept = {
        "attention": by_hand.attention(D, D, 1, 1, SLOTS),
        "ffn": by_hand.feed_forward(D, F - NARROW),
    }
    window = {
        "compressor": 2 * WIN.places * D * E,
        "light": by_hand.linear(E, 2 * E),
    }
    head = {"head": 2 * D * V}
    assert token.always == alike(always) | head
    assert token.kept | head == alike(kept) | head
    assert token.window | head == alike(window) | head
    assert token.ends == WIN.count / L


@pytest.mark.parametrize("kv", ["all", "routed"])
def test_a_decoded_token_of_chiar(net_of, kv):
    """With kv=all every token is a key, which costs it k and v; the mixer runs in any case."""
    route = {"rate": 0.25, "capacity": 1.0, "kv": kv, "rbf": 0.3, "dct": "fft", "meta": "off"}
    token = token_cost(net_of("chiar", rbf_features=5, route=route), L, V, "cpu")
    ffn = by_hand.feed_forward(D, F)
    always = {
        "layer_00/filter": by_hand.dct_filter(D, "fft"),
        "layer_01/filter": by_hand.dct_filter(D, "fft"),
        "layer_01/rbf": by_hand.Mixer(D, H, 5).token(),
        "layer_02/attention": by_hand.attention(D, D, 1, 1, L),
        "head": 2 * D * V,
    }
    always |= {f"layer_{i:02d}/ffn": ffn for i in range(3)}
    if kv == "all":
        always["layer_01/attention"] = 2 * by_hand.linear(D, D)
    rows, keys, slots = (1, 0, L) if kv == "all" else (1, 1, SLOTS)
    assert token.always == always
    assert token.kept == {"layer_01/attention": by_hand.attention(D, D, rows, keys, slots)}
