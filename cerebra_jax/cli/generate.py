"""generate: continues prompts with the best checkpoint of a run on text, with a cache."""

from __future__ import annotations

from pathlib import Path

from cerebra_jax.checks import require
from cerebra_jax.cli import arguments
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.text.reading import readable
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

MOST_TOKENS = 1_000_000
HOTTEST = 1000.0  # every token is as likely as any other long before


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    arguments.add_run(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the text to continue, which may be empty; @FILE: each of its lines, in one batch",
    )
    parser.add_argument(
        "--max_tokens",
        metavar="N",
        type=arguments.whole(1, MOST_TOKENS),
        default=64,
        help="tokens to write (default 64)",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=arguments.number(0, HOTTEST),
        default=1.0,
        help="0: always the likeliest token (default 1)",
    )
    parser.add_argument(
        "--top_p",
        metavar="P",
        type=arguments.number(0, 1),
        default=1.0,
        help="draw from the likeliest tokens that hold this probability (default 1)",
    )
    parser.add_argument(
        "--stop", metavar="TEXT", default="", help="a mark before which a text ends"
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=arguments.whole(0, arguments.LARGEST_SEED),
        default=0,
        help="of the draws (default 0)",
    )
    arguments.add_verbose(parser)


check = arguments.of_run


def run(request: Request) -> None:
    """Prints each prompt with its continuation, then tokens a second and FLOPs a token."""
    cfg, prompts = request.cfg, _prompts(request.prompt)
    require(
        cfg.task.name == "text",
        f"the run's task is {cfg.task.name}",
        "generate continues text: task.name=text",
    )
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        task = preprocessing.restore(cfg, request.workdir, print)
        compile_cache(cfg.task)
        from cerebra_jax.trained import Trained  # JAX from here on

        run = Trained(request.workdir, cfg, task)
        written = run.generate(
            prompts,
            request.max_tokens,
            request.temperature,
            request.top_p,
            request.seed,
            request.stop,
        )
    for prompt, text in zip(prompts, written.texts, strict=True):
        print(prompt + text)
    L = run.task.shape.seq_len
    if written.cut:
        print(f"{written.cut} prompts exceed {L:,} tokens: the last {L // 2:,} of each were read")
    if written.turns > 1:
        print(
            f"longer than the context of {L:,} tokens: written in {written.turns} turns, each "
            f"after the last {L // 2:,} tokens of the one before"
        )
    # what it took
    token, dense = run.model.token, run.model.dense_token.executed_flops
    assert token is not None, "a model that has written can decode"
    spent, most = token.mean(written.kept), token.executed_flops
    share = f"{written.kept:.0%} of the routed tokens kept"
    print(f"{written.rate:,.0f} tokens/s, prompts read included; {share}")
    print(
        f"{si(spent, 'FLOP')} a token for the decisions taken (at most {si(most, 'FLOP')}), "
        f"{spent / dense:.2f} of the dense Transformer's"
    )


def _prompts(text: str | None) -> list[str]:
    """Returns the prompts that --prompt gives."""
    hint = "write --prompt='Some words', or --prompt=@FILE with a prompt a line"
    if text is None:
        raise UserError("--prompt is missing", hint)
    if not text.startswith("@"):
        return [readable(text) if text else ""]
    path = Path(text[1:])
    written = arguments.text_of(path, "--prompt=@FILE takes a file with a prompt a line")
    lines = [line for line in written.splitlines() if line]
    require(bool(lines), f"{path} is empty", "write a prompt a line")
    return lines
