"""The HTML page: parses, holds every run, needs nothing from outside, and shows a name as it is."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser

from cerebra_jax.cli import flags, report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Open tags, attributes and text; every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open = []
        self.tags = []
        self.attributes = []
        self.cells = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def page(tmp_path, folders) -> str:
    report.run(flags.parse(["report", *map(str, folders), f"--html={tmp_path / 'page.html'}"]))
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_it_parses_and_holds_every_run_group_and_figure(tmp_path, folders):
    found = Page(page(tmp_path, folders))
    assert {str(folder) for folder in folders} <= set(found.cells)
    assert {
        "transformer",
        "chiar",
    } <= set(found.cells)
    assert "203.0 ± 3.0" in found.cells
    assert "higher, which is worse" in found.text
    assert "Pareto front by means" in found.text
    assert found.tags.count("img") == 2


def test_it_asks_for_nothing_from_outside(tmp_path, folders):
    text = page(tmp_path, folders)
    assert not re.search(
        r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    )
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    assert all(
        value.startswith("data:image/svg+xml;base64,")
        for name, value in found.attributes
        if name == "src"
    )
    assert "default-src 'none'" in dict(found.attributes)["content"] or "default-src 'none'" in text


def test_names_and_notices_are_shown_and_never_run(tmp_path, make_run):
    evil = '<script>alert("1")</script>&amp;$x$'
    made = [
        make_run(
            f"r{i}", "chiar", 0, 1.0, {"task.target": evil + str(i)}, notice=evil, dataset=evil
        )
        for i in range(2)
    ]
    text = page(tmp_path, made)
    found = Page(text)
    assert "script" not in found.tags
    assert f"chiar, target={evil}0" in found.cells
    assert evil in found.text


def test_it_stays_small_with_many_long_runs(tmp_path, make_run):
    made = [
        make_run(f"r{i}", "chiar", i % 3, 100.0 + i, {"net.route.rate": i // 3 / 100})
        for i in range(81)
    ]
    line = {"split": "train", "executed_rel_flops": 0.7}
    rng = random.Random(0)
    for path in made:
        lines = (json.dumps(line | {"step": i, "loss": 8 * rng.random()}) for i in range(1, 2001))
        (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        result = json.loads((path / "result.json").read_text()) | {"steps": 2000}
        (path / "result.json").write_text(json.dumps(result))
    text = page(tmp_path, made)
    assert len(text.encode()) < 2_000_000
    assert Page(text).tags.count("tr") == 27 + 1 + 81 + 1
