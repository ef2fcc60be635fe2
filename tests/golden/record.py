"""Records the first steps of twelve small runs: what a rebuild of the inside must not change.

    python tests/golden/record.py [NAME ...]     writes tests/golden/NAME.json

Each run goes through the entry of the command line, so the recording does not depend on how the
package is built inside. Losses, gradient norms, costs and the share of tokens on the heavy path are
kept for every step, costs for the end.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from cerebra_jax.main import main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STEPS = 8
SMALL = (
    "--config.task.data_dir={text}",
    "--config.task.tokenizer=bytes",
    "--config.task.vocab_size=260",
    "--config.task.seq_len=32",
    "--config.net.width=32",
    "--config.net.heads=2",
    "--config.net.ffn_width=64",
    "--config.train.batch_size=8",
    "--config.net.loss_chunk=64",
)
TEXT = ("--config.net.depth=2", *SMALL)
DEEP = ("--config.net.depth=3", *SMALL)  # CHIAR has a first and a last layer of its own
TABLE = ("--config.task.path={table}", "--config.task.target=y", "--config.train.batch_size=16")
LEARNT = (
    "--config.net.route.tau=learned",
    "--config.objective.warm=0 steps",
    "--config.objective.ramp=2 steps",
)
RUNS: dict[str, tuple[str, ...]] = {
    "dense": ("configs/wikitext.py:dense-smoke", *TEXT, "--config.net.local=3"),
    "chiar": ("configs/wikitext.py:chiar-smoke", *DEEP),
    "chiar-demand": (
        "configs/wikitext.py:chiar-smoke",
        *DEEP,
        "--config.net.route.mode=hard",
        "--config.objective.lam=0.1",
        "--config.net.route.kv=routed",
    ),
    "chiar-three-operators": (
        "configs/wikitext.py:chiar-smoke",
        *DEEP,
        "--config.net.route.rbf=0.3",
    ),
    "cerebra-budget": (
        "configs/wikitext.py:cerebra-smoke",
        *TEXT,
        *LEARNT,
        "--config.objective.budget=0.8",
        "--config.objective.buckets=2",
    ),
    "cerebra-full": (
        "configs/wikitext.py:cerebra-full-smoke",
        *TEXT,
        "--config.prune.rounds=2",
        "--config.prune.tile=2",
    ),
    "mod": ("configs/wikitext.py:mod-smoke", *TEXT),
    "window": ("configs/wikitext.py:window-smoke", *TEXT, "--config.net.window=9"),
    "ssm": ("configs/wikitext.py:ssm-smoke", *TEXT),
    "lstm": ("configs/wikitext.py:lstm-smoke", *TEXT),
    "cnn": ("configs/wikitext.py:cnn-smoke", *TEXT),
    "table": ("configs/tabular.py:smoke", *TABLE),
    "table-sampled": (
        "configs/tabular.py:full-smoke",
        *TABLE,
        "--config.quant.bits=0",
        "--config.prune.tile=2",
        "--config.sampler.start=2 steps",
        "--config.prune.rounds=2",
    ),
    "table-fnet": ("configs/tabular.py:dense-smoke", *TABLE, "--config.net.name=fnet"),
    "table-mlp": ("configs/tabular.py:dense-smoke", *TABLE, "--config.net.name=mlp"),
}
KEPT = ("loss", "grad_norm", "lr", "lam", "multiplier", "budget_target")


def write_data(folder: Path) -> dict[str, str]:
    """Writes a small text and a small table, the same ones every time."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(1, 7))) for _ in range(60)]
    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 900), ("valid", 120), ("test", 120)):
        lines = [" ".join(rng.choice(words) for _ in range(9)) for _ in range(count // 9)]
        (text / f"{split}.txt").write_text("\n".join(lines) + "\n")
    rows = []
    for _ in range(200):
        kind, x = rng.choice("abc"), rng.gauss(0, 1)
        rows.append(f"{kind},{x:.3f},{rng.gauss(5, 2):.3f},{x + 'abc'.index(kind):.3f}")
    (folder / "table.csv").write_text("kind,x,z,y\n" + "\n".join(rows) + "\n")
    return {"text": str(text), "table": str(folder / "table.csv")}


def train(name: str, folder: Path) -> Path:
    """Trains the run of that name for a few steps, on one device; returns its folder."""
    data = write_data(folder)
    config, *flags = (word.format(**data) for word in RUNS[name])
    workdir = folder / name
    often = ("duration", "eval_every", "checkpoint_every")
    words = [f"--config={ROOT / config}", *flags, "--config.train.devices=1"]
    words += [f"--config.train.{key}={STEPS} steps" for key in often]
    if status := main([*words, f"--workdir={workdir}"]):
        raise RuntimeError(f"{name} ended with status {status}")
    return workdir


def read(workdir: Path) -> dict[str, Any]:
    """Returns the figures that a rebuild may not change: per step, of both evaluations, and of the
    end.
    """
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = []
    for line in lines:
        kept = {key: line[key] for key in KEPT if line.get(key) is not None}
        kept |= {key: value for key, value in line.items() if key.endswith("_rel_flops")}
        kept["decisions"] = {
            key: line["gates"][key] for key in ("kept", "overflow", "mixed") if key in line["gates"]
        }
        steps.append({"split": line["split"], "step": line["step"]} | kept)
    result = json.loads((workdir / "result.json").read_text())
    costs = {
        key: result["costs"][key]
        for key in ("dense", "dense_executed", "executed_flops", "train_total")
    }
    return {"params": result["params"], "costs": costs, "lines": steps}


def record(names: list[str]) -> None:
    """Records the runs of these names, all of them where none is given."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or RUNS:
            found = read(train(name, Path(folder)))
            (HERE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}: {len(found['lines'])} lines", flush=True)


if __name__ == "__main__":
    record(sys.argv[1:])
