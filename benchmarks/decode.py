"""What does a cache save? Greedy generation with one against the full pass for every token, the same tokens out.

python benchmarks/decode.py [--models=transformer,chiar,cerebra] [--kv=all,routed] [--batch=1,8] [--length=512]
                            [--prompt=64] [--steps=16] [--width=128] [--depth=4] [--rounds=5] [--out=FILE.json]

How it is measured, and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402  (the checkout's, installed or not)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from cerebra_jax import config  # noqa: E402
from cerebra_jax.cost import timing  # noqa: E402
from cerebra_jax.models import model as models  # noqa: E402
from cerebra_jax.models import sampling as sample  # noqa: E402

VOCAB = 4096


def model_of(name: str, kv: str, args: argparse.Namespace) -> models.Model:
    values = {"name": name, "depth": args.depth, "width": args.width, "heads": max(1, args.width // 32),
              "ffn_width": 4 * args.width, "route": {"kv": kv}}  # fmt: skip
    return models.build(config.parse({"net": values, "task": {"seq_len": args.length}}), VOCAB)


def measure(name: str, kv: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of both ways, and their ratio; SystemExit where they write different tokens."""
    model, L, P = model_of(name, kv, args), args.length, args.prompt
    rng, ex_B = np.random.default_rng(0), np.arange(batch, dtype=np.int32)
    ids_BxP = rng.integers(0, VOCAB, (batch, P)).astype(np.int32)
    variables = model.init(
        jax.random.key(0), {"inputs_BxL": np.zeros((batch, L), np.int32), "ex_B": ex_B}
    )

    def cached(count: int):
        return jax.jit(
            lambda ids, n: sample.generate(model, variables, jax.random.key(0), ids, n, count)
        )

    @jax.jit
    def whole(ids_BxP):
        def step(text_BxL, at):
            out, _ = model.apply(
                variables, {"inputs_BxL": text_BxL, "ex_B": ex_B}, models.neutral_knobs()
            )
            logits_BxV = out.h[:, at - 1].astype(jnp.float32) @ out.head_VxD.T
            token_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
            return text_BxL.at[:, at].set(token_B), token_B

        text_BxL = jnp.pad(ids_BxP, ((0, 0), (0, L - P)))
        return jax.lax.scan(step, text_BxL, P + jnp.arange(args.steps))[1].T

    length_B, count = np.full(batch, P, np.int32), L - P
    with_cache = cached(count)
    tokens, cache = with_cache(ids_BxP, length_B)
    if not np.array_equal(tokens[:, : args.steps], whole(ids_BxP)):
        raise SystemExit(f"{name}, kv={kv}: not the tokens that the full pass writes")
    share = float(np.asarray(cache.kept_RxBxL)[:, :, P:].mean()) if cache.kept_RxBxL.size else 0.0

    def run(fn, *given):
        def repeat(n: int) -> None:
            for _ in range(n):
                out = fn(*given)
            jax.block_until_ready(out)

        return timing.here(repeat)

    runs = {"cached": run(with_cache, ids_BxP, length_B), "whole": run(whole, ids_BxP)}
    # per token of a row; reading the prompt is part of the cached time
    tokens_of, cells = {"cached": count, "whole": args.steps}, {name: [] for name in runs}
    for found in timing.rounds_of(runs, args.rounds):
        for way, cell in found.items():
            cells[way].append(timing.Cell(cell.wall / tokens_of[way], cell.cpu / tokens_of[way]))
    rates = {
        way: batch / statistics.median(cell.wall for cell in found) for way, found in cells.items()
    }
    return {
        "model": name, "kv": kv, "batch": batch, "kept": share, "tokens_per_s": rates,
        "flops": {"cached": model.token.mean(share), "whole": model.cost.executed_flops},
        "ratio": timing.compare(cells["whole"], cells["cached"])._asdict(),
    }  # fmt: skip


def show(r: dict[str, Any]) -> str:
    t, rates, flops = r["ratio"], r["tokens_per_s"], r["flops"]
    return (f"{r['model']:12} {r['kv']:7} {r['batch']:5} {r['kept']:6.3f} {flops['cached'] / 1e6:8.2f} "
            f"{flops['whole'] / flops['cached']:8.0f}x {rates['cached']:9.0f} {rates['whole']:9.1f} "
            f"{t['median']:7.1f}x [{t['q1']:.1f}, {t['q3']:.1f}]{' noisy' if t['noisy'] else ''}")  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = lambda s: s.split(",")  # noqa: E731
    parser.add_argument("--models", type=words, default="transformer,chiar,cerebra")
    parser.add_argument(
        "--kv", type=words, default="all,routed", help="which tokens are keys, of routed models"
    )
    parser.add_argument("--batch", type=lambda s: [int(x) for x in s.split(",")], default="1,8")
    for name, value in (
        ("length", 512),
        ("prompt", 64),
        ("steps", 16),
        ("width", 128),
        ("depth", 4),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    return parser.parse_args()


def main() -> None:
    args, before = options(), timing.machine()
    print(f"depth {args.depth}, D {args.width}, L {args.length}, prompt {args.prompt}, float32, untrained; "
          f"{args.rounds} rounds on {before['cores']} x {before['cpu']}, load {before['load'][0]:.1f}")  # fmt: skip
    print(f"{'model':12} {'keys':7} {'batch':>5} {'kept':>6} {'MFLOP/token':>11} {'fewer':>6} {'tokens/s':>9} "
          f"{'full pass':>9} {'faster':>8}")  # fmt: skip
    rows = []
    for name, kv, batch in itertools.product(args.models, args.kv, args.batch):
        if name != "transformer" or kv == args.kv[0]:
            rows.append(measure(name, kv, batch, args))
            print(show(rows[-1]), flush=True)
    if args.out:
        text = {"args": {k: str(v) for k, v in vars(args).items()}, "machine": before, "rows": rows}
        args.out.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
