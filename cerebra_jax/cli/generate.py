"""generate: the best checkpoint of a run on text continues prompts, with a cache."""

from __future__ import annotations

from pathlib import Path

from cerebra_jax.checks import need
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder


def run(request: Request) -> None:
    """Prints each prompt with its continuation, then tokens a second and FLOPs a token."""
    cfg, prompts = request.cfg, _prompts(request.options.get("prompt", ""))
    count, seed = (
        _number(request, "max_tokens", "64", int, 1),
        _number(request, "seed", "0", int, 0),
    )
    heat, top_p = (
        _number(request, "temperature", "1", float, 0),
        _number(request, "top_p", "1", float, 0),
    )
    need(
        cfg.task.name == "text",
        f"the run's task is {cfg.task.name}",
        "generate continues text: task.name=text",
    )
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = build(cfg)
        compile_cache(cfg.task.cache_dir)
        from cerebra_jax.trained import Trained  # JAX from here on

        run = Trained(request.workdir, cfg, task)
        written = run.generate(prompts, count, heat, top_p, seed)
    for prompt, text in zip(prompts, written.texts, strict=True):
        print(prompt + text)
    token, dense = run.model.token, run.model.dense_token.executed_flops
    spent, most = token.mean(written.kept), token.executed_flops
    print(
        f"{written.rate:,.0f} tokens/s, prompts read included; {written.kept:.0%} of the routed tokens kept"
    )
    print(f"{si(spent, 'FLOP')} a token for the decisions taken (at most {si(most, 'FLOP')}), "
          f"{spent / dense:.2f} of the dense Transformer's")  # fmt: skip


def _prompts(text: str) -> list[str]:
    need(
        bool(text),
        "--prompt is missing",
        "write --prompt='Some words', or --prompt=@FILE with a prompt a line",
    )
    if not text.startswith("@"):
        return [text]
    need(
        Path(text[1:]).is_file(),
        f"there is no {text[1:]}",
        "--prompt=@FILE takes a file with a prompt a line",
    )
    lines = [line for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line]
    need(bool(lines), f"{text[1:]} is empty", "write a prompt a line")
    return lines


def _number(request: Request, name: str, default: str, kind: type, least: float) -> float:
    text = request.options.get(name, default)
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    need(
        least <= value < float("inf"),
        f"--{name} is {text!r}",
        f"give a number ({kind.__name__}) of at least {least}",
    )
    return value
