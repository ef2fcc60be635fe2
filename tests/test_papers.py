"""docs/papers.md tells the truth: its files, names, keys, tests, verdicts and figures are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cerebra_jax import config

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "papers.md"
TEXT = PAGE.read_text(encoding="utf-8")
PAPERS = ("Cerebra", "CHIAR-Former", "Mixture-of-Depths")
BULLETS = ["Paper", "Here", "Differs", "Tests", "Claim"]
VERDICT = r"\*\*(holds|does not hold|cannot tell)\*\*"
FIGURE = r"\d[\d,]*\.\d+"
LINKS = dict(re.findall(r"^\[(\w+)\]: (\S+)$", TEXT, re.M))


def headed(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (level, title, text to the next heading) of each heading; code holds no headings."""
    title, level, body, code = "", 0, [], False
    for line in text.splitlines():
        code ^= line.startswith("```")
        found = None if code else re.match(r"(#+) (.+)", line)
        if found is None:
            body.append(line)
            continue
        yield level, title, "\n".join(body)
        level, title, body = len(found[1]), found[2], []
    yield level, title, "\n".join(body)


def part(text: str, anchor: str) -> str:
    """Returns what stands under the heading that a link means, its parts included; else ""."""
    found, depth = "", 0
    for level, title, body in headed(text):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        if depth and level <= depth:
            break
        if depth or slug == anchor:
            depth = depth or level
            found += f"\n{body}"
    return found


def sections() -> dict[str, dict[str, str]]:
    """Returns {paper, section: {bullet: text}} of the parts of the page about each paper."""
    found, paper = {}, ""
    for level, title, body in headed(TEXT):
        if level == 2:
            paper = title
        if level != 3 or paper not in PAPERS:
            continue
        bullets = re.findall(r"^- \*\*(\w+)\*\*:\s+(.*?)(?=^- |\Z)", body, re.M | re.S)
        assert [name for name, _ in bullets] == BULLETS, title
        found[f"{paper}, {title}"] = dict(bullets)
    return found


def rows() -> dict[str, tuple[str, str]]:
    """Returns {number: (verdict, evidence)} of the tables of verdicts."""
    lines = re.findall(rf"^\| (\w\d+) \| .* \| {VERDICT} \| (.*) \|$", TEXT, re.M)
    found = {number: (verdict, evidence) for number, verdict, evidence in lines}
    assert len(found) == len(lines) == len(re.findall(r"^\| \w\d+ \|", TEXT, re.M))
    return found


def file_of(name: str) -> Path:
    """Returns the file that the page means: from the checkout, or from the package."""
    return next((p for p in (ROOT / name, ROOT / "cerebra_jax" / name) if p.exists()), ROOT / name)


SECTIONS = sections()
ROWS = rows()


def test_every_file_and_every_name_in_it_is_there():
    named = re.findall(r"`([\w./]+/[\w./]+\.(?:py|md))(?:::(\w+))?`", TEXT)
    assert len(named) > 100
    missing = []
    for name, symbol in named:
        path = file_of(name)
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        pattern = rf"^(?:(?:def|class) {symbol}\b|{symbol} = )"
        if not source or symbol and not re.search(pattern, source, re.M):
            missing.append(f"{name}::{symbol}")
    assert not missing


def test_every_key_and_every_value_is_one_of_the_configuration():
    keys = config.fields()
    tops = {key.split(".")[0] for key in keys if "." in key}
    written = set(re.findall(r"`((?:[a-z_]+\.)+[a-z_]+)(?:=([^`\s]+))?`", TEXT))
    found = {(key, value) for key, value in written if key.split(".")[0] in tops}
    for bullets in SECTIONS.values():
        listed = re.search(r"\bkeys?\s(.*)", bullets["Here"], re.S)
        spans = re.findall(r"`([^`]+)`", listed[1]) if listed else []
        found |= {(key, "") for key in spans if "/" not in key}
    assert len(found) > 50
    for key, value in found:
        assert key in keys, key
        of = keys[key].metadata["of"]
        assert not value or not of or value in of, f"{key}={value}"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_names_files_tests_and_its_verdicts(section: str):
    bullets = SECTIONS[section]
    assert re.search(r"`[\w./]+\.py(?:::\w+)?`", bullets["Here"])
    tests = re.findall(r"`([^`]+)`", bullets["Tests"])
    assert tests and all(re.fullmatch(r"tests/[\w/]+\.py::test_\w+", name) for name in tests)
    claim = " ".join(bullets["Claim"].split())
    said = re.findall(rf"\b([A-Z]\d+) {VERDICT}", claim)
    assert said or claim.startswith("none")
    assert [number for number, _ in said] == re.findall(r"\b[A-Z]\d+\b", claim)
    for number, verdict in said:
        assert ROWS[number][0] == verdict, number


def test_every_verdict_belongs_to_a_section():
    claims = " ".join(bullets["Claim"] for bullets in SECTIONS.values())
    assert set(re.findall(r"\b[A-Z]\d+\b", claims)) == ROWS.keys()


@pytest.mark.parametrize("label", LINKS)
def test_a_table_that_is_pointed_at_is_there_and_used(label: str):
    name, _, anchor = LINKS[label].partition("#")
    assert part((PAGE.parent / name).read_text(encoding="utf-8"), anchor)
    assert f"[{label}]" in " ".join(evidence for _, evidence in ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_figures_stand_in_the_tables_that_the_row_names(number: str):
    verdict, evidence = ROWS[number]
    labels = [label for label in LINKS if f"[{label}]" in evidence]
    if not labels:
        assert verdict == "cannot tell"
        assert "ot measured here" in evidence or "smoke test only" in evidence
    known: set[str] = set()
    for label in labels:
        name, _, anchor = LINKS[label].partition("#")
        text = part((PAGE.parent / name).read_text(encoding="utf-8"), anchor)
        known |= set(re.findall(FIGURE, text))
    assert set(re.findall(FIGURE, evidence)) <= known


def test_what_contains_zero_is_never_said_to_hold():
    """An interval around zero may stand beside another one that is clear of it, never alone."""
    for number, (verdict, evidence) in ROWS.items():
        pairs = re.findall(rf"\[([-+]?{FIGURE}), ([-+]?{FIGURE})\]", evidence)
        ends = [tuple(float(end.replace(",", "")) for end in pair) for pair in pairs]
        clear = [low * high > 0 for low, high in ends]
        assert verdict != "holds" or not clear or any(clear), number
