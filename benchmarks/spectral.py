"""The DCT of the features, CHIAR's filter iDCT(w * DCT(x)), and whole steps of CHIAR by every method, and back.

python benchmarks/spectral.py [--widths=64,128,256,512,768,1024,2048,4096] [--dtype=float32|bfloat16] [--rounds=7]
                              [--tokens=0] [--steps=64,128,256,512] [--out=FILE.json]

How it is measured, and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import dispatch_layers as layers  # noqa: E402  (the checkout's, installed or not)

from cerebra_jax import config  # noqa: E402
from cerebra_jax.cost import count as jaxpr  # noqa: E402
from cerebra_jax.cost import prices, timing
from cerebra_jax.kernels import dct as spectral  # noqa: E402
from cerebra_jax.kernels.cross_entropy import chunked_xent  # noqa: E402
from cerebra_jax.models import model as build  # noqa: E402

ELEMENTS = 1 << 22  # of a batch of tokens, where --tokens does not say otherwise
LEAST, MOST = 1024, 16_384  # tokens
PARTS = ("transform", "transform + backward", "filter", "filter + backward")
STEP = {
    "depth": 4,
    "L": 256,
    "texts": 8,
    "vocab": 1024,
}  # of a whole model; F = 4 D, 64 features a head


class Program(NamedTuple):
    run: Callable[[int], None]  # n repetitions, finished
    flops: int
    bytes: int  # of what goes in and what comes out
    error: float  # largest, of any output, relative to the largest of scipy's in float64; of a step, of its loss to fft's


def programs(part: str, D: int, tokens: int, dtype: str) -> dict[str, Program]:
    """{method: program} of a part, "transform" or "filter", with " + backward" where gradients are computed too."""
    rng = np.random.default_rng(D)
    x, c = (jnp.asarray(rng.standard_normal((tokens, D)), dtype) for _ in range(2))
    w = jnp.asarray(1 + 0.5 * rng.standard_normal(D), jnp.float32)
    kind, _, backward = part.partition(" + ")
    want = _reference(kind, bool(backward), *(np.asarray(a, np.float64) for a in (x, w, c)))
    if kind == "transform":
        fns = {m: lambda x, m=m: spectral.dct(x, m) for m in spectral.TRANSFORMS}
        args = (x,)
    else:
        fns = {m: lambda x, w, m=m: spectral.filtered(x, w, m) for m in spectral.METHODS}
        args = (x, w)
    made = {
        m: _program(_with_gradients(fn, c) if backward else fn, args, want) for m, fn in fns.items()
    }
    for method, program in made.items():
        once = prices.filter_flops(D, method) if kind == "filter" else prices.dct_flops(D, method)
        if not backward and program.flops != tokens * once:
            raise SystemExit(
                f"{part} by {method}: {once} FLOPs a token by the price list, {program.flops / tokens} in it"
            )
    if part == "filter":
        made["folded before"] = _program(
            lambda x, M_DxD: x @ M_DxD, (x, spectral.folded(w).astype(dtype)), want
        )
    return made


def steps(D: int, dtype: str) -> dict[str, Program]:
    """{net.route.dct: forward and backward pass of a whole CHIAR}, routed by thresholds as it is by default."""
    B, L, V = STEP["texts"], STEP["L"], STEP["vocab"]
    ids = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
    batch, made, variables, loss = (
        {"inputs_BxL": ids, "ex_B": np.arange(B, dtype=np.int32)},
        {},
        None,
        None,
    )
    for method in spectral.METHODS:
        net = {"depth": STEP["depth"], "width": D, "heads": max(1, D // 64), "ffn_width": 4 * D, "dtype": dtype,
               "route": {"dct": method}}  # fmt: skip
        model = build.build(config.parse({"net": net, "task": {"seq_len": L}}), V)
        variables = variables or jax.jit(lambda m=model: m.init(jax.random.key(0), batch))()

        def run(params, routing, m=model):
            known = {"params": params, "routing": routing}
            out, aux = m.apply(known, batch, build.neutral_knobs(), jax.random.key(1))
            nats = chunked_xent(
                out.h, out.head_VxD, ids, np.ones((B, L), np.float32), m.net.loss_chunk
            )
            penalty = aux.expected_B.mean()  # for its gradient: its value differs, as prices do
            return nats / ids.size + penalty - jax.lax.stop_gradient(penalty)

        args = variables["params"], variables["routing"]
        loss = float(jax.jit(run)(*args)) if loss is None else loss
        made[method] = _program(jax.value_and_grad(run), args, [np.float64(loss)])
    return made


def _with_gradients(fn: Callable, c: jax.Array) -> Callable:
    def both(*args):
        y, pull = jax.vjp(fn, *args)
        return y, *pull(c)

    return both


def _reference(kind: str, backward: bool, x, w, c) -> list[np.ndarray]:
    """Outputs, and gradients of Σ c y, by scipy."""
    X, C = (scipy.fft.dct(a, norm="ortho") for a in (x, c))
    back = lambda A: scipy.fft.idct(A, norm="ortho")  # noqa: E731
    found = [X, back(c)] if kind == "transform" else [back(w * X), back(w * C), (X * C).sum(0)]
    return found if backward else found[:1]


def _program(fn: Callable, args: tuple, want: list[np.ndarray]) -> Program:
    done = jax.jit(fn).lower(*args).compile()
    got = jax.tree.leaves(done(*args))
    error = max(float(np.abs(np.asarray(g, np.float64) - a).max() / np.abs(a).max())
                for g, a in zip(got, want, strict=False))  # fmt: skip

    def run(n: int) -> None:
        for _ in range(n):
            results = done(*args)
        jax.block_until_ready(results)

    counted = jaxpr.count(fn, *args)
    return Program(run, counted.flops, sum(a.nbytes for a in (*jax.tree.leaves(args), *got)), error)


def measure(
    part: str, D: int, tokens: int, made: dict[str, Program], rounds: int
) -> dict[str, Any]:
    """Every method of a part, in the same interleaved rounds."""
    load = timing.machine()["load"][0]
    cells: dict[str, list[timing.Cell]] = {name: [] for name in made}
    rates: dict[str, list[float]] = {"matmul": [], "copy": []}
    for found in timing.rounds_of({name: timing.here(p.run) for name, p in made.items()}, rounds):
        for name, cell in found.items():
            cells[name].append(cell)
        for name, rate in layers.machine_rates().items():
            rates[name].append(rate)
    middle = {name: statistics.median(c.wall for c in got) for name, got in cells.items()}
    best = min((name for name in made if name in spectral.METHODS), key=middle.get)
    rows = []
    for name, p in made.items():
        ratio = timing.compare(cells[name], cells[best])
        floors = p.flops / max(rates["matmul"]), p.bytes / max(rates["copy"])
        rows.append({
            "method": name, "ms": 1e3 * middle[name], "ratio": ratio._asdict(),
            "flops": p.flops, "bytes": p.bytes, "error": p.error,
            "flop_floor": floors[0] / middle[name], "byte_floor": floors[1] / middle[name],
        })  # fmt: skip
    load = [load, timing.machine()["load"][0]]
    return {"part": part, "D": D, "tokens": tokens, "best": best, "rows": rows, "load": load}


def show(found: dict[str, Any]) -> Iterator[str]:
    """A group as text."""
    yield (f"D {found['D']}, {found['part']}, {found['tokens']:,} tokens; fastest: {found['best']}; load "
           f"{found['load'][0]:.1f} to {found['load'][1]:.1f}")  # fmt: skip
    for r in found["rows"]:
        t = r["ratio"]
        yield (
            f"  {r['method']:13} {r['ms']:8.2f} ms {t['median']:6.2f} [{t['q1']:5.2f}, {t['q3']:5.2f}]"
            f"{t['minima']:7.2f}{t['cpu']:6.2f} {r['flop_floor']:6.0%} {r['byte_floor']:6.0%} {r['error']:9.1e}"
            f"{' noisy' if t['noisy'] else ''}"
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda s: [int(n) for n in s.split(",")]  # noqa: E731
    parser.add_argument("--widths", type=numbers, default="64,128,256,512,768,1024,2048,4096")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the tokens"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--tokens", type=int, default=0, help="0: so that a batch has 4 M features, 1,024 to 16,384"
    )
    parser.add_argument(
        "--steps", type=numbers, default="64,128,256,512", help="widths of whole models; 0: none"
    )
    parser.add_argument("--out", type=Path, help="write everything measured here, as JSON")
    return parser.parse_args()


def main() -> None:
    args, found, before = options(), [], timing.machine()
    device = jax.devices()[0]
    on = f"{before['cores']} x {before['cpu']}" if device.platform == "cpu" else device.device_kind
    print(f"{args.dtype}, {args.rounds} rounds on {on}, jax {jax.__version__}")
    print(
        f"  {'method':13} {'time':>11} {'to the fastest':>19} {'minima':>6} {'cpu':>5}   FLOP, byte     error"
    )
    for D in args.widths:
        tokens = args.tokens or min(MOST, max(LEAST, ELEMENTS // D))
        for part in PARTS:
            made = programs(part, D, tokens, args.dtype)
            found.append(measure(part, D, tokens, made, args.rounds))
            print("\n".join(show(found[-1])), flush=True)
    for D in filter(None, args.steps):
        found.append(
            measure("step", D, STEP["texts"] * STEP["L"], steps(D, args.dtype), args.rounds)
        )
        print("\n".join(show(found[-1])), flush=True)
    print(f"{'fastest':21}" + "".join(f"{D:>8}" for D in args.widths))
    for part in PARTS:
        print(f"{part:21}" + "".join(f"{f['best']:>8}" for f in found if f["part"] == part))
    if args.out:
        text = {"args": {k: str(v) for k, v in vars(args).items()}, "machine": before, "device": device.device_kind,
                "platform": device.platform, "versions": layers.versions(), "groups": found}  # fmt: skip
        args.out.write_text(json.dumps(text, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
