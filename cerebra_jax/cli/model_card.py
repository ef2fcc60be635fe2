"""Writes what stands beside an exported model: its card, its configuration, its tokenizer.

Imports no JAX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.config import RunCfg
from cerebra_jax.tasks import registry
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder


class Made(NamedTuple):
    """Holds what was exported."""

    cfg: RunCfg
    task: Any  # None where its data are not at hand
    step: int
    score: float
    facts: list[str]  # lines for the card


def write(to: Path, made: Made, use: str) -> list[Path]:
    """Writes FILE.md, FILE.config.json and, of a text with a vocabulary, FILE.tokenizer.json.

    Returns their paths.

    `use` is Python that runs the file.
    """
    cfg, task = made.cfg, made.task
    page, configuration = to.with_name(f"{to.name}.md"), to.with_name(f"{to.name}.config.json")
    written = [page, configuration]
    # the tokenizer and the configuration
    tokenizer = None
    vocabulary = getattr(task, "vocabulary", "")
    if vocabulary:
        tokenizer = to.with_name(f"{to.name}.tokenizer.json")
        tokenizer.write_text(vocabulary, encoding="utf-8")
        written.append(tokenizer)
    folder.write_json(configuration, config.to_dict(cfg))
    kept = to.with_name(f"{to.name}.{preprocessing.FILE}")
    if task is not None and registry.learnt(task):
        preprocessing.write(kept, cfg, task)
        written.append(kept)
    # the card
    net = cfg.net
    data = "not known here" if task is None else task.dataset
    weights = "int8 in linear layers, float32 elsewhere" if cfg.quant.stored else "float32"
    notice = getattr(task, "notice", "")
    lines = [
        f"# {to.name}",
        "",
        f"- model: {net.name}, {net.depth} layers of width {net.width}, {net.heads} heads, "
        f"made by cerebra_jax {cerebra_jax.__version__}",
        f"- task: {cfg.task.name}, data: {data}; checkpoint {made.step:,}, "
        f"validation score {made.score:.5g} (less is better)",
        f"- weights: {weights}",
        *(f"- {fact}" for fact in made.facts),
        *_tokens(cfg, task, tokenizer),
        *([f"- {notice}"] if notice else []),
        f"- configuration: {configuration.name}; `python -m cerebra_jax keys` explains every key",
        "",
        "```python",
        use,
        "```",
        "",
    ]
    page.write_text("\n".join(lines), encoding="utf-8")
    return written


def _tokens(cfg: RunCfg, task: Any, file: Path | None) -> list[str]:
    """Returns the line on tokens, of a task that reads texts."""
    if cfg.task.name not in ("text", "intent"):
        return []
    name = cfg.task.tokenizer
    if name == "bytes":
        return ["- tokens: the bytes of the UTF-8 text, 256 before the first"]
    if file is None:
        return [f"- tokens: {name}; its vocabulary is made from the data, which were not at hand"]
    if name == "words":
        what = "a list of lower-case words from id 1 on; 0 is any other word"
        return [f"- tokens: {file.name}, {what}"]
    return [
        f"- tokens: {file.name}, for `tokenizers.Tokenizer.from_file`; {task.bos} before the first"
    ]
