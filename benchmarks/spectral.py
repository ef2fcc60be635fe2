"""Times the DCT of the features, CHIAR's filter iDCT(w * DCT(x)), and whole steps of CHIAR.

Each is computed by every method, forward and backward.

python benchmarks/spectral.py [--widths=64,128,256,512,768,1024,2048,4096]
                              [--dtype=float32|bfloat16] [--rounds=7] [--tokens=0]
                              [--steps=64,128,256,512] [--out=FILE.json]

benchmarks/README.md says how it is measured, and what the columns mean.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import machine_rates
import numpy as np
import scipy.fft

from cerebra_jax import config
from cerebra_jax.cost import count as jaxpr
from cerebra_jax.cost import prices, timing
from cerebra_jax.kernels import dct as spectral
from cerebra_jax.kernels.cross_entropy import chunked_xent
from cerebra_jax.models import model as models

ELEMENTS = 1 << 22  # of a batch of tokens, where --tokens does not say otherwise
LEAST = 1024  # tokens
MOST = 16_384
PARTS = ("transform", "transform + backward", "filter", "filter + backward")
# of a whole model; F = 4 D, and a head has 64 features
STEP = {"depth": 4, "L": 256, "texts": 8, "vocab": 1024}


class Program(NamedTuple):
    """A compiled program; run(n) returns when n repetitions are finished."""

    run: Callable[[int], None]
    flops: int
    bytes: int  # of what goes in and what comes out
    # largest of any output, relative to the largest of SciPy's in float64; of a step, of its loss
    # to the FFT's
    error: float


def programs(part: str, D: int, tokens: int, dtype: str) -> dict[str, Program]:
    """Returns {method: program} of one of PARTS.

    Raises SystemExit where a program has not the FLOPs of the price list.
    """
    # inputs, and what SciPy makes of them
    rng = np.random.default_rng(D)
    x_NxD = jnp.asarray(rng.standard_normal((tokens, D)), dtype)
    c_NxD = jnp.asarray(rng.standard_normal((tokens, D)), dtype)
    w_D = jnp.asarray(1 + 0.5 * rng.standard_normal(D), jnp.float32)
    kind, _, backward = part.partition(" + ")
    x, w, c = (np.asarray(a, np.float64) for a in (x_NxD, w_D, c_NxD))
    expected = _transform_by_scipy(x, c) if kind == "transform" else _filter_by_scipy(x, w, c)
    expected = expected if backward else expected[:1]

    # every method
    made = {}
    for method in spectral.TRANSFORMS if kind == "transform" else spectral.METHODS:
        fn, once = _method(kind, method, D)
        args = (x_NxD,) if kind == "transform" else (x_NxD, w_D)
        made[method] = _program(_with_gradients(fn, c_NxD) if backward else fn, args, expected)
        counted = made[method].flops
        if not backward and counted != tokens * once:
            raise SystemExit(
                f"{part} by {method}: {once} FLOPs a token by the price list, "
                f"{counted / tokens} in it"
            )

    # the matrix that `folded` makes, made before
    if part == "filter":
        matrix_DxD = spectral.folded(w_D).astype(dtype)
        made["folded before"] = _program(jnp.matmul, (x_NxD, matrix_DxD), expected)
    return made


def dct_flops(D: int, method: str) -> int:
    """Returns the FLOPs of a DCT of D features: one real FFT, or a matrix, written by hand."""
    return prices.rfft_flops(D) if method == "fft" else prices.matmul_flops(1, D, D)


def filter_flops(D: int, method: str) -> int:
    """Returns those of a filter: two transforms, or one matrix."""
    if method == "folded":
        return prices.matmul_flops(1, D, D)
    return 2 * dct_flops(D, method)


def _method(kind: str, method: str, D: int) -> tuple[Callable, int]:
    """Returns a transform or a filter by one method, and its FLOPs a token by the price list."""
    if kind == "transform":

        def transform(x_NxD):
            return spectral.dct(x_NxD, method)

        return transform, dct_flops(D, method)

    def filtered(x_NxD, w_D):
        return spectral.filtered(x_NxD, w_D, method)

    return filtered, filter_flops(D, method)


def _with_gradients(fn: Callable, c_NxD: jax.Array) -> Callable:
    """Returns fn with the gradients of Σ c y behind its output y."""

    def both(*args):
        y, pull = jax.vjp(fn, *args)
        return y, *pull(c_NxD)

    return both


def _transform_by_scipy(x: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    """Returns DCT(x), and the gradient of Σ c y for x."""
    return [scipy.fft.dct(x, norm="ortho"), scipy.fft.idct(c, norm="ortho")]


def _filter_by_scipy(x: np.ndarray, w: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    """Returns iDCT(w · DCT(x)), and the gradients of Σ c y for x and w."""
    spectrum = scipy.fft.dct(x, norm="ortho")
    spectrum_of_c = scipy.fft.dct(c, norm="ortho")
    return [
        scipy.fft.idct(w * spectrum, norm="ortho"),
        scipy.fft.idct(w * spectrum_of_c, norm="ortho"),
        (spectrum * spectrum_of_c).sum(axis=0),
    ]


def steps(D: int, dtype: str) -> dict[str, Program]:
    """Returns {net.route.dct: forward and backward pass of a whole CHIAR}.

    It routes by thresholds, as it does by default.
    """
    B = STEP["texts"]
    shape = (B, STEP["L"])
    ids_BxL = np.random.default_rng(0).integers(0, STEP["vocab"], shape).astype(np.int32)
    batch = {"inputs_BxL": ids_BxL, "ex_B": np.arange(B, dtype=np.int32)}
    variables = None
    expected = None
    made = {}
    for method in spectral.METHODS:
        model = _chiar(method, D, dtype)
        if variables is None:
            variables = model.init(jax.random.key(0), batch)
        loss = _loss(model, batch)
        args = (variables["params"], variables["routing"])
        if expected is None:
            expected = [np.float64(jax.jit(loss)(*args))]
        made[method] = _program(jax.value_and_grad(loss), args, expected)
    return made


def _chiar(method: str, D: int, dtype: str) -> models.Model:
    net = {
        "depth": STEP["depth"],
        "width": D,
        "heads": max(1, D // 64),
        "ffn_width": 4 * D,
        "dtype": dtype,
        "route": {"dct": method},
    }
    cfg = config.parse({"net": net, "task": {"seq_len": STEP["L"]}})
    return models.build(cfg, STEP["vocab"])


def _loss(model: models.Model, batch: dict[str, Any]) -> Callable:
    """Returns loss(params, routing): the mean of each token's own cross-entropy."""
    ids_BxL = batch["inputs_BxL"]

    def loss(params, routing):
        variables = {"params": params, "routing": routing}
        out, aux = model.apply(variables, batch, models.neutral_knobs(), jax.random.key(1))
        weight_BxL = np.ones(ids_BxL.shape, np.float32)
        nats = chunked_xent(out.h, out.head_VxD, ids_BxL, weight_BxL, model.net.loss_chunk)
        # the penalty adds its gradient alone: its value differs between the methods, as prices do
        penalty = aux.expected_B.mean()
        return nats / ids_BxL.size + penalty - jax.lax.stop_gradient(penalty)

    return loss


def _program(fn: Callable, args: tuple, expected: list[np.ndarray]) -> Program:
    """Compiles and counts fn, and compares its first outputs with the expected ones."""
    compiled = jax.jit(fn).lower(*args).compile()
    outputs = jax.tree.leaves(compiled(*args))
    errors = [
        float(np.abs(np.asarray(output, np.float64) - a).max() / np.abs(a).max())
        for output, a in zip(outputs, expected, strict=False)
    ]

    def run(n: int) -> None:
        for _ in range(n):
            results = compiled(*args)
        jax.block_until_ready(results)

    moved = sum(a.nbytes for a in (*jax.tree.leaves(args), *outputs))
    return Program(run, jaxpr.count(fn, *args).flops, moved, max(errors))


def measure(part: str, made: dict[str, Program], rounds: int) -> dict[str, Any]:
    """Times every method of a part in the same interleaved rounds."""
    load = timing.machine()["load"][0]
    rates = machine_rates.BestRates()
    runs = {name: timing.here(program.run) for name, program in made.items()}
    cells = common.collect(runs, rounds, rates.measure)
    median = {name: statistics.median(cell.wall for cell in own) for name, own in cells.items()}
    best = min((name for name in made if name in spectral.METHODS), key=median.get)
    rows = []
    for name, program in made.items():
        seconds = median[name]
        rows.append(
            {
                "method": name,
                "ms": 1e3 * seconds,
                "ratio": timing.compare(cells[name], cells[best])._asdict(),
                "flops": program.flops,
                "bytes": program.bytes,
                "error": program.error,
                "flop_floor": program.flops / rates.best.matmul / seconds,
                "byte_floor": program.bytes / rates.best.copy / seconds,
            }
        )
    loads = [load, timing.machine()["load"][0]]
    return {"part": part, "best": best, "rows": rows, "load": loads}


def show(found: dict[str, Any]) -> Iterator[str]:
    """Writes a part's table."""
    yield (
        f"D {found['D']}, {found['part']}, {found['tokens']:,} tokens; fastest: {found['best']}; "
        f"load {found['load'][0]:.1f} to {found['load'][1]:.1f}"
    )
    for row in found["rows"]:
        ratio = row["ratio"]
        noisy = " noisy" if ratio["noisy"] else ""
        yield (
            f"  {row['method']:13} {row['ms']:8.2f} ms {ratio['median']:6.2f} "
            f"[{ratio['q1']:5.2f}, {ratio['q3']:5.2f}]{ratio['minima']:7.2f}{ratio['cpu']:6.2f} "
            f"{row['flop_floor']:6.0%} {row['byte_floor']:6.0%} {row['error']:9.1e}{noisy}"
        )


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument(
        "--widths", type=common.integers, default="64,128,256,512,768,1024,2048,4096"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the tokens"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=0,
        help="tokens of a batch; 0: 1,024 to 16,384 of them, so that a batch has 4 M features",
    )
    parser.add_argument(
        "--steps",
        type=common.integers,
        default="64,128,256,512",
        help="widths of whole models; 0: none",
    )
    return parser.parse_args()


def main() -> None:
    args = options()
    machine = timing.machine()
    device = jax.devices()[0]
    hardware = device.device_kind
    if device.platform == "cpu":
        hardware = f"{machine['cores']} x {machine['cpu']}"
    print(f"{args.dtype}, {args.rounds} rounds on {hardware}, jax {jax.__version__}")
    print(
        f"  {'method':13} {'time':>11} {'to the fastest':>19} {'minima':>6} {'cpu':>5}   "
        "FLOP, byte     error"
    )

    # transforms and filters, then whole models
    found = []
    for D in args.widths:
        tokens = args.tokens or min(MOST, max(LEAST, ELEMENTS // D))
        for part in PARTS:
            group = measure(part, programs(part, D, tokens, args.dtype), args.rounds)
            found.append({"D": D, "tokens": tokens, **group})
            print("\n".join(show(found[-1])), flush=True)
    for D in filter(None, args.steps):
        group = measure("step", steps(D, args.dtype), args.rounds)
        found.append({"D": D, "tokens": STEP["texts"] * STEP["L"], **group})
        print("\n".join(show(found[-1])), flush=True)

    # the fastest method of each part and width
    print(f"{'fastest':21}" + "".join(f"{D:>8}" for D in args.widths))
    for part in PARTS:
        best = [group["best"] for group in found if group["part"] == part]
        print(f"{part:21}" + "".join(f"{method:>8}" for method in best))
    common.write(
        args,
        machine,
        device=device.device_kind,
        platform=device.platform,
        versions={"jax": jax.__version__},
        groups=found,
    )


if __name__ == "__main__":
    main()
