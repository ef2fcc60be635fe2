"""What a token begins with, in its text; a router that keeps only digits goes with digits and with nothing else."""

import numpy as np
import pytest

from cerebra_jax.report.look import routing
from cerebra_jax.report.look.classes import CLASSES, classes


def test_a_class_is_of_the_first_character_in_its_text():
    told = [
        ("The", "word start"), (" cat", "word start"), ("s", "continuation"), (" ", "space"), ("12", "digit"),
        ("3", "digit"), (" 4th", "digit"), ("x", "continuation"), (" @", "punctuation"), ("-@", "punctuation"),
        ("a", "word start"), (" \n", "space"), ("漢", "word start"), ("字", "continuation"), (" \u0301", "word start"),
        ("é", "continuation"), ("\u0301", "continuation"), ("'", "punctuation"), ("t", "word start"), ("\x01", "other"),
        ("€", "punctuation"), ("", "other"), ("٣", "digit"),
    ]  # fmt: skip
    assert classes([piece.encode() for piece, _ in told]) == [kind for _, kind in told]
    cut = classes([b"a\xc3", b"\xa9", b"\xe6\xbc", b"\xa2 ", b"b", b"\xe6"])
    assert cut[1] == cut[3] == "continuation" and cut[0] == cut[4] == "word start" and set(cut) <= set(CLASSES)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_router_that_keeps_only_digits_goes_with_digits_alone(name, tokenizers):
    rng, tok = np.random.RandomState(0), tokenizers[name]
    kinds, window = [], []
    for w in range(12):
        text = "".join(rng.choice(list("abc def. 0123456789,é"), 60))
        row = classes(tok.pieces(tok.encode_each([text])[0]))
        kinds += row
        window += [w] * len(row)
    kinds, window = np.array(kinds), np.array(window)
    features = {kind: kinds == kind for kind in CLASSES} | {"noise": rng.standard_normal((2, len(kinds)))}
    kept = np.stack([kinds == "digit", kinds != "digit"]).astype(float)
    found = routing.correlations({"kept": kept}, features, window)["kept"]
    np.testing.assert_allclose(found["digit"], [[1, 1, 1], [-1, -1, -1]], atol=1e-6)
    for kind in ("word start", "punctuation", "space"):
        assert -0.9 < found[kind][0].low <= found[kind][0].high < 0 < found[kind][1].low
    assert np.isnan(found["other"]).all()
    assert all(abs(rho.value) < 0.2 for rho in found["noise"])
