"""Measures on a GPU (or a TPU) what benchmarks/compiled.py predicts without one, in nine minutes.

python benchmarks/gpu.py [--out=gpu.json] [--seconds=520] [--rows=ceilings,step:dense:256x64x28]
python benchmarks/gpu.py --smoke --out=smoke.json

Each row has a process of its own: the ceilings of the chip (a large matmul, a large copy), the
fused kernels against their reference, the gradient of the embedding, a training step of each model
at four lengths, decoding, and a plain PyTorch Transformer (torch.compile, SDPA) where PyTorch is. A
row that fails does not stop the others. Rows that --out holds are not measured again, so that the
command can be given again after the time is up. --smoke is the same at tiny sizes, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

from cerebra_jax.cost import timing

MODELS = ("dense", "cerebra", "chiar", "mod")
CELLS = ("256x64x28", "4096x8x6", "65536x1x4", "16384x4x4")
SMOKE = ("64x2x2",)
TINY = {"task.vocab_size": 260, "net.width": 32, "net.heads": 2, "net.ffn_width": 64}


def names(smoke: bool) -> list[str]:
    """Returns the rows in the order of their worth."""
    found = ["ceilings", "kernels", "embedding"]
    for cell in SMOKE if smoke else CELLS:
        found += [f"step:{model}:{cell}" for model in (MODELS[:2] if smoke else MODELS)]
        found.append(f"torch:{cell}")
    return found + [f"decode:{model}" for model in (MODELS[:1] if smoke else MODELS)]


# one row


def row(name: str, smoke: bool) -> dict[str, Any]:
    """Measures one row in this process."""
    import jax

    kind, _, rest = name.partition(":")
    measure = {
        "ceilings": ceilings,
        "kernels": kernels,
        "embedding": embedding,
        "step": step,
        "decode": decode,
        "torch": plain_torch,
    }[kind]
    found = measure(*filter(None, rest.split(":")), smoke=smoke)
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__, **found}


def seconds_of(function: Callable, *args: Any, calls: int = 10, rounds: int = 5) -> float:
    """Returns the median time of a call."""
    import jax

    jax.block_until_ready(function(*args))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        results = [function(*args) for _ in range(calls)]
        jax.block_until_ready(results)
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def random(*sizes: int, dtype: str = "bfloat16", seed: int = 0) -> Any:
    import jax

    return jax.random.normal(jax.random.key(seed), sizes).astype(dtype)


def ceilings(smoke: bool) -> dict[str, Any]:
    """Measures FLOP/s of a large matmul of random numbers, and bytes/s of a large copy."""
    import jax
    import jax.numpy as jnp

    n, numbers = (256, 1 << 16) if smoke else (8192, 1 << 28)
    x, y = random(n, n), random(numbers, dtype="float32")
    matmul = seconds_of(jax.jit(jnp.matmul), x, x)
    copy = seconds_of(jax.jit(lambda y: -y), y)
    return {"tflops": 2 * n**3 / matmul / 1e12, "tb_per_s": 8 * numbers / copy / 1e12}


def kernels(smoke: bool) -> dict[str, Any]:
    """Compares the fused kernel with the masked reference: result and gradients."""
    import jax
    import jax.numpy as jnp

    from cerebra_jax.cost.device import present_platform
    from cerebra_jax.kernels.attention import Blocks, Keys, Queries, Segment, attend_blocks

    L = 128 if smoke else 1024
    q, k, v, slope = (random(2, 4, L, 64, seed=seed) for seed in range(4))
    rank = jnp.arange(L)[None]

    def run(kernel: str, dtype: str):
        blocks = Blocks((Segment(0, L, 0, L),), kernel)

        def attend(q, k, v):
            return attend_blocks(Queries(q, rank), Keys(k, v, rank), blocks)

        def both(q, k, v, slope):
            o, back = jax.vjp(attend, q, k, v)
            return o, *back(slope)

        return jax.jit(both)(*(x.astype(dtype) for x in (q, k, v, slope)))

    fused = "splash" if present_platform() == "tpu" else "cudnn"
    found, reference = run(fused, "bfloat16"), run("full", "float32")
    errors = {
        name: float(jnp.linalg.norm(mine - true) / jnp.linalg.norm(true))
        for name, mine, true in zip(("o", "dq", "dk", "dv"), found, reference, strict=True)
    }
    if max(errors.values()) > 0.02:
        raise AssertionError(f"the {fused} kernel is not the reference: {errors}")
    return {"kernel": fused, "relative_errors": errors}


def embedding(smoke: bool) -> dict[str, Any]:
    """Measures the embedding's gradient where rows collide, as words do, and where none does.

    jaxlib 0.10.2 to 0.11.0 adds floats by a compare-and-swap loop.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    vocab, width, tokens = (512, 32, 256) if smoke else (50_257, 1024, 32_768)
    table, slope = jnp.zeros((vocab, width)), random(tokens, width, dtype="float32")
    words = jnp.asarray(np.random.default_rng(0).zipf(1.2, tokens) % vocab)

    @jax.jit
    def gradient(ids):
        return jax.grad(lambda table: (table[ids] * slope).sum())(table)

    zipf = seconds_of(gradient, words, calls=3, rounds=3)
    distinct = seconds_of(gradient, jnp.arange(tokens) % vocab, calls=3, rounds=3)
    return {"zipf_ms": 1e3 * zipf, "distinct_ms": 1e3 * distinct}


def experiment_of(model: str, cell: Any, smoke: bool) -> Any:
    import target_programs

    from cerebra_jax.cost.device import present_platform

    size = "smoke" if smoke else "400m"
    cfg = target_programs.configuration(model, cell, TINY if smoke else {}, size)
    return target_programs.experiment(cfg, present_platform())


def step(model: str, cell_name: str, smoke: bool) -> dict[str, Any]:
    """Measures a training step on words of Zipf's law, beside the time that is modelled for it."""
    import jax
    import numpy as np
    import target_programs

    from cerebra_jax.cost import device, traffic
    from cerebra_jax.training.programs import Programs

    # the program, and what is modelled
    cell = target_programs.Cell.of(cell_name)
    e = experiment_of(model, cell, smoke)
    programs = Programs(e, jax.local_devices()[:1])
    function, _ = programs.serving(e.first).programs
    ids = np.random.default_rng(0).zipf(1.2, (cell.rows, cell.length + 1))
    ids = (ids % e.task.shape.vocab_size).astype(np.int32)
    batch = programs.shard(
        {
            "inputs_BxL": ids[:, :-1],
            "labels_BxL": ids[:, 1:],
            "w_BxL": np.ones((cell.rows, cell.length), np.float32),
            "ex_B": np.arange(cell.rows, dtype=np.int32),
        }
    )
    state = programs.place(e.fresh())
    chip = device.DEVICES["h100"] if smoke else device.detect()
    estimate = traffic.estimate(jax.make_jaxpr(function)(state, batch, e.key), chip)

    # time
    start = time.perf_counter()
    compiled = function.lower(state, batch, e.key).compile()
    compile_s = time.perf_counter() - start
    times, calls = [], 2 if smoke else 5
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(calls):
            state, metrics = compiled(state, batch, e.key)
        nats, tokens = jax.device_get(metrics["task/loss"])
        times.append((time.perf_counter() - start) / calls)
    loss = float(nats / tokens)
    if not math.isfinite(loss):
        raise AssertionError(f"the loss is {loss}")

    seconds, memory = min(times[1:]), compiled.memory_analysis()
    flops = 3 * cell.rows * e.model.cost.executed_flops
    return {
        "ms": 1e3 * seconds,
        "predicted_ms": 1e3 * estimate.seconds,
        "tokens_per_s": cell.rows * cell.length / seconds,
        "tflops": flops / seconds / 1e12,
        "peak_gib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
        "compile_s": compile_s,
        "loss": loss,
    }


def decode(model: str, smoke: bool) -> dict[str, Any]:
    """Measures generation with a cache: time a token of all rows together."""
    import jax
    import jax.numpy as jnp
    import target_programs

    cell = target_programs.Cell(256, 2, 2, True) if smoke else target_programs.Cell.of("decode")
    e = experiment_of(model, cell, smoke)
    program = target_programs.decoding(e)
    like, key, prompts, drawing = program.arguments
    state = e.fresh()
    prompts = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), prompts)
    length_B = jnp.full(prompts.length_B.shape, target_programs.PROMPT, jnp.int32)
    prompts = prompts._replace(length_B=length_B)
    drawing = drawing._replace(temperature=jnp.float32(1.0), top_p=jnp.float32(0.9))
    variables = {"params": state.params, "routing": state.routing}
    seconds = seconds_of(program.function, variables, e.key, prompts, drawing, calls=1, rounds=3)
    a_token = seconds / target_programs.WRITTEN
    return {"ms_a_token": 1e3 * a_token, "tokens_per_s": cell.rows / a_token}


def plain_torch(cell_name: str, smoke: bool) -> dict[str, Any]:
    """Measures a training step of a PyTorch Transformer of dense's shape, in bfloat16."""
    import step_torch
    import target_programs

    if step_torch.torch is None:
        return {"skipped": "PyTorch is not installed"}
    torch = step_torch.torch
    if not smoke and not torch.cuda.is_available():
        return {"skipped": "this PyTorch sees no GPU"}
    cell = target_programs.Cell.of(cell_name)
    size = "smoke" if smoke else "400m"
    cfg = target_programs.configuration("dense", cell, TINY if smoke else {}, size)
    where = "cpu" if smoke else "cuda"
    net = step_torch._module()(cfg).to(where)
    optimizer = step_torch._adamw(net, cfg.train)
    compiled = net if smoke else torch.compile(net)
    ids = torch.randint(cfg.task.vocab_size, (cell.rows, cell.length + 1), device=where)

    def once() -> float:
        with torch.autocast(where, torch.bfloat16):
            loss = compiled(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.train.clip)
        optimizer.step()
        return loss

    times, calls = [], 2 if smoke else 5
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(calls):
            loss = once()
        loss.item()
        times.append((time.perf_counter() - start) / calls)
    seconds = min(times[1:])
    return {
        "ms": 1e3 * seconds,
        "tokens_per_s": cell.rows * cell.length / seconds,
        "torch": torch.__version__,
    }


# all rows


def in_process(name: str, smoke: bool, limit: float) -> dict[str, Any]:
    """Returns a row that a process of its own measures, or its error."""
    command = [sys.executable, __file__, f"--row={name}", *(["--smoke"] if smoke else [])]
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if smoke else {})
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=max(1.0, limit)
        )
    except subprocess.TimeoutExpired:
        return {"error": "the time was up"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": (words or [f"status {done.returncode}"])[-1][:400]}


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures the rows that --out does not hold yet, until the time is up."""
    start = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    if args.out and args.out.exists():
        found = json.loads(args.out.read_text(encoding="utf-8"))["rows"]
        found = {name: figures for name, figures in found.items() if "error" not in figures}
    for name in args.rows or names(args.smoke):
        left = args.seconds - (time.monotonic() - start)
        if name in found:
            continue
        if left <= 0:
            print(f"{name:28} not measured: the time is up; give the command again")
            continue
        found[name] = in_process(name, args.smoke, left)
        print(f"{name:28} {show(found[name])}", flush=True)
        common.write(args, timing.machine(), rows=found)
    return found


def show(figures: dict[str, Any]) -> str:
    """Writes a row: every number with its name."""
    hidden = ("device", "jax")
    parts = []
    for name, value in figures.items():
        if name not in hidden:
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, seconds=520)
    parser.set_defaults(out=Path("gpu.json"))
    parser.add_argument("--rows", type=common.words, help="these rows alone")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = options()
    if args.row:
        print(json.dumps(row(args.row, args.smoke)))
        return
    measure(args)


if __name__ == "__main__":
    main()
