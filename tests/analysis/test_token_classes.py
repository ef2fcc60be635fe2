"""What a token begins with in its text, and of which kind its word is.

A router that keeps only digits goes with digits and with nothing else.
"""

import numpy as np
import pytest

from cerebra_jax.analysis import routing_shares as routing
from cerebra_jax.analysis.token_classes import CLASSES, WORD_KINDS, classes, word_kinds


def test_a_class_is_of_the_first_character_in_its_text():
    told = [
        ("The", "word start"),
        (" cat", "word start"),
        ("s", "continuation"),
        (" ", "space"),
        ("12", "digit"),
        ("3", "digit"),
        (" 4th", "digit"),
        ("x", "continuation"),
        (" @", "punctuation"),
        ("-@", "punctuation"),
        ("a", "word start"),
        (" \n", "space"),
        ("漢", "word start"),
        ("字", "continuation"),
        (" \u0301", "word start"),
        ("é", "continuation"),
        ("\u0301", "continuation"),
        ("'", "punctuation"),
        ("t", "word start"),
        ("\x01", "other"),
        ("€", "punctuation"),
        ("", "other"),
        ("٣", "digit"),
    ]
    assert classes([piece.encode() for piece, _ in told]) == [kind for _, kind in told]
    cut = classes([b"a\xc3", b"\xa9", b"\xe6\xbc", b"\xa2 ", b"b", b"\xe6"])
    assert cut[1] == cut[3] == "continuation"
    assert cut[0] == cut[4] == "word start"
    assert set(cut) <= set(CLASSES)


def test_a_token_has_the_kind_of_its_word():
    told = [
        ("Th", "determiner"),
        ("e", "determiner"),
        (" d", "other word"),
        ("og", "other word"),
        ("'", "other word"),
        ("s", "other word"),
        (" It", "pronoun"),
        ("’s", "pronoun"),
        (" n", "other word"),
        ("ot", "other word"),
        (" do", "auxiliary"),
        ("n't", "auxiliary"),
        ("  and", "conjunction"),
        (" ", ""),
        ("12", ""),
        ("th", "other word"),
        (" of", "preposition"),
        (",", ""),
        ("of", "other word"),
        ("é", "other word"),
        (" ", ""),
        ("tat", "other word"),
        (" the", "determiner"),
        ("–", ""),
        ("the", "determiner"),
        ("", ""),
        ("_a", ""),
    ]
    want = [kind for _, kind in told]
    assert word_kinds([piece.encode() for piece, _ in told]) == want
    assert set(want) - {""} <= set(WORD_KINDS)
    assert word_kinds([b"a\xc3", b"\xa9", b" \xff", b"the"]) == [
        "other word",
        "other word",
        "",
        "determiner",
    ]


def test_shares_by_class_and_their_intervals():
    """Windows that are all alike have no interval; those of two kinds have a binomial's."""
    rng = np.random.RandomState(0)
    windows = 40
    each = 25
    window_N = np.repeat(np.arange(windows), each)
    class_N = np.tile(np.array(["a", "b", "b", "b", "b"]), windows * each // 5)
    heavy_W = rng.rand(windows) < 0.3
    kept = np.stack([class_N == "a", heavy_W[window_N]]).astype(float)
    found = routing.by_class(kept, class_N, ("a", "b", "c"), window_N)
    assert [round(found[name]["share"], 6) for name in "abc"] == [0.2, 0.8, 0]
    assert found["a"]["kept"][0] == (1, 1, 1)
    assert found["b"]["kept"][0] == (0, 0, 0)
    value, low, high = found["b"]["kept"][1]
    assert value == pytest.approx(heavy_W.mean())
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(value * (1 - value) / windows), rel=0.15)
    assert np.isnan(found["c"]["kept"]).all()
    alone = routing.by_class(kept[:, :each], class_N[:each], ("a",), window_N[:each])["a"]["kept"][
        0
    ]
    assert alone.value == 1
    assert np.isnan(alone.low)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_router_that_keeps_only_digits_goes_with_digits_alone(name, tokenizers):
    rng = np.random.RandomState(0)
    tok = tokenizers[name]
    kinds = []
    window = []
    for w in range(12):
        text = "".join(rng.choice(list("abc def. 0123456789,é"), 60))
        row = classes(tok.pieces(tok.encode_each([text])[0]))
        kinds += row
        window += [w] * len(row)
    kinds = np.array(kinds)
    window = np.array(window)
    features = {kind: kinds == kind for kind in CLASSES} | {
        "noise": rng.standard_normal((2, len(kinds)))
    }
    kept = np.stack([kinds == "digit", kinds != "digit"]).astype(float)
    found = routing.correlations({"kept": kept}, features, window)["kept"]
    np.testing.assert_allclose(found["digit"], [[1, 1, 1], [-1, -1, -1]], atol=1e-6)
    for kind in ("word start", "punctuation", "space"):
        assert -0.9 < found[kind][0].low <= found[kind][0].high < 0 < found[kind][1].low
    assert np.isnan(found["other"]).all()
    assert all(abs(rho.value) < 0.2 for rho in found["noise"])
