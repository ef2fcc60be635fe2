"""Programs for devices that are not at hand: lowered here, where nothing can compile them."""

from __future__ import annotations

import sys

import pytest

from cerebra_jax.errors import UserError
from cerebra_jax.kernels.fused_call import lowering_for

SMALL = {"task.vocab_size": 260, "net.width": 32, "net.heads": 2, "net.ffn_width": 64}


@pytest.fixture
def programs(script):
    return script("target_programs")


def test_a_program_is_made_for_the_platform_that_is_asked_for(programs, script):
    facts = script("lowered_program")
    cell = programs.Cell(96, 2, 2)
    cfg = programs.configuration("dense", cell, SMALL, "smoke")
    texts = {}
    for platform, lowering in (("cpu", "cpu"), ("gpu", "cuda")):
        with lowering_for(platform):
            made = programs.program(cfg, cell, platform)
            texts[platform] = made.lower_for(lowering).as_text()
    assert facts.fused_calls(texts["gpu"], "gpu") == 2  # forward and backward
    assert facts.fused_calls(texts["cpu"], "gpu") == 0
    assert facts.squares(texts["cpu"], 96) and not facts.squares(texts["gpu"], 96)
    assert not facts.float_scatters(texts["gpu"])
    (scatter,) = facts.float_scatters(texts["cpu"])  # the gradient of the embedding
    assert scatter == ((260, 32), "f32")
    assert facts.wide_dots(texts["gpu"]) == 0 < sum(flops for _, flops in facts.dots(texts["gpu"]))
    assert not facts.host_calls(texts["gpu"])


def test_a_cell_reads_its_name(programs):
    assert programs.Cell.of("4096x8x6") == (4096, 8, 6, False)
    assert programs.Cell.of("4096x8x6").name == "4096x8x6"
    assert programs.Cell.of("decode").name == "decode"


def test_a_compiler_that_is_not_installed_is_named(script, monkeypatch):
    compiled = script("compiled")
    monkeypatch.setattr(compiled, "missing", lambda target: "a-wheel" if target == "v5e" else "")
    monkeypatch.setattr(sys, "argv", ["compiled.py"])
    with pytest.raises(UserError, match="v5e needs a-wheel; pip install"):
        compiled.main()


def test_a_row_that_fails_leaves_the_others(script, measure, monkeypatch):
    compiled = script("compiled")
    figures = compiled.figures([], compiled.TARGETS["h100"], 3)
    good = {"rows": 1, "peak_bytes": 2**30, "layers_a_turn": 1, **figures, "seconds": 2.0}

    def row(target, model, cell, settings):
        return {"error": "no memory"} if model == "chiar" else dict(good)

    monkeypatch.setattr(compiled, "missing", lambda target: "")
    monkeypatch.setattr(compiled, "in_process", row)
    found, shown = measure(compiled, ["--targets=h100", "--models=dense,chiar,mod"])
    assert [row.get("error") for row in found["rows"]] == [None, "no memory", None] * 4
    assert "no memory" in shown and shown.count(" 1.00") == 8


def test_a_program_that_is_not_understood_has_no_figures(script):
    compiled = script("compiled")
    compiled.compare(11e12, 12e12)
    with pytest.raises(ValueError, match=r"2\.7 TFLOP read .* 12 counted"):
        compiled.compare(2.7e12, 12e12)
