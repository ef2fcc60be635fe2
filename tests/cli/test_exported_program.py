"""export --format=stablehlo: a file that runs without this package and gives our logits, for any
number of rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import export

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.cli import exported_program as program
from cerebra_jax.main import main
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import trainer as loop

NETS = {
    "transformer": {"name": "transformer"},
    "cerebra": {"name": "cerebra", "depth": 1},
    "chiar": {"name": "chiar", "depth": 3, "route": {"dct": "fft"}},
    "encoder": {"name": "cerebra", "causal": False, "depth": 1, "route": {"mode": "topk"}},
}
ALONE = """
import os
import sys
import numpy as np
assert not any("cerebra_jax" in path for path in sys.path)
for folder in sys.argv[1:]:
    os.chdir(folder)
    lines = open("model.stablehlo.md").read().split("```python")[1].split("```")[0]
    exec(lines)  # the lines of the card, in the folder of the file
    given = dict(np.load("batch.npz"))
    for rows in (1, 3):
        np.save(f"out{rows}.npy", run.call({name: x[:rows] for name, x in given.items()}))
assert "cerebra_jax" not in sys.modules and "flax" not in sys.modules
"""


@pytest.fixture(scope="module")
def runs(tiny_cfg, Screen, tmp_path_factory):
    """name -> folder of a trained run."""
    top, rng = tmp_path_factory.mktemp("export"), random.Random(0)
    for split in ("train", "valid", "test"):
        (top / f"{split}.txt").write_text(f"the {split} text is short and plain\n" * 9)
    rows = [
        f"{rng.choice('abc')},{rng.gauss(0, 1):.3f},{rng.choice(['in', 'out'])}" for _ in range(60)
    ]
    (top / "t.csv").write_text("kind,x,y\n" + "\n".join(rows) + "\n")
    found = {}
    for name, net in NETS.items():
        task = {"data_dir": str(top), "tokenizer": "bpe", "vocab_size": 262}
        if name == "encoder":
            task = {"name": "tabular", "path": str(top / "t.csv"), "target": "y", "seq_len": 0}
        cfg = tiny_cfg(
            {
                "task": task,
                "net": {"width": 16, "ffn_width": 32} | net,
                "train": {"duration": "2 steps", "batch_size": 4, "devices": 1},
            }
        )
        found[name] = top / name
        found[name].mkdir()
        (found[name] / "config.json").write_text(json.dumps(config.to_dict(cfg)))
        loop.run(cfg, build(cfg, print), found[name], Screen())
    return found


@pytest.fixture(scope="module")
def exported(runs, clean_env, tmp_path_factory):
    """name -> (folder of its program, which ran there on `batch.npz`, the run, that batch, what
    export said).
    """
    found = {}
    for name, workdir in runs.items():
        folder = tmp_path_factory.mktemp(name)
        words = [
            "--format=stablehlo",
            f"--to={folder / 'model.stablehlo'}",
            *(["--materialise"] * (name == "chiar")),
        ]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert main(["export", f"--workdir={workdir}", *words]) == 0
        run = cerebra_jax.load(workdir)
        batch = next(iter(build(run.cfg, print).eval_batches("valid", 3)))
        np.savez(folder / "batch.npz", **program.given(batch))
        found[name] = folder, run, batch, said.getvalue()
    env = {key: value for key, value in clean_env.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-P", "-c", ALONE, *(folder for folder, *_ in found.values())]
    done = subprocess.run(words, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return found


@pytest.mark.parametrize("name", NETS)
def test_a_program_runs_alone_and_gives_our_logits(name, exported):
    folder, run, batch, said = exported[name]
    assert f"done: {folder / 'model.stablehlo'}" in said and "from jax import export" in said
    assert (
        config.parse((folder / "model.stablehlo.config.json").read_text()).net.name
        == NETS[name]["name"]
    )
    if name != "encoder":
        from tokenizers import Tokenizer

        text = "the plain text"
        ids = Tokenizer.from_file(str(folder / "model.stablehlo.tokenizer.json")).encode(text).ids
        assert ids == list(run.task.encode(text))
    for rows in (1, 3):
        want = np.asarray(run._logits(run.variables, {key: x[:rows] for key, x in batch.items()}))
        want, got = want[:, 0] if name == "encoder" else want, np.load(folder / f"out{rows}.npy")
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))


def test_materialised_filters_are_matrices_and_logits_stay(runs, exported):
    cfg = config.parse((runs["chiar"] / "config.json").read_text())
    assert (
        program.portable(cfg, True).net.route.dct == "folded"
        and program.portable(cfg, False).net == cfg.net
    )
    said = re.search(
        r"(\d) DCT filters are matrices; logits differ by (\S+) at most, of (\S+)",
        exported["chiar"][3],
    )
    assert int(said[1]) == 1 and float(said[2]) < 1e-5 * float(said[3])


@pytest.mark.usefixtures("eight_bits")
def test_int8_weights_go_into_a_program(runs, exported, tmp_path, capsys):
    cfg = config.parse((runs["cerebra"] / "config.json").read_text())
    eight = dataclasses.replace(cfg, quant=config.QuantCfg(bits=8, start="1 frac"))
    run, small, to = tmp_path / "run", tmp_path / "int8", tmp_path / "small"
    run.mkdir()
    (run / "checkpoints").symlink_to(runs["cerebra"] / "checkpoints")
    (run / "config.json").write_text(json.dumps(config.to_dict(eight)))
    assert main(["convert", f"--workdir={run}", f"--to={small}"]) == 0
    assert (
        main(
            ["export", f"--workdir={small}", "--format=stablehlo", f"--to={to}", "--platforms=cpu"]
        )
        == 0
    )
    assert "int8 in linear layers" in Path(f"{to}.md").read_text()
    weights = [
        float(re.search(r"(\S+) kB of it weights", said)[1])
        for said in (exported["cerebra"][3], capsys.readouterr().out)
    ]
    assert weights[1] < 0.8 * weights[0]  # a tiny one is mostly embeddings
    batch, loaded = exported["cerebra"][2], cerebra_jax.load(small)
    want = np.asarray(loaded._logits(loaded.variables, batch))
    got = export.deserialize(to.read_bytes()).call({"inputs_BxL": batch["inputs_BxL"]})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))


def test_what_cannot_be_exported_is_one_line(runs, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else find(name)
    )
    run = f"--workdir={runs['transformer']}"
    for words, line in (
        (["--format=tflite"], "choose safetensors, stablehlo or onnx"),
        (["--format=stablehlo", "--platforms=gpu"], "choose among cpu, cuda, tpu"),
        (["--format=onnx"], "jax2onnx is not installed; pip install jax2onnx"),
        (["--format=onnx", "--rows=0"], "--rows is '0'"),
        (["--materialise"], "--materialise is given for safetensors"),
    ):
        assert main(["export", run, f"--to={tmp_path / 'x'}", *words]) == 2
        assert line in capsys.readouterr().err
