"""Reads and writes files of tensors: safetensors, and PyTorch's, without running anything in them.

No JAX here.

The libraries are extras: what is missing is named in one line.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax.errors import UserError

# before it, a file could run code in spite of weights_only=True (CVE-2025-32434)
_SAFE_TORCH = (2, 6)
LARGEST_FACTOR = 8  # times the size of a file; tied weights count once for each name
LEAST = 1 << 20  # bytes, which any file may become


class Found(NamedTuple):
    """Holds what a file has: its tensors as float32, and what it says of them."""

    tensors: dict[str, np.ndarray]
    about: dict[str, Any]  # a checkpoint's step, val_ppl and cfg; a .safetensors file's own text


def read(path: Path) -> Found:
    """Returns the tensors of a .safetensors file, or of a PyTorch file: a state_dict, or {"model":
    state_dict, ...}.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is a folder" if path.is_dir() else f"there is no {path}",
            "give a .pt or .safetensors file",
        )
    found = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not found.tensors:
        raise UserError(f"{path} holds no tensors", "give the state_dict of a model")
    for name, a in found.tensors.items():
        if not np.isfinite(a).all():
            raise UserError(
                f"{path}: {name} is not finite", "give a checkpoint of a run that did not diverge"
            )
    return found


def write(path: Path, tensors: dict[str, np.ndarray], about: dict[str, str]) -> None:
    """Writes a .safetensors file at once or not at all."""
    save = _library("safetensors.numpy").save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save(tensors, part, about)
    os.replace(part, path)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _safetensors(path: Path) -> Found:
    safe_open = _library("safetensors").safe_open
    try:
        with safe_open(path, framework="numpy") as f:
            about = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in list(f.keys())}
    except Exception as e:  # a damaged file may raise anything
        what = f"{path} is no .safetensors file of plain numbers ({_short(str(e))})"
        raise UserError(what, "give an undamaged one") from None
    for name, a in tensors.items():
        _floating(path, name, a.dtype.kind == "f")
    return Found({name: np.ascontiguousarray(a, np.float32) for name, a in tensors.items()}, about)


def _torch(path: Path) -> Found:
    torch = _library("torch")
    size = path.stat().st_size
    _require_honest(path, size, _unpacked(path))
    if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < _SAFE_TORCH:
        what = f"PyTorch {torch.__version__} can be made to run code by a file (CVE-2025-32434)"
        raise UserError(what, "install torch>=2.6, or convert the file to .safetensors")
    try:
        with warnings.catch_warnings(action="ignore"):  # one line on strange files is enough
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged or malicious file makes of it
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(e))
        reason = str(e).rpartition("WeightsUnpickler error:")[2]  # what precedes it is advice
        own = f"{type(e).__name__}: {reason}"
        why = f"it wants to call {unsafe[1]}, and nothing of it was run" if unsafe else _short(own)
        what = f"{path} holds more than tensors, or is damaged: {why}"
        raise UserError(what, "give a state_dict saved by torch.save") from None
    about = {}
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        about = {key: entry for key, entry in value.items() if key != "model"}
        value = value["model"]
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__}",
            "give a state_dict, or a dict with one under 'model'",
        )
    tensors = {}
    for name, a in value.items():
        if not isinstance(name, str) or not isinstance(a, torch.Tensor):
            raise UserError(
                f"{path}: {name!r} is no tensor",
                "give a state_dict, or a dict with one under 'model'",
            )
        _floating(
            path,
            name,
            a.is_floating_point() and a.layout == torch.strided and a.device.type == "cpu",
        )
    # a tensor may repeat a few numbers without end
    _require_honest(path, size, sum(a.numel() * a.element_size() for a in value.values()))
    for name, a in value.items():
        tensors[name] = np.ascontiguousarray(a.detach().float().numpy())
    return Found(tensors, about)


def _unpacked(path: Path) -> int:
    """Returns the bytes of all parts of a zip, which newer files of PyTorch are; 0 of no zip."""
    try:
        with zipfile.ZipFile(path) as parts:
            return sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return 0


def _require_honest(path: Path, size: int, holds: int) -> None:
    """Raises UserError where a file of `size` bytes would become very many more in memory."""
    if holds > LARGEST_FACTOR * size + LEAST:
        what = f"{path} has {size:,} bytes and would become {holds:,} in memory"
        raise UserError(what, "give a state_dict whose tensors are contiguous, not compressed")


def _floating(path: Path, name: str, good: bool) -> None:
    if not good:
        raise UserError(
            f"{path}: {name} is no plain tensor of floating-point numbers", "parameters are that"
        )


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise UserError(
            f"{package} is not installed", "pip install 'cerebra-jax[import]'"
        ) from None


def _short(text: str) -> str:
    return " ".join(text.split())[:120]
