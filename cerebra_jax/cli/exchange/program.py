"""export --format=stablehlo: the forward pass of a run, its weights inside, as one file that needs JAX and no more."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cerebra_jax import config
from cerebra_jax.checks import need
from cerebra_jax.cli.cost import si
from cerebra_jax.cli.exchange import card
from cerebra_jax.tasks.build import build

PLATFORMS = ("cpu", "cuda", "tpu")
_NOT_READ = ("labels_BxL", "w_BxL", "ex_B", "index_B", "weight_B")  # of a batch, by the forward pass
HOW = """import numpy as np
from jax import export

with open("{name}", "rb") as file:
    run = export.deserialize(file.read())
batch = {{{batch}}}
print(run.call(batch))  # {output}, float32"""


def write(cfg: config.RunCfg, source: Path, to: Path, platforms: tuple[str, ...], materialise: bool,
          say: Callable[[str], None]) -> None:  # fmt: skip
    """Writes the program of the best checkpoint, for batches of any size, and its card."""
    missing = importlib.util.find_spec("flatbuffers") is None
    need(not missing, "flatbuffers is not installed", "pip install 'cerebra-jax[export]'")
    task = build(cfg, say)
    import jax  # from here on
    from jax import export

    from cerebra_jax.trained import Trained

    run = Trained(source, portable(cfg, False), task)
    example = {name: x for name, x in task.example(2).items() if name not in _NOT_READ}
    forward, facts = logits_of(run), []
    if materialise:
        plain, run = jax.jit(forward)(example), Trained(source, portable(cfg, True), task)
        forward = logits_of(run)
        gap = np.abs(np.asarray(jax.jit(forward)(example)) - np.asarray(plain)).max()
        facts.append(f"materialised: thresholds are constants{_filters(run)}; logits differ by {gap:.1e} at most, of "
                     f"{np.abs(plain).max():.3g}")  # fmt: skip
    (b,) = export.symbolic_shape("b")
    like = {name: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for name, x in example.items()}
    exported = export.export(jax.jit(forward), platforms=platforms)(like)
    blob = bytes(exported.serialize())
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    part.write_bytes(blob)
    os.replace(part, to)
    shape = "x".join(map(str, exported.out_avals[0].shape))
    given = ", ".join(f'"{name}": np.zeros({("b", *x.shape[1:])}, np.{x.dtype})' for name, x in example.items())
    how = HOW.format(name=to.name, batch=given.replace("'b'", "2"), output=f"logits {shape}")
    facts.append(f"inputs, b rows: {', '.join(f'{name} {x.dtype}{[*x.shape[1:]]}' for name, x in example.items())}")
    facts.append(f"platforms: {', '.join(platforms)}; made with JAX {jax.__version__}, and for no older one")
    for path in card.write(to, cfg, task, run.step, run.score, facts, how):
        say(f"written: {path}")
    params = sum(np.asarray(x).nbytes for x in jax.tree.leaves(run.variables["params"]))
    say(f"{facts[0]}" if materialise else "thresholds and weights are inside")
    say(f"program of {si(len(blob), 'B')}, {si(params, 'B')} of it weights, for {', '.join(platforms)}; to run it:")
    for line in how.splitlines():
        say(f"    {line}")
    say(f"done: {to}")


def logits_of(run: Any) -> Callable[[dict[str, Any]], Any]:
    """logits(batch) -> (B, L, V), or of a pooled head (B, outputs), float32; the weights are constants of it."""
    import jax
    import jax.numpy as jnp

    from cerebra_jax.models.build import neutral_knobs

    model = run.model
    variables = jax.tree.map(jnp.asarray, model.fold(run.variables))

    def logits(batch):
        rows = next(iter(batch.values())).shape[0]
        out, _ = model.apply(variables, batch | {"ex_B": jnp.arange(rows)}, neutral_knobs())
        logits = jnp.einsum("bld,vd->blv", out.h.astype(jnp.float32), out.head_VxD.astype(jnp.float32))
        return logits[:, 0] if model.net.outputs else logits

    return logits


def portable(cfg: config.RunCfg, materialise: bool) -> config.RunCfg:
    """The same model without a kernel of one vendor; materialised: filters that no router sees are matrices."""
    net = cfg.net
    if net.attention in ("auto", "cudnn"):
        import jax

        if jax.default_backend() == "gpu":
            net = dataclasses.replace(net, attention="blockwise")
    if materialise and net.name == "chiar":
        net = dataclasses.replace(net, route=dataclasses.replace(net.route, dct="folded"))
    return dataclasses.replace(cfg, net=net)


def _filters(run: Any) -> str:
    folded = run.model.fold(run.variables).get("folded", {})
    return f", {len(folded)} DCT filters are matrices" if folded else ""
