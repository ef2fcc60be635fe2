"""Words of the world: cut where Unicode cuts them, the same however they were typed."""

from __future__ import annotations

import pytest

from cerebra_jax.tasks.intent.words import Words, split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("Don’t, it's 3.5", ["don’t", ",", "it's", "3.5"]),
        ("👨\u200d👩\u200d👧 👍🏽", ["👨\u200d👩\u200d👧", "👍🏽"]),
        ("我要退款", ["我", "要", "退", "款"]),
        ("", []),
    ],
)
def test_marks_stay_with_their_letters(text, words):
    assert split(text) == words


def test_a_letter_is_the_same_however_it_was_typed():
    assert split("cafe\u0301") == split("café") == ["café"]
    words = Words.learnt(["café", "cafe\u0301"], 2, 9)
    assert words.encode_each(["CAFE\u0301"])[0].tolist() == [1]


def test_a_run_of_version_0_1_cuts_words_as_it_did():
    assert split("don’t हिन्दी", before=True) != split("don’t हिन्दी")
    assert Words(["a"], before=True).split("a_b é's") == ["a", "_", "b", "é's"]
