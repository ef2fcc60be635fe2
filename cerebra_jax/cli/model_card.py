"""What stands beside an exported model: its card, its configuration, its tokenizer. Imports no JAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.config import RunCfg
from cerebra_jax.training import workdir as folder


def write(
    to: Path, cfg: RunCfg, task: Any, step: int, score: float, facts: list[str], how: str
) -> list[Path]:
    """FILE.md, FILE.config.json and, of a text with a vocabulary, FILE.tokenizer.json. `task`: None where its data are
    not at hand. `how`: Python that runs it."""
    written = [to.with_name(f"{to.name}.md"), to.with_name(f"{to.name}.config.json")]
    vocabulary = getattr(task, "vocabulary", "")
    if vocabulary:
        written.append(to.with_name(f"{to.name}.tokenizer.json"))
        written[-1].write_text(vocabulary, encoding="utf-8")
    folder.write_json(written[1], config.to_dict(cfg))
    net, data = cfg.net, "not known here" if task is None else task.dataset
    lines = [
        f"# {to.name}",
        "",
        f"- model: {net.name}, {net.depth} layers of width {net.width}, {net.heads} heads, made by cerebra_jax "
        f"{cerebra_jax.__version__}",
        f"- task: {cfg.task.name}, data: {data}; checkpoint {step:,}, validation score {score:.5g} (less is better)",
        f"- weights: {'int8 in linear layers, float32 elsewhere' if cfg.quant.stored else 'float32'}",
        *(f"- {fact}" for fact in facts),
        *_tokens(cfg, task, written[-1] if vocabulary else None),
        *([f"- {task.notice}"] if getattr(task, "notice", "") else []),
        f"- configuration: {written[1].name}; every key is explained by `python -m cerebra_jax.main --help`",
        "",
        "```python",
        how,
        "```",
        "",
    ]
    written[0].write_text("\n".join(lines), encoding="utf-8")
    return written


def _tokens(cfg: RunCfg, task: Any, file: Path | None) -> list[str]:
    if cfg.task.name not in ("text", "intent"):
        return []
    name = cfg.task.tokenizer
    if name == "bytes":
        return ["- tokens: the bytes of the UTF-8 text, 256 before the first"]
    if file is None:
        return [f"- tokens: {name}; its vocabulary is made from the data, which were not at hand"]
    if name == "words":
        return [
            f"- tokens: {file.name}, a list of lower-case words from id 1 on; 0 is any other word"
        ]
    return [
        f"- tokens: {file.name}, for `tokenizers.Tokenizer.from_file`; {task.bos} before the first"
    ]
