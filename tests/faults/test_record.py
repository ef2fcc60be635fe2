"""The page on reliability: rows of one commit stay together, and a fault fails its driver."""

from __future__ import annotations

import pytest

from tests.faults import record as page


def row(name: str, times: int) -> page.Row:
    return page.Row(name, times, {"refused": 2}, {"tracebacks": 0}, 1.4)


def test_a_driver_replaces_its_own_row_and_leaves_the_others_of_its_commit(tmp_path):
    to = tmp_path / "page.md"
    for name, times, commit in (("b", 1, "one"), ("a", 2, "one"), ("b", 3_000, "one")):
        page.write(to, row(name, times), commit)
    table = [line for line in to.read_text().splitlines() if line.startswith(("| a", "| b"))]
    assert table == [
        "| a | 2 | 2 refused | 0 tracebacks | 1 |",
        "| b | 3,000 | 2 refused | 0 tracebacks | 1 |",
    ]
    page.write(to, row("c", 1), "another")
    text = to.read_text()
    assert "| c |" in text and "| a |" not in text and "- commit: another" in text
    assert page.COMMAND in text


def test_what_went_wrong_is_written_and_fails_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv(page.VARIABLE, str(tmp_path / "page.md"))
    counts = page.Counts("tracebacks")
    counts.check(True, "tracebacks", "the first")
    counts.check(False, "tracebacks", "the second")
    with pytest.raises(AssertionError, match="tracebacks: the second"):
        page.record("kills", counts)
    assert "| 1 tracebacks |" in (tmp_path / "page.md").read_text()
