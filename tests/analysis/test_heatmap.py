"""The page gives any text back, asks for nothing, stays small, and reads in grey."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from cerebra_jax.analysis import heatmap

KINDS = (
    "abc XYZ 012 .,;:!?",
    "<>&\"'`/\\=</script><!--]]>&amp;&#13;{}",
    "äßéñ漢字かな한글",
    "😀🎉👩‍🚀👍🏽🇩🇪🏴\u200d☠️",
    "e\u0301\u0323a\u20ddZ\u0334\u0489",
    "שלום עולם مرحبا\u202e\u202c\u2067\u200f",
    "\n\n\r\r\n\t \u2028\u2029\xa0\u3000",
    "".join(map(chr, range(1, 32))) + "".join(map(chr, range(0x7F, 0xA0))),
    "\ufffd\ufeff\ufffe\U0010ffff\U0001f9ff\ue000\u0000"[:-1],
)


class Page(HTMLParser):
    """Tags, attributes, the spans of the text and the rows of the matrix; tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.spans = []
        self.rows = []
        self.open = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "input"):
            self.open.append((tag, dict(attrs).get("class")))
        if tag == "span" and ("div", "t") in self.open:
            self.spans.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if ("div", "t") in self.open:
            assert self.open[-1][0] == "span", "text outside of the spans"
            self.spans[-1] += data
        elif self.rows and self.open and self.open[-1][0] in ("td", "th", "bdi"):
            self.rows[-1][-1][1] += data


def strings(count: int) -> list[str]:
    rng = random.Random(1)
    drawn = (
        "".join(rng.choice(rng.choice(KINDS)) for _ in range(rng.randint(1, 16)))
        for _ in range(count)
    )
    return [*KINDS, *drawn]


@pytest.mark.parametrize("name", ["coarse", "bpe"])
def test_spans_joined_are_the_text_for_500_strings(name, facts, tokenizers):
    for text in strings(500):
        page = heatmap.html(facts(text, tokenizers[name]))
        found = Page(
            page.replace("\r\n", "\n").replace("\r", "\n")
        )  # as the standard has a parser begin
        assert "".join(found.spans) == text
        assert set(found.tags) <= set(
            "html head meta title style body h1 ul li p span input label div table tr th td "
            "bdi".split()
        )


def test_every_token_has_its_column_and_joined_ones_share_a_heading(facts, tokenizers):
    made = facts("a😀é b" * 20, tokenizers["bytes"], layers=2)
    rows = Page(heatmap.html(made)).rows
    cells = [
        [cell for row in rows if row[0][1] == f"layer {i}" for cell in row[1:]]
        for i in made["layers"]
    ]
    assert [[text == "A" for _, text in layer] for layer in cells] == np.asarray(
        made["kept"], bool
    ).tolist()
    assert [[text == "R" for _, text in layer] for layer in cells] == np.asarray(
        made["mixed"], bool
    ).tolist()
    assert all(
        (attrs["class"].isupper()) == (text == "A") for layer in cells for attrs, text in layer
    )
    heads = [cell for row in rows if row[0][1] == "layer" for cell in row[1:]]
    assert sum(int(attrs.get("colspan", 1)) for attrs, _ in heads) == len(made["ids"])
    assert {(text, attrs.get("colspan")) for attrs, text in heads} >= {
        ("😀", "4"),
        ("é", "2"),
        ("␣", None),
    }


def test_the_view_of_a_layer_shows_what_it_kept(facts, tokenizers):
    made = facts("ab cd é漢é漢é漢", tokenizers["bytes"], layers=3)
    page = heatmap.html(made)
    classes = re.findall(r'<span class="(m\d[^"]*)"[^>]*title', page)
    ends = np.cumsum([0, 1, *(len(c.encode()) for c in made["text"])])
    for layer, kept in zip(made["layers"], made["kept"], strict=True):
        some = [
            kept[a:b] for a, b in zip(ends, ends[1:], strict=False)
        ]  # the tokens of each character
        assert [f"l{layer}" in names.split() for names in classes] == [all(k) for k in some]
        assert [f"s{layer}" in names.split() for names in classes] == [
            any(k) and not all(k) for k in some
        ]
    share = [np.mean(np.array(made["kept"])[:, a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    assert [names[:2] == "m0" for names in classes] == [x == 0 for x in share]


def test_the_first_layer_is_told_of_each_token(facts, tokenizers):
    made = facts("ab cd é漢é漢é漢", tokenizers["bytes"], layers=3)
    page = heatmap.html(made)
    first = zip(made["kept"][0], made["mixed"][0], made["scores"][0], strict=True)
    for kept, mixed, score in first:
        letter = "R" if mixed else "f"
        if kept:
            letter = "A"
        assert f"1 {letter} {score:.3g}" in page


def test_levels_are_fifths_of_a_layer_and_ties_stand_together():
    found = heatmap.levels(np.stack([np.arange(10.0), np.zeros(10), -np.arange(10.0)]))
    assert found.tolist() == [
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
        [0] * 10,
        [4, 4, 3, 3, 2, 2, 1, 1, 0, 0],
    ]


def test_a_text_of_512_tokens_and_12_layers_stays_below_300_kB(facts, tokenizers):
    made = facts(("The cat sat; " * 40)[:511], tokenizers["bytes"], layers=12)
    assert len(made["ids"]) == 512
    assert len(made["kept"]) == 12
    assert len(heatmap.html(made).encode()) <= 300_000


def test_it_asks_for_nothing_and_runs_nothing(facts, tokenizers):
    made = facts("https://x.test/a.js <img src=//x.test onerror=alert(1)>", tokenizers["bpe"])
    found = Page(heatmap.html(made | {"notes": ["<script>1</script>"], "run": '"><script>'}))
    assert not {"script", "img", "link", "iframe"} & set(found.tags)
    assert {name for name, _ in found.attributes} <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "type",
        "id",
        "checked",
        "for",
        "class",
        "title",
        "data-v",
        "colspan",
    }
    assert "default-src 'none'" in dict(found.attributes)["content"] or any(
        "default-src 'none'" in (value or "") for _, value in found.attributes
    )


def test_colours_fall_in_lightness_and_their_ink_can_be_read():
    def light(colour: str) -> float:  # relative luminance, WCAG 2.1
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for scale in (heatmap.LIGHT, heatmap.HEAVY, heatmap.SHARE):
        papers = [light(paper) for paper, _ in scale]
        assert all(a > 1.05 * b for a, b in zip(papers, papers[1:], strict=False))
        for paper, ink in scale:
            high, low = sorted((light(paper), light(ink)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


def _browse(page, *words: str) -> bytes:
    """A headless browser with a page, as it prints it; offline by the page's own policy."""
    profile = f"--user-data-dir={page.parent / 'profile'}"
    line = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        profile,
        *words,
        page.as_uri(),
    ]
    return subprocess.run(line, capture_output=True, timeout=120, check=True).stdout


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium or chrome on PATH to look at the page with"
)
def test_in_a_browser_the_page_shows_its_colours_and_the_text_is_the_text(
    facts, tokenizers, tmp_path
):
    from matplotlib.image import imread

    text = "The cat sat on 12 mats.\n" * 8 + "".join(strings(200))
    page = tmp_path / "page.html"
    page.write_text(heatmap.html(facts(text, tokenizers["coarse"])), encoding="utf-8", newline="")
    assert "".join(Page(_browse(page, "--dump-dom").decode()).spans) == text
    page.write_text(
        heatmap.html(facts(text[:192], tokenizers["bytes"])), encoding="utf-8", newline=""
    )
    shot = tmp_path / "shot.png"
    _browse(page, f"--screenshot={shot}", "--window-size=1200,1000")
    pixels = (imread(shot)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    share = {
        paper: (pixels == [int(paper[i : i + 2], 16) for i in (1, 3, 5)]).all(1).mean()
        for paper, _ in (*heatmap.LIGHT, *heatmap.HEAVY)
    }
    assert all(area > 1e-3 for area in share.values()), share
    assert 0.3 < (pixels == 255).all(1).mean() < 0.95
