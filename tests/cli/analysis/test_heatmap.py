"""The command on finished runs: a page, its figures, the same on screen; a mistake is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cerebra_jax.analysis import heatmap
from cerebra_jax.main import main

TEXT = 'The naïve cat 😀 sat\non 12 mats; <b>"then"</b> & שלום.\n'
INTENT = {
    "task.name": "intent",
    "task.tokenizer": "words",
    "task.seq_len": 8,
    "net.name": "cerebra",
    "net.causal": False,
    "net.route.mode": "topk",
    "task.subwords": 64,
}


def test_a_run_on_text_gives_a_page_and_the_same_on_screen(trained, tmp_path, capsys):
    run = trained({"net.name": "chiar", "net.depth": 4})
    text = TEXT * 3
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    page = tmp_path / "new" / "page.html"
    assert (
        main(["heatmap", f"--workdir={run}", f"--text=@{tmp_path / 'text.txt'}", f"--to={page}"])
        == 0
    )
    shown = capsys.readouterr().out
    found = json.loads(page.with_suffix(".json").read_text())
    assert page.read_bytes().decode() == heatmap.html(found)
    n = len(text.encode()) + 1
    assert (
        found["text"] == text
        and len(found["ids"]) == n
        and found["layers"] == [1, 2]
        and found["steps"] == 2
    )
    assert np.shape(found["kept"]) == np.shape(found["scores"]) == (2, n)
    for line in heatmap.summary(found):
        assert line in shown
    shown_lines = shown.splitlines()
    marks = []
    for start in ("layer 1 ", "layer 2 "):
        marks.append("".join(x[len(start) :] for x in shown_lines if x.startswith(start)))
    assert [[c == heatmap.KEPT for c in row] for row in marks] == np.array(
        found["kept"], bool
    ).tolist()
    assert f"written: {page}" in shown and "<b>" not in page.read_text().split('<div class="t">')[1]


def test_an_encoder_shows_what_it_read_and_says_what_it_did_not(trained, capsys):
    run = trained(INTENT)
    assert (
        main(["heatmap", f"--workdir={run}", "--text=Der Cat sat and sat , the cat and the cat"])
        == 0
    )
    found = json.loads((run / "heatmap.json").read_text())
    assert len(found["ids"]) == 8 and found["unseen"] == len("cat and the cat")
    assert found["text"][found["spans"][1][0] : found["spans"][1][1]] == "Der"
    assert "the last 15 characters are not seen" in capsys.readouterr().out
    page = (run / "heatmap.html").read_text()
    assert '<span class="n"> cat and the cat</span>' in page


def test_nothing_of_a_text_can_steer_a_terminal(facts_of):
    shown = "\n".join(
        line.plain for line in heatmap.lines(facts_of("\x1b[2Ja\u202eb\x07c\r\x9b\n"), 80)
    )
    assert not [
        c for c in shown if c != "\n" and (c < " " or "\x7f" <= c <= "\x9f" or c == "\u202e")
    ]


@pytest.fixture
def facts_of():
    def make(text: str):
        n = len(text)
        flat = {
            "kept": [[1] * n],
            "mixed": [[0] * n],
            "scores": [[0.0] * n],
            "flops": [1] * n,
            "layers": [1],
            "ids": [0] * n,
        }
        about = {
            "run": "r",
            "steps": 1,
            "model": "chiar",
            "paths": ["attention", "filter"],
            "L": 99,
            "unseen": 0,
        }
        costs = {"dense_flops": n, "program_flops": 1, "program_dense_flops": 1, "notes": []}
        return {"text": text, "spans": [[i, i + 1] for i in range(n)]} | flat | about | costs

    return make


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--text="], "--text is missing"),
        (["--text=@nowhere"], "there is no nowhere"),
        (["--text=a", "--to=page.png"], "--to is page.png"),
        (["--text=a\udcff"], "not UTF-8"),
        (["--text=a", "--config.net.depth=9"], "cannot change net.depth"),
        (["--text=" + "a" * 9000], "9,001 tokens"),
    ],
)
def test_a_mistake_is_one_line(words, what, trained, capsys):
    assert (
        main(["heatmap", f"--workdir={trained({'net.name': 'chiar', 'net.depth': 4})}", *words])
        == 2
    )
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"net": {"name": "transformer"}}, "the run is of a dense model, which routes nothing"),
        ({"net": {"name": "lstm"}}, "the run is of lstm, which routes nothing"),
        ({"net": {"name": "cerebra"}, "twin": "dense"}, "the run is of a dense model"),
        ({"net": {"name": "cerebra", "route": {"mode": "always_full"}}}, "nothing is decided"),
        (
            {"net": {"name": "cerebra"}, "task": {"name": "listops", "seq_len": 600}},
            "the run's task is listops",
        ),
    ],
)
def test_what_has_no_decisions_or_no_text_is_refused(keys, what, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert main(["heatmap", f"--workdir={tmp_path}", "--text=a b"]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1
