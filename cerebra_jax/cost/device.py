"""Knows peak FLOP/s, bandwidth and memory of chips, and the least time that a program needs on one.

The numbers are the vendors' for one chip, without sparsity (NVIDIA's data sheets print tensor-core
rates with a 2x sparsity factor, taken out here). `float32` is what JAX's default matmul precision
reaches: TF32 on A100 and later, one bfloat16 pass on TPU. A peak is a bound, not a forecast:
predictions for a CPU, and for a device that is not in the table, start from `measure`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from cerebra_jax.errors import UserError


class Device(NamedTuple):
    """Describes one chip; rates are per second."""

    name: str
    float32: float  # FLOP/s
    bfloat16: float  # FLOP/s
    bandwidth: float  # bytes/s
    memory: int  # bytes
    measured: bool = False  # what this machine was seen to do, or a user says; else a vendor's peak

    def peak(self, dtype: str) -> float:
        """Returns FLOP/s of matmuls in that dtype, "float32" or "bfloat16"."""
        return {"float32": self.float32, "bfloat16": self.bfloat16}[dtype]


T = 1e12
G = 1e9
DEVICES = {
    d.name: d
    for d in (
        # two AVX2 cores at 3 GHz, 2 x 8 fused multiply-adds a cycle each, one DDR4-3200 channel:
        # arithmetic, no data sheet, and only used when predicting for a CPU from elsewhere;
        # bfloat16 is computed in float32
        Device("cpu", 0.19 * T, 0.19 * T, 25 * G, 8 * 2**30),
        # https://www.nvidia.com/en-us/data-center/tesla-t4/ and its data sheet 951643
        # Turing's tensor cores have no bfloat16 (65 TFLOP/s are float16), which runs at the
        # float32 rate
        Device("t4", 8.1 * T, 8.1 * T, 320 * G, 16 * 10**9),
        # https://www.nvidia.com/en-us/data-center/a100/ and its data sheet 1758950-r4
        # TF32 156 and bfloat16 312, dense; the 80 GB SXM (40 GB: 1.555 TB/s)
        Device("a100", 156 * T, 312 * T, 2039 * G, 80 * 10**9),
        # https://www.nvidia.com/en-us/data-center/h100/
        # SXM; TF32 989 and bfloat16 1979 there are with 2x sparsity
        Device("h100", 494.5 * T, 989.5 * T, 3350 * G, 80 * 10**9),
        # https://www.nvidia.com/en-us/data-center/h200/
        # SXM; the H100's chip with more and faster memory
        Device("h200", 494.5 * T, 989.5 * T, 4800 * G, 141 * 10**9),
        # https://cloud.google.com/tpu/docs/v5e
        Device("v5e", 197 * T, 197 * T, 819 * G, 16 * 10**9),
        # https://cloud.google.com/tpu/docs/v6e
        Device("v6e", 918 * T, 918 * T, 1640 * G, 32 * 10**9),
    )
}
_KINDS = {
    "t4": "t4",
    "a100": "a100",
    "h100": "h100",
    "h200": "h200",
    "v5 lite": "v5e",
    "v5e": "v5e",
    "v6": "v6e",
}


_PLATFORMS = {"cpu": "cpu", "t4": "old_gpu"} | dict.fromkeys(("a100", "h100", "h200"), "gpu")
_PLATFORMS |= dict.fromkeys(("v5e", "v6e"), "tpu")

AMPERE = (8, 0)
"""The compute capability from which a GPU has fused attention kernels; before it is an old one."""


_counting: contextvars.ContextVar[bool] = contextvars.ContextVar("counting", default=False)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Says that what is traced inside is counted and never run.

    A fused kernel is then its formula, whose operations have prices.
    """
    token = _counting.set(True)
    try:
        yield
    finally:
        _counting.reset(token)


def is_counting() -> bool:
    """Returns whether what is traced now is counted and never run."""
    return _counting.get()


def present_platform() -> str:
    """Returns what JAX computes on in this process: cpu, gpu, old_gpu (before Ampere) or tpu.

    No other function of the package asks this. Whatever chooses a kernel or counts a program takes
    the platform as an argument.
    """
    import jax

    found = jax.default_backend()
    return "old_gpu" if found == "gpu" and _is_old(jax.local_devices()[0]) else found


def _is_old(gpu: Any) -> bool:
    """Returns whether a GPU is older than Ampere; one that is not NVIDIA's is not."""
    text = getattr(gpu, "compute_capability", "")
    return text.replace(".", "").isdigit() and tuple(map(int, text.split("."))) < AMPERE


def platform_of(name: str) -> str:
    """Returns the platform of a device, cpu, gpu, old_gpu or tpu.

    The name is a row of the table or what JAX calls the device's kind. Of any other ("" or the
    numbers of `given`) it is the present platform.
    """
    row = name if name in _PLATFORMS else kind_to_name(name)
    return _PLATFORMS[row] if row else present_platform()


def is_present(name: str) -> bool:
    """Returns whether a device is what JAX computes on here; "" and numbers of a user's are."""
    if name not in DEVICES:
        return True
    import jax

    here = kind_to_name(jax.devices()[0].device_kind)
    return name == (here or ("cpu" if present_platform() == "cpu" else ""))


def lookup(name: str) -> Device:
    """Returns the table's row of that name. Raises UserError, which lists the names."""
    if name not in DEVICES:
        raise UserError(f"no device {name!r} in the table", f"choose one of {', '.join(DEVICES)}")
    return DEVICES[name]


def given(text: str) -> Device:
    """Returns the device that a user names.

    That is a row of the table, "peak FLOP/s / bytes/s" in numbers, or "" for the present one, if it
    is in the table. Nothing is measured here: a cost must be the same number in every session of a
    run. Raises UserError for anything else.
    """
    peak, slash, bandwidth = text.partition("/")
    if slash:
        flops, size = _rate(peak), _rate(bandwidth)
        if not (flops > 0 and size > 0 and flops + size < math.inf):
            raise UserError(
                f"cannot read the device {text!r}", 'write "1.9e11/2.5e10": peak FLOP/s and bytes/s'
            )
        return Device(text, flops, flops, size, 0, measured=True)
    if text:
        return lookup(text)
    import jax

    kind = jax.devices()[0].device_kind
    name = kind_to_name(kind) or ("cpu" if present_platform() == "cpu" else None)
    if name is None:
        raise UserError(
            f"the table has no peak FLOP/s of {kind!r}",
            "`cost` measures it and prints what to give as objective.device",
        )
    return DEVICES[name]


def _rate(text: str) -> float:
    """Returns the number that the text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def roofline_seconds(flops: int, size: int, device: Device, dtype: str = "float32") -> float:
    """Returns the least time for FLOPs and `size` bytes: max(flops / peak, bytes / bandwidth)."""
    return max(flops / device.peak(dtype), size / device.bandwidth)


@functools.cache
def detect() -> Device:
    """Returns the device that JAX computes on.

    That is the table's row of its kind, or what `measure` finds for CPUs and unknown kinds: once,
    so that all prices of a process are of one machine.
    """
    import jax

    name = kind_to_name(jax.devices()[0].device_kind)
    return DEVICES[name] if name else measure()


def kind_to_name(kind: str) -> str | None:
    """Returns the row of a JAX device kind, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite".

    Returns None where none matches, as for CPUs.
    """
    # an A1000 is no A100, a T400 no T4, and a GH200 no H200
    rows = {rf"(?<![a-z\d]){part}(?!\d)": name for part, name in _KINDS.items()}
    return next((name for part, name in rows.items() if re.search(part, kind.lower())), None)


def measure(seconds: float = 0.15) -> Device:
    """Returns what the present device does.

    Matmuls in float32 and in bfloat16, and a copy, are each repeated for about `seconds`. The best
    repetition counts, since other load can only slow one down. It takes under a second on two CPU
    cores.
    """
    import jax
    import jax.numpy as jnp

    # matmuls
    device = jax.devices()[0]
    n = 768 if device.platform == "cpu" else 8192
    rates = {}
    for dtype in ("float32", "bfloat16"):
        a = jnp.full((n, n), 0.5, dtype)
        rates[dtype] = 2 * n**3 / _best(jax.jit(jnp.matmul), (a, a), seconds)

    # a copy, of more than fits a CPU's cache (32 MiB)
    words = 1 << (23 if device.platform == "cpu" else 28)
    copy = _best(jax.jit(lambda x: -x), (jnp.ones(words, jnp.float32),), seconds)

    # memory
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        device.device_kind,
        rates["float32"],
        rates["bfloat16"],
        8 * words / copy,
        int(memory),
        measured=True,
    )


def _best(fn, args: tuple, seconds: float) -> float:
    """Returns the seconds of the fastest call within about `seconds`."""
    fn(*args).block_until_ready()  # compile
    best = float("inf")
    stop = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        fn(*args).block_until_ready()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= stop:
            return best
