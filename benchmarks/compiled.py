"""Compiles programs for GPUs and TPUs that are not at hand, and models what they would take.

python benchmarks/compiled.py [--targets=h100,h100x8,v5e] [--models=dense,chiar,cerebra,mod]
                              [--cells=256x64x28,4096x8x6,65536x1x4,decode] [--set=KEY=VALUE]
                              [--out=FILE.json] [--against=FILE.json]
python benchmarks/compiled.py --gate

It needs the extra `accel` (Python 3.11 or later). benchmarks/README.md says how the times are
modelled, and what the columns mean. With --against it ends with status 1 where a program takes more
than in that file. --gate judges programs before compilation, and needs no extra.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import compiled_program

from cerebra_jax.cost import timing
from cerebra_jax.cost.device import DEVICES
from cerebra_jax.errors import UserError

GIB = 2**30
FOLDER = Path(__file__).resolve().parent / "targets"


class Target(NamedTuple):
    """Describes what is compiled for, and the model of its time."""

    platform: str  # as the package calls it
    chip: str  # row of the device table
    devices: int
    share: float  # of the rows of a cell, so that it fits
    modules: dict[str, str]  # {what must be importable: the package that has it}
    rates: compiled_program.Rates


_H100 = compiled_program.Rates(
    {"bf16": 700e12, "f16": 700e12, "f32": 350e12}, (410e12, 300e12), 3.0e12, 2e-6
)
# Splash, of which the compiler estimates no cycles: heads of 64 use half of the matrix units, and
# half of that is assumed to be reached
_V5E = compiled_program.Rates(
    {"bf16": 197e12, "f32": 197e12 / 6}, (50e12, 50e12), 0.8e12, 0.0, clock=1.5e9
)
_CUDA = {
    "jax_cuda12_plugin": "jax-cuda12-plugin",
    "jax_plugins.xla_cuda12": "jax-cuda12-pjrt",
    "nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12",
}
TARGETS = {
    "h100": Target("gpu", "h100", 1, 1.0, _CUDA, _H100),
    "h100x8": Target("gpu", "h100", 8, 2.0, _CUDA, _H100),
    "v5e": Target("tpu", "v5e", 1, 0.25, {"libtpu": "libtpu"}, _V5E),
}
CELLS = ("256x64x28", "4096x8x6", "65536x1x4", "decode")
# of CELLS, what a target leaves out; other cells are compiled where they are asked for
WITHOUT = {"h100x8": CELLS[1:], "v5e": ("65536x1x4", "decode")}
TOLERANCE = 1.05  # of a figure to that of an earlier file
DOUBT = 0.2  # by which the FLOPs that are read and counted may differ
VERSIONS = ("jax", "jaxlib", "flax", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12", "libtpu")


# one row, in a process of its own


def topology(name: str) -> list[Any]:
    """Returns the devices of a target, which are not at hand."""
    from jax.experimental import topologies

    target = TARGETS[name]
    if target.platform == "gpu":
        text = (FOLDER / f"{target.chip}.txt").read_text(encoding="utf-8")
        shape = f"1x1x{target.devices}"
        made = topologies.get_topology_desc(platform="cuda", target_config=text, topology=shape)
    else:
        made = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:1x1", chips_per_host_bounds=(1, 1, 1)
        )
    return list(made.devices[: target.devices])


def row(name: str, model: str, cell_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Compiles one program, and returns its figures."""
    import target_programs

    from cerebra_jax.kernels.fused_call import lowering_for

    target = TARGETS[name]
    devices = topology(name)
    cell = target_programs.Cell.of(cell_name)
    if not cell.decodes:
        cell = cell._replace(rows=max(1, round(target.share * cell.rows)))
    cfg = target_programs.configuration(model, cell, settings)

    # compile
    start = time.monotonic()
    with lowering_for(target.platform):
        program = target_programs.program(cfg, cell, target.platform, devices)
        estimated = estimate(program, target, cell)
        lowered = program.lower()
    traced = time.monotonic() - start
    # without a device nothing can be tuned: matmuls are calls of cuBLAS, as in most tuned programs
    flags = {"xla_gpu_enable_triton_gemm": False} if target.platform == "gpu" else {}
    compiled = lowered.compile(compiler_options=flags)
    text = compiled.as_text()
    if folder := os.environ.get("CEREBRA_DUMP"):
        path = Path(folder) / f"{name}-{model}-{cell_name}.hlo.txt"
        path.write_text(text, encoding="utf-8")

    # read
    kernels = compiled_program.kernels(text)
    found = figures(kernels, target, compiled_program.conditionals(text))
    if not cell.decodes:
        compare(found["flops"], counted_flops(cfg, target, cell))
    if cell.decodes:
        written = target_programs.WRITTEN
        a_token = [
            kernel._replace(times=kernel.times // written)
            for kernel in kernels
            if kernel.turns == written
        ]
        whole = found["conditionals"]
        found = figures(a_token, target, round(whole / written))
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "rows": cell.rows,
        "peak_bytes": peak,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        **found,
        **estimated,
        "layers_a_turn": 2 if model == "mod" else 1,
        "trace_seconds": traced,
        "compile_seconds": time.monotonic() - start - traced,
    }


def counted_flops(cfg: Any, target: Target, cell: Any) -> float:
    """Returns the FLOPs of a training step on one device by the price of its forward pass."""
    import target_programs

    from cerebra_jax.kernels.remat import train_factor

    passes = train_factor(cfg.net.remat, target.platform)
    model = target_programs.experiment(cfg, target.platform).model
    return passes * model.cost.executed_flops * cell.rows / target.devices


def compare(read: float, counted: float) -> None:
    """Raises ValueError where the compiled program seems to compute something else than the model.

    The two differ by up to 12 %: fused attention computes 2.5 times its forward pass backwards, and
    some products have gradients of one product.
    """
    if abs(read / counted - 1) > DOUBT:
        raise ValueError(
            f"{read / 1e12:.3g} TFLOP read from the program, {counted / 1e12:.3g} counted;"
            " its loops are not understood, so it has no figures"
        )


def estimate(program: Any, target: Target, cell: Any) -> dict[str, Any]:
    """Returns what `cost` would say of a training step on one GPU; nothing of other programs."""
    import jax

    from cerebra_jax.cost import traffic

    if target.platform != "gpu" or target.devices > 1 or cell.decodes:
        return {}
    traced = jax.make_jaxpr(program.function)(*program.arguments)
    found = traffic.estimate(traced, DEVICES[target.chip])
    return {f"estimated_{name}": value for name, value in found._asdict().items()}


def figures(
    kernels: Sequence[compiled_program.Kernel], target: Target, conditionals: int
) -> dict[str, Any]:
    """Returns the sums over kernels, the modelled time and its floors."""
    sums = compiled_program.summary(kernels, target.rates)
    chip = DEVICES[target.chip]
    exchanges = [k for k in kernels if k.label.startswith(compiled_program.COLLECTIVES)]
    return {
        "kernels": sums.kernels,
        "kernels_a_turn": sums.kernels_a_turn,
        "conditionals": conditionals,
        "bytes": sums.bytes,
        "flops": sums.flops,
        "cycles": sums.cycles,
        "seconds": sums.seconds,
        "flop_floor_seconds": sums.flops / chip.bfloat16,
        "byte_floor_seconds": sums.bytes / chip.bandwidth,
        "exchanges": sum(kernel.times for kernel in exchanges),
        "exchanged_bytes": sum(kernel.times * kernel.bytes for kernel in exchanges) // 2,
        "by_label": sums.by_label,
    }


# all rows


def missing(name: str) -> str:
    """Returns the packages that compiling for a target needs and that are not there."""

    def there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    modules = TARGETS[name].modules
    return ", ".join(package for module, package in modules.items() if not there(module))


def in_process(name: str, model: str, cell: str, settings: Sequence[str]) -> dict[str, Any]:
    """Returns the figures of a row that a process of its own compiles, or its error."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, __file__, f"--row={name}:{model}:{cell}"]
    command += [f"--set={text}" for text in settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    words = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in words if "Error" in line or "RESOURCE_EXHAUSTED" in line]
    return {"error": (errors or words or [f"status {done.returncode}"])[-1][:400]}


def show(row: dict[str, Any], dense: dict[str, Any] | None) -> str:
    """Writes a row of the table."""
    head = f"{row['target']:7} {row['cell']:10} {row['model']:8}"
    if "error" in row:
        return f"{head} {row['error']}"
    milliseconds = [1e3 * row[f"{which}seconds"] for which in ("", "flop_floor_", "byte_floor_")]
    ratio = row["seconds"] / dense["seconds"] if dense and "seconds" in dense else float("nan")
    known = ""
    if "estimated_bytes" in row:
        known = f"{row['estimated_bytes'] / row['bytes']:8.2f}"
    layer = row["kernels_a_turn"] / row["layers_a_turn"]
    return (
        f"{head} {row['rows']:5} {row['peak_bytes'] / GIB:7.1f} {row['kernels']:8,} {layer:7.0f} "
        f"{row['conditionals']:5} {row['bytes'] / 1e9:9.2f} {row['flops'] / 1e12:8.3f} "
        f"{milliseconds[0]:9.2f} {milliseconds[1]:8.2f} {milliseconds[2]:8.2f} {ratio:6.2f} {known}"
    )


HEADING = (
    f"{'target':7} {'cell':10} {'model':8} {'rows':>5} {'GiB':>7} {'kernels':>8} {'a layer':>7} "
    f"{'cond':>5} {'GB':>9} {'TFLOP':>8} {'ms':>9} {'FLOPs':>8} {'bytes':>8} "
    f"{'dense':>6} {'estimate':>8}"
)


def setting(text: str) -> tuple[str, Any]:
    """Reads "net.remat=True"."""
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("--targets", type=common.words, default=",".join(TARGETS))
    add("--models", type=common.words, default="dense,chiar,cerebra,mod")
    add("--cells", type=common.words, default=",".join(CELLS))
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a configuration key")
    add("--against", type=Path, metavar="FILE", help="figures that must not get worse")
    add("--gate", action="store_true", help="judge the programs before compilation alone")
    add("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for target in args.targets:
        if target not in TARGETS:
            parser.error(f"no target {target}; choose among {', '.join(TARGETS)}")
    return args


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles all rows, prints each, and keeps them in --out."""
    print(HEADING)
    rows: list[dict[str, Any]] = []
    versions = {name: importlib.metadata.version(name) for name in VERSIONS if _installed(name)}
    for target in args.targets:
        for cell in args.cells:
            if cell in WITHOUT.get(target, ()):
                print(f"{target}: {cell} is left out", flush=True)
                continue
            dense = None
            for model in args.models:
                found = in_process(target, model, cell, args.set)
                found = {"target": target, "cell": cell, "model": model, **found}
                dense = found if model == "dense" else dense
                rows.append(found)
                print(show(found, dense), flush=True)
                date = datetime.date.today().isoformat()
                common.write(args, timing.machine(), date=date, versions=versions, rows=rows)
    return rows


def worse(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """Returns what the rows take more of than the rows of an earlier file, one line a figure."""
    earlier = {_key(row): row for row in before}
    found = []
    for row in rows:
        old = earlier.get(_key(row))
        name = " ".join(_key(row))
        if old is None or "error" in old:
            continue
        if "error" in row:
            found.append(f"{name}: {row['error']}")
            continue
        for figure in ("peak_bytes", "kernels", "bytes", "seconds"):
            if row[figure] > TOLERANCE * old[figure]:
                found.append(f"{name}: {figure} {old[figure]:.4g} before, {row[figure]:.4g} now")
    return found


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["target"], row["cell"], row["model"]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    args = options()
    if args.row:
        target, model, cell = args.row.split(":")
        print(json.dumps(row(target, model, cell, dict(map(setting, args.set)))))
        return
    if args.gate:
        import gate

        sys.exit(bool(gate.judge(args.models)))
    for target in args.targets:
        if packages := missing(target):
            raise UserError(
                f"compiling for {target} needs {packages}", "pip install -e '.[accel]', see README"
            )
    rows = measure(args)
    if args.against:
        found = worse(rows, json.loads(args.against.read_text(encoding="utf-8"))["rows"])
        print("\n".join(found) or f"no figure is worse than in {args.against.name}")
        sys.exit(bool(found))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
