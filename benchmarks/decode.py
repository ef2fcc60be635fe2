"""Compares greedy generation with a cache to a full pass for every token.

Both must write the same tokens.

python benchmarks/decode.py [--models=transformer,chiar,cerebra] [--kv=all,routed] [--batch=1,8]
                            [--length=512] [--prompt=64] [--steps=16] [--width=128] [--depth=4]
                            [--rounds=5] [--out=FILE.json]

benchmarks/README.md says how it is measured, and what the columns mean.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax import config
from cerebra_jax.cost import timing
from cerebra_jax.models import model as models
from cerebra_jax.models import sampling

VOCAB = 4096


def model_of(name: str, kv: str, args: argparse.Namespace) -> models.Model:
    """Returns an untrained model; kv says which tokens are keys of a routed one."""
    net = {
        "name": name,
        "depth": args.depth,
        "width": args.width,
        "heads": max(1, args.width // 32),
        "ffn_width": 4 * args.width,
        "route": {"kv": kv},
    }
    return models.build(config.parse({"net": net, "task": {"seq_len": args.length}}), VOCAB)


def writers(
    model: models.Model, variables: Any, args: argparse.Namespace
) -> tuple[Callable, Callable]:
    """Returns cached(ids_BxP, length_B) and full_pass(ids_BxP), jitted.

    The first writes all that fits behind the prompt, and returns its cache too; the second writes
    args.steps tokens.
    """
    L = args.length
    P = args.prompt

    @jax.jit
    def cached(ids_BxP, length_B):
        key = jax.random.key(0)
        return sampling.generate(model, variables, key, sampling.Prompts(ids_BxP, length_B), L - P)

    # a pass of all L tokens for each one that is written
    @jax.jit
    def full_pass(ids_BxP):
        ex_B = jnp.arange(ids_BxP.shape[0], dtype=jnp.int32)

        def step(text_BxL, at):
            batch = {"inputs_BxL": text_BxL, "ex_B": ex_B}
            out, _ = model.apply(variables, batch, models.neutral_knobs())
            logits_BxV = out.h[:, at - 1].astype(jnp.float32) @ out.head_VxD.T
            token_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
            return text_BxL.at[:, at].set(token_B), token_B

        text_BxL = jnp.pad(ids_BxP, ((0, 0), (0, L - P)))
        _, token_TxB = jax.lax.scan(step, text_BxL, P + jnp.arange(args.steps))
        return token_TxB.T

    return cached, full_pass


def repeated(fn: Callable, *inputs: Any) -> Callable[[int], timing.Cell]:
    """Returns fn(*inputs), n times, as something to be timed."""

    def run(n: int) -> None:
        for _ in range(n):
            out = fn(*inputs)
        jax.block_until_ready(out)

    return timing.here(run)


def measure(name: str, kv: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measures tokens per second of both ways, and their ratio.

    Raises SystemExit where the two write different tokens.
    """
    # the model, and a prompt of random tokens
    model = model_of(name, kv, args)
    L = args.length
    P = args.prompt
    ids_BxP = np.random.default_rng(0).integers(0, VOCAB, (batch, P)).astype(np.int32)
    example = {
        "inputs_BxL": np.zeros((batch, L), np.int32),
        "ex_B": np.arange(batch, dtype=np.int32),
    }
    variables = model.init(jax.random.key(0), example)
    length_B = np.full(batch, P, np.int32)

    # both ways write the same
    cached, full_pass = writers(model, variables, args)
    token_BxT, cache = cached(ids_BxP, length_B)
    if not np.array_equal(token_BxT[:, : args.steps], full_pass(ids_BxP)):
        raise SystemExit(f"{name}, kv={kv}: not the tokens that the full pass writes")
    kept_RxBxL = np.asarray(cache.kept_RxBxL)
    kept = float(kept_RxBxL[:, :, P:].mean()) if kept_RxBxL.size else 0.0

    # seconds per token of a row; reading the prompt is part of the cached time
    runs = {
        "cached": repeated(cached, ids_BxP, length_B),
        "whole": repeated(full_pass, ids_BxP),
    }
    tokens = {"cached": L - P, "whole": args.steps}
    cells = {
        way: [timing.Cell(cell.wall / tokens[way], cell.cpu / tokens[way]) for cell in found]
        for way, found in common.collect(runs, args.rounds).items()
    }
    median = {way: statistics.median(cell.wall for cell in found) for way, found in cells.items()}
    return {
        "model": name,
        "kv": kv,
        "batch": batch,
        "kept": kept,
        "tokens_per_s": {way: batch / seconds for way, seconds in median.items()},
        "flops": {"cached": model.token.mean(kept), "whole": model.cost.executed_flops},
        "ratio": timing.compare(cells["whole"], cells["cached"])._asdict(),
    }


def show(row: dict[str, Any]) -> str:
    """Writes a row of the table."""
    ratio = row["ratio"]
    rates = row["tokens_per_s"]
    flops = row["flops"]
    noisy = " noisy" if ratio["noisy"] else ""
    return (
        f"{row['model']:12} {row['kv']:7} {row['batch']:5} {row['kept']:6.3f} "
        f"{flops['cached'] / 1e6:8.2f} {flops['whole'] / flops['cached']:8.0f}x "
        f"{rates['cached']:9.0f} {rates['whole']:9.1f} "
        f"{ratio['median']:7.1f}x [{ratio['q1']:.1f}, {ratio['q3']:.1f}]{noisy}"
    )


def options() -> argparse.Namespace:
    sizes = {"length": 512, "prompt": 64, "steps": 16, "width": 128, "depth": 4, "rounds": 5}
    parser = common.parser(__doc__, **sizes)
    parser.add_argument("--models", type=common.words, default="transformer,chiar,cerebra")
    parser.add_argument(
        "--kv", type=common.words, default="all,routed", help="which tokens are keys, if routed"
    )
    parser.add_argument("--batch", type=common.integers, default="1,8")
    return parser.parse_args()


def main() -> None:
    args = options()
    machine = timing.machine()
    print(
        f"depth {args.depth}, D {args.width}, L {args.length}, prompt {args.prompt}, float32, "
        f"untrained; {args.rounds} rounds on {machine['cores']} x {machine['cpu']}, "
        f"load {machine['load'][0]:.1f}"
    )
    print(
        f"{'model':12} {'keys':7} {'batch':>5} {'kept':>6} {'MFLOP/token':>11} {'fewer':>6} "
        f"{'tokens/s':>9} {'full pass':>9} {'faster':>8}"
    )
    rows = []
    for name, kv, batch in itertools.product(args.models, args.kv, args.batch):
        if name == "transformer" and kv != args.kv[0]:  # it routes nothing
            continue
        rows.append(measure(name, kv, batch, args))
        print(show(rows[-1]), flush=True)
    common.write(args, machine, rows=rows)


if __name__ == "__main__":
    main()
