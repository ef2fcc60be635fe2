"""A value of an option that cannot be meant is one line with its range, exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerebra_jax.cli import arguments, generate, heatmap
from cerebra_jax.config import parse
from cerebra_jax.errors import UserError
from cerebra_jax.main import main

RUN = "--workdir=nowhere"
WRONG = {
    "generate --seed=99999999999999999999": "a whole number from 0 to 2,147,483,647",
    f"generate --seed={'9' * 5000}": "a whole number from 0 to 2,147,483,647",
    "generate --max_tokens=1000000000000": "a whole number from 1 to 1,000,000",
    "generate --temperature=nan": "a number from 0 to 1000",
    "generate --temperature=inf": "a number from 0 to 1000",
    "generate --top_p=5": "a number from 0 to 1",
    "generate --top_p=-0.1": "a number from 0 to 1",
    "analyze --windows=99999999999": "a whole number from 2 to 1,000,000",
    "export --rows=99999999999": "a whole number from 1 to 65,536",
    "shrink --tile=99999999999": "a whole number from 0 to 1,048,576",
    "calibrate --share=nan": "give the share of tokens to route",
    "import --tau=1e400": "give a threshold from 0 to 1",
}


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[:40])
def test_a_value_out_of_its_range_is_one_line(words, capsys):
    assert main([*words.split(), RUN] if "import" not in words else words.split()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert WRONG[words] in line and len(line) < 160


def test_a_range_holds_its_ends():
    assert [arguments.whole(2, 10)(text) for text in ("2", "10", "00007")] == [2, 10, 7]
    assert [arguments.number(0, 1)(text) for text in ("0", "1", "5e-1")] == [0, 1, 0.5]


NO_TEXT = {
    b"one\ntw\xff": ":2 is not text in UTF-8 (byte 0xff)",
    b"\x7fELF\x02\0\0": ":1 holds a NUL byte",
    b"": " is empty",
}


@pytest.mark.parametrize("data", NO_TEXT)
def test_a_file_of_prompts_that_is_no_text_is_named(data: bytes, tmp_path: Path):
    (tmp_path / "prompts").write_bytes(data)
    with pytest.raises(UserError) as raised:
        generate._prompts(f"@{tmp_path / 'prompts'}")
    assert f"prompts{NO_TEXT[data]}" in raised.value.what


def test_a_prompt_that_is_no_text_is_refused():
    assert generate._prompts("") == [""]
    with pytest.raises(UserError, match="not UTF-8"):
        generate._prompts("a\udcff")  # as Python reads a stray byte of a command line


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(arguments, "LARGEST_TEXT", 1 << 20)
    (tmp_path / "large").write_bytes(b"a" * (1 << 20) + b"b")
    with pytest.raises(UserError, match="larger than 1 MiB; give a part of it"):
        arguments.text_of(tmp_path / "large", "")


def test_a_model_without_a_routed_layer_has_no_map_of_routing():
    cfg = parse({"net": {"name": "chiar", "depth": 2}})
    with pytest.raises(UserError, match="net.depth is 2"):
        heatmap.need_routed(cfg, "heatmap")
