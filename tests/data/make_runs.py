"""Makes the five small runs of this folder. They were written before the inside was rebuilt, and
must still be read.

python tests/data/make_runs.py (only to add a run: those that are here stay as the old code wrote
them)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "golden"))

from record import TABLE, TEXT, write_data  # noqa: E402

SMALL = ("--config.net.width=16", "--config.net.ffn_width=32")
RUNS = {
    "chiar": ("configs/wikitext.py:chiar-smoke", *TEXT, *SMALL),
    "cerebra": (
        "configs/wikitext.py:cerebra-smoke",
        *TEXT,
        *SMALL,
        "--config.net.route.tau=learned",
        "--config.objective.budget=0.85",
        "--config.net.depth=2",
    ),
    "dense": ("configs/wikitext.py:dense-smoke", *TEXT, *SMALL, "--config.net.depth=2"),
    "stopped": ("configs/wikitext.py:mod-smoke", *TEXT, *SMALL, "--config.sampler.beta=0.5"),
    "table": (
        "configs/tabular.py:smoke",
        *TABLE,
        "--config.net.width=16",
        "--config.net.ffn_width=32",
    ),
}


def main() -> None:
    """Trains each run that is not there yet; `stopped` is told to stop at step 4 of 8."""
    write_data(HERE / "input")
    data = {"text": "tests/data/input/text", "table": "tests/data/input/table.csv"}
    for name, words in RUNS.items():
        workdir = HERE / "old_runs" / name
        if workdir.with_suffix(".tar.gz").exists():
            continue
        config, *flags = (word.format(**data) for word in words)
        command = [
            sys.executable,
            "-m",
            "cerebra_jax.main",
            f"--config={config}",
            *flags,
            f"--workdir={workdir}",
        ]
        command += [
            f"--config.train.{key}=8 steps"
            for key in ("duration", "eval_every", "checkpoint_every")
        ]
        chaos = {"CEREBRA_CHAOS": "SIGTERM@4"} if name == "stopped" else {}
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | chaos, check=False
        )
        assert done.returncode == (75 if chaos else 0), name
        shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
        (workdir / "run.lock").unlink(missing_ok=True)
        shutil.make_archive(str(workdir), "gztar", workdir.parent, name)
        shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
