"""generate: the best checkpoint of a run on text continues prompts, with a cache."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from cerebra_jax.checks import need
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.flags import Request
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.tasks.build import build
from cerebra_jax.train.record import workdir as folder


def run(request: Request) -> None:
    """Prints each prompt with its continuation, then tokens a second and FLOPs a token."""
    cfg, prompts = request.cfg, _prompts(request.options.get("prompt", ""))
    count, seed = _number(request, "max_tokens", "64", int, 1), _number(request, "seed", "0", int, 0)
    heat, top_p = _number(request, "temperature", "1", float, 0), _number(request, "top_p", "1", float, 0)
    need(cfg.task.name == "text", f"the run's task is {cfg.task.name}", "generate continues text: task.name=text")
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = build(cfg)
        rows = [[task.bos, *task.encode(prompt)] for prompt in prompts]
        length_B, L = np.array([len(row) for row in rows], np.int32), task.shape.seq_len
        what = f"a prompt of {max(length_B) - 1:,} tokens, the mark before it and {count:,} more exceed {L:,}"
        need(max(length_B) + count <= L, what, "shorten the prompt, or give a smaller --max_tokens")
        prompt_BxP = np.stack([np.pad(row, (0, max(length_B) - len(row))) for row in rows]).astype(np.int32)
        compile_cache(cfg.task.cache_dir)
        import jax  # from here on

        from cerebra_jax.models.decoding import sample
        from cerebra_jax.train.record import certificate, session

        s = session.Session(cfg, task)
        state = certificate.trained(cfg, task, request.workdir, print)
        s.adopt_of(state)
        model = s.model
        args = ({"params": state.params, "routing": state.routing}, jax.random.key(seed), prompt_BxP, length_B)
        write = jax.jit(lambda *args: sample.generate(model, *args, count, heat, top_p)).lower(*args).compile()
        start = time.perf_counter()
        token_BxT, cache = jax.block_until_ready(write(*args))
        rate = token_BxT.size / (time.perf_counter() - start)
    for prompt, ids in zip(prompts, np.asarray(token_BxT), strict=True):
        print(prompt + task.decode(ids))
    kept = [np.asarray(cache.kept_RxBxL)[:, b, n : n + count].ravel() for b, n in enumerate(length_B)]
    kept, dense = float(np.mean(kept)) if kept[0].size else 0.0, model.dense_token.executed_flops
    spent, most = model.token.mean(kept), model.token.executed_flops
    print(f"{rate:,.0f} tokens/s, prompts read included; {kept:.0%} of the routed tokens kept")
    print(f"{si(spent, 'FLOP')} a token for the decisions taken (at most {si(most, 'FLOP')}), "
          f"{spent / dense:.2f} of the dense Transformer's")  # fmt: skip


def _prompts(text: str) -> list[str]:
    need(bool(text), "--prompt is missing", "write --prompt='Some words', or --prompt=@FILE with a prompt a line")
    if not text.startswith("@"):
        return [text]
    need(Path(text[1:]).is_file(), f"there is no {text[1:]}", "--prompt=@FILE takes a file with a prompt a line")
    lines = [line for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line]
    need(bool(lines), f"{text[1:]} is empty", "write a prompt a line")
    return lines


def _number(request: Request, name: str, default: str, kind: type, least: float) -> float:
    text = request.options.get(name, default)
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    need(least <= value < float("inf"), f"--{name} is {text!r}", f"give a number ({kind.__name__}) of at least {least}")
    return value
