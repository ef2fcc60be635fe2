"""Judges programs before compilation, so that it needs no compiler for their devices.

python benchmarks/compiled.py --gate

Each program is a training step of configs/wikitext.py, traced and lowered for a GPU or a TPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import lowered_program
import target_programs

from cerebra_jax.kernels.fused_call import lowering_for

# no width of the model; on a TPU long enough for Splash attention of the kept tokens
CELLS = {"gpu": target_programs.Cell(1536, 2, 6), "tpu": target_programs.Cell(6144, 2, 6)}
LOWERING = {"gpu": "cuda", "tpu": "tpu"}
FUSED = {"gpu": target_programs.MODELS, "tpu": target_programs.MODELS}
"""The models whose training step calls a fused attention kernel, forward and backward."""
WIDEST = 0.001
"""Part of the FLOPs of matmuls that may be in float32."""


def problems(text: str, model: str, platform: str, length: int) -> Iterator[str]:
    """Yields what is wrong with the text of a lowered training step."""
    calls = lowered_program.fused_calls(text, platform)
    if model in FUSED[platform] and calls < 2:
        yield f"{calls} calls of a fused attention kernel, forward and backward are 2"
    for sizes in sorted(lowered_program.squares(text, length)):
        yield f"an array of all pairs of tokens: {'x'.join(map(str, sizes))}"
    scattered = lowered_program.float_scatters(text)
    embedding = platform == "tpu"  # its gradient is a scatter there, and has no atomics
    for sizes, dtype in scattered[embedding:]:
        yield f"floats are scattered into {dtype} {'x'.join(map(str, sizes))}"
    for line in lowered_program.host_calls(text):
        yield f"the host is called: {line}"
    wide = lowered_program.wide_dots(text)
    if wide > WIDEST:
        yield f"{wide:.1%} of the FLOPs of matmuls are in float32"


def lowered(model: str, platform: str) -> str:
    """Returns the text of a training step for a platform."""
    cell = CELLS[platform]
    cfg = target_programs.configuration(model, cell, {})
    with lowering_for(platform):
        program = target_programs.program(cfg, cell, platform)
        return program.lower_for(LOWERING[platform]).as_text()


def judge(models: Sequence[str], platforms: Sequence[str] = tuple(LOWERING)) -> int:
    """Prints what is wrong with each program; returns how many have something."""
    start, failed = time.monotonic(), 0
    for platform in platforms:
        for model in models:
            text, length = lowered(model, platform), CELLS[platform].length
            found = list(problems(text, model, platform, length))
            failed += bool(found)
            print(f"{platform} {model:8} {'; '.join(found) or 'ok'}", flush=True)
    count = len(models) * len(platforms)
    print(
        f"{count - failed} of {count} programs as they should be, {time.monotonic() - start:.0f} s"
    )
    return failed
