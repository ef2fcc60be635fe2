"""A sweep of a real run: killed and run again it is done, and it cost what was said before."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
def get_sweep():
    yield {"config": "configs/wikitext.py:cerebra-smoke", "name": "mine", "task.tokenizer": "bytes",
           "task.seq_len": 32, "net.depth": 2, "net.width": 16, "net.heads": 2, "net.ffn_width": 16,
           "train.batch_size": 4, "train.duration": "8 steps", "train.eval_every": "8 steps",
           "train.checkpoint_every": "2 steps"}
"""


def test_a_killed_run_goes_on_and_costs_what_was_said(tmp_path, clean_env):
    """That it ends bit for bit as if nothing had happened is in test_kill.py."""
    rng = random.Random(1)
    (tmp_path / "text").mkdir()
    for split, lines in (("train", 300), ("valid", 20), ("test", 20)):
        rows = (
            " ".join(rng.choice(["the", "cat", "sat", "on", "mats"]) for _ in range(12))
            for _ in range(lines)
        )
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "mine.py").write_text(SWEEP)
    words = [
        "sweep",
        f"--config={tmp_path / 'mine.py'}",
        f"--config.task.data_dir={tmp_path / 'text'}",
        f"--workdir={tmp_path / 'runs'}",
        "--jobs=2",
    ]

    def start(**env: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", "cerebra_jax.main", *words]
        return subprocess.run(
            line, env=clean_env | env, cwd=ROOT, capture_output=True, text=True, timeout=900
        )

    killed = start(CEREBRA_CHAOS="SIGKILL@5")
    assert killed.returncode == 1 and "killed by SIGKILL" in killed.stdout, killed.stdout
    assert (
        killed.stderr == "error: 1 of 1 points failed: mine-s0; the same command tries them again\n"
    )
    again = start()
    assert again.returncode == 0 and not again.stderr, again.stdout
    assert again.stdout.startswith("to resume mine-s0 ")
    assert "resuming at step" in (tmp_path / "runs" / "mine-s0" / "screen.txt").read_text()
    result = json.loads((tmp_path / "runs" / "mine-s0" / "result.json").read_text())
    said = again.stdout.splitlines()[0]
    assert f"8 steps · {result['costs']['train_total'] / 1e6:.3g} MFLOP" in said
    assert f"{result['costs']['relative']['executed']:.3f} of dense" in said
