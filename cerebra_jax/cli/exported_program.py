"""Writes the forward pass of a run, its weights inside, as one file: StableHLO, which JAX runs, or
ONNX.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.cli import model_card as card
from cerebra_jax.cli import readers
from cerebra_jax.cli.cost import si
from cerebra_jax.cost.device import present_platform
from cerebra_jax.errors import UserError
from cerebra_jax.training import preprocessing

PLATFORMS = ("cpu", "cuda", "tpu")
# the entries of a batch that the forward pass does not read
_NOT_READ = ("labels_BxL", "w_BxL", "ex_B", "index_B", "weight_B")


class Form(NamedTuple):
    """Says which StableHLO program is made."""

    platforms: tuple[str, ...]
    materialise: bool  # maps that follow each other are one matrix


def onnx(cfg: config.RunCfg, source: Path, to: Path, rows: int, say: Callable[[str], None]) -> None:
    """Writes the best checkpoint as ONNX, for batches of `rows`, and its card.

    Routed tokens move by matrix products and the DCT is one: onnxruntime runs no FFT or scatter of
    JAX's.
    """
    require(
        importlib.util.find_spec("jax2onnx") is not None,
        "jax2onnx is not installed",
        "pip install jax2onnx onnxruntime, or use --format=stablehlo",
    )
    require(
        cfg.quant.bits == 0,
        "the run is in 8 bits, which onnxruntime has no products for",
        "use --format=stablehlo",
    )
    dct = "matmul" if cfg.net.name == "chiar" else "auto"
    route = dataclasses.replace(cfg.net.route, lowering="onehot", dct=dct)
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))
    task = preprocessing.restore(cfg, source, say)
    import jax  # from here on
    import jax2onnx  # pyright: ignore[reportMissingImports]  # optional, and not in `dev`

    from cerebra_jax.trained import Trained

    # the program
    run = Trained(source, cfg, task)
    forward, example = logits_of(run), given(task.example(rows))
    names = list(example)
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in example.values()]
    model = jax2onnx.to_onnx(lambda *xs: forward(dict(zip(names, xs, strict=True))), like)
    blob = model.SerializeToString()
    # its outputs against those of JAX
    inputs = [i.name for i in model.graph.input]
    want = np.asarray(jax.jit(forward)(example))
    batch = dict(zip(inputs, example.values(), strict=True))
    which = ", ".join(f"{name} is {ours}" for name, ours in zip(inputs, names, strict=True))
    facts = [
        f"ONNX by jax2onnx, for exactly {rows} rows: {which}",
        _onnxruntime_says(blob, batch, want),
    ]
    # the file and its card
    _put(to, blob)
    output = f"logits {'x'.join(map(str, want.shape))}"
    use = readers.ONNX.format(name=to.name, batch=_zeros(batch, str(rows)), output=output)
    for path in card.write(to, card.Made(cfg, task, run.step, run.score, facts), use):
        say(f"written: {path}")
    for fact in facts:
        say(fact)
    _show_use(use, to, f"program of {si(len(blob), 'B')}", say)


def _onnxruntime_says(blob: bytes, batch: dict[str, Any], want: np.ndarray) -> str:
    """Returns how far the logits of onnxruntime are from those of JAX."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not run by onnxruntime, which was not installed"
    import onnxruntime  # pyright: ignore[reportMissingImports]  # optional, and not in `dev`

    try:
        got = onnxruntime.InferenceSession(blob).run(None, batch)[0]
    except Exception as e:  # whatever it makes of an operation that it lacks
        what = f"onnxruntime cannot run this model ({str(e)[:200]})"
        raise UserError(what, "use --format=stablehlo") from None
    gap, largest = np.abs(got - want).max(), np.abs(want).max()
    version = onnxruntime.__version__
    return f"onnxruntime {version} gives logits that differ by {gap:.1e} at most, of {largest:.3g}"


def write(
    cfg: config.RunCfg, source: Path, to: Path, form: Form, say: Callable[[str], None]
) -> None:
    """Writes the best checkpoint as StableHLO, for batches of any size, and its card."""
    require(
        importlib.util.find_spec("flatbuffers") is not None,
        "flatbuffers is not installed",
        "pip install 'cerebra-jax[export]'",
    )
    task = preprocessing.restore(cfg, source, say)
    import jax  # from here on
    from jax import export

    from cerebra_jax.trained import Trained

    # the forward pass
    run = Trained(source, portable(cfg, False), task)
    example = given(task.example(2))
    forward, facts = logits_of(run), []
    if form.materialise:
        plain = np.asarray(jax.jit(forward)(example))
        run = Trained(source, portable(cfg, True), task)
        forward = logits_of(run, True)
        gap = np.abs(np.asarray(jax.jit(forward)(example)) - plain).max()
        facts.append(
            f"materialised: thresholds are constants{_materialised(run)}; "
            f"logits differ by {gap:.1e} at most, of {np.abs(plain).max():.3g}"
        )
    # the program, for any number of rows
    (b,) = export.symbolic_shape("b")
    like = {name: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for name, x in example.items()}
    exported = export.export(jax.jit(forward), platforms=form.platforms)(like)
    blob = bytes(exported.serialize())
    # the file and its card
    _put(to, blob)
    output = f"logits {'x'.join(map(str, exported.out_avals[0].shape))}"
    use = readers.of(to.name, cfg, task, _zeros(example, "2"), output)
    platforms = ", ".join(form.platforms)
    inputs = ", ".join(f"{name} {x.dtype}{[*x.shape[1:]]}" for name, x in example.items())
    facts.append(f"inputs, b rows: {inputs}")
    facts.append(f"platforms: {platforms}; made with JAX {jax.__version__}, and for no older one")
    for path in card.write(to, card.Made(cfg, task, run.step, run.score, facts), use):
        say(f"written: {path}")
    say(facts[0] if form.materialise else "thresholds and weights are inside")
    params = sum(np.asarray(x).nbytes for x in jax.tree.leaves(run.variables["params"]))
    size = f"program of {si(len(blob), 'B')}, {si(params, 'B')} of it weights"
    _show_use(use, to, f"{size}, for {platforms}", say)


def given(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a batch the forward pass reads."""
    return {name: x for name, x in batch.items() if name not in _NOT_READ}


def _put(to: Path, blob: bytes) -> None:
    """Writes the file at once or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    part.write_bytes(blob)
    os.replace(part, to)


def _zeros(batch: dict[str, Any], rows: str) -> str:
    """Returns Python for a batch of zeros like this one."""
    sizes = {name: ", ".join([rows, *map(str, x.shape[1:])]) for name, x in batch.items()}
    return ", ".join(
        f'"{name}": np.zeros(({sizes[name]}), np.{x.dtype})' for name, x in batch.items()
    )


def _show_use(use: str, to: Path, what: str, say: Callable[[str], None]) -> None:
    """Says how the file is run."""
    say(f"{what}; to run it:")
    for line in use.splitlines():
        say(f"    {line}")
    say(f"done: {to}")


def logits_of(run: Any, materialise: bool = False) -> Callable[[dict[str, Any]], Any]:
    """Returns logits(batch), float32, (B, L, V) or of a pooled head (B, outputs).

    The weights are constants of it.
    """
    import jax
    import jax.numpy as jnp

    from cerebra_jax.models.model import neutral_knobs

    model = run.model
    variables = jax.tree.map(jnp.asarray, folded(run, materialise))

    def logits(batch):
        rows = next(iter(batch.values())).shape[0]
        out, _ = model.apply(variables, batch | {"ex_B": jnp.arange(rows)}, neutral_knobs())
        logits = jnp.einsum(
            "bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD.astype(jnp.float32)
        )
        return logits[:, 0] if model.net.outputs else logits

    return logits


def portable(cfg: config.RunCfg, materialise: bool) -> config.RunCfg:
    """Returns the same model without a kernel of one vendor.

    Materialised: filters that no router sees are matrices.
    """
    net = cfg.net
    if net.attention in ("auto", "cudnn"):
        if present_platform() != "cpu":
            net = dataclasses.replace(net, attention="blockwise")
    if materialise:  # nothing is decoded for a loss
        route = net.route
        if net.name == "chiar":
            route = dataclasses.replace(route, dct="folded")
        compress = dataclasses.replace(net.compress, reconstruct=0.0)
        net = dataclasses.replace(net, route=route, compress=compress)
    return dataclasses.replace(cfg, net=net)


def folded(run: Any, materialise: bool) -> dict[str, Any]:
    """Returns the variables of a run with what is computed of its weights alone.

    Materialised, the compressor's maps are among it.
    """
    from cerebra_jax.models import cerebra

    variables = run.model.fold(run.variables)
    if materialise and run.model.name == "cerebra":
        variables |= {"folded": cerebra.folded(run.model.net, variables["params"])}
    return variables


def _materialised(run: Any) -> str:
    """Returns what `folded` has made, for a person."""
    count = len(folded(run, True)["folded"])
    if run.model.name == "chiar":
        return f", {count} DCT filters are matrices"
    if run.model.name != "cerebra":
        return ""
    if not count:
        return ", the compressor's two maps stay two: one would be more work, or they are int8"
    return f", {count} compressors give keys and values in one map"
