"""import and export as a user types them.

Files that would run code, and files that are no checkpoint.
"""

import json
import os
import pickle
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cerebra_jax import config
from cerebra_jax.cli import tensor_files as files
from cerebra_jax.main import main
from cerebra_jax.models import model as models
from cerebra_jax.models import published_chiar as chiar
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import imported as outside
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.trees import named_leaves

SIZES = {"depth": 4, "width": 32, "heads": 2, "ffn_width": 64}


def random_params(cfg, vocab):
    """Random float32 parameters of a model, by name."""
    rng, model = np.random.RandomState(3), models.build(cfg, vocab)
    batch = {"inputs_BxL": np.zeros((1, cfg.task.seq_len), np.int32), "ex_B": np.zeros(1, np.int32)}
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]
    return {
        name: rng.randn(*a.shape).astype(np.float32) / 4 for name, a in named_leaves(like).items()
    }


@pytest.fixture(scope="module")
def sd(tiny_cfg):
    """A state_dict in the authors' names, random, for the vocabulary of bytes."""
    cfg = tiny_cfg({"net": SIZES | {"compat": True}})
    return chiar.theirs(random_params(cfg, 257), cfg.net)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"the {split} text is short\n" * 9)
    return [
        f"--config.task.data_dir={folder}",
        "--config.task.tokenizer=bytes",
        "--config.task.seq_len=32",
    ]


@pytest.fixture(scope="module")
def run(sd, data, tmp_path_factory):
    """The folder of a run made out of a .safetensors file of the authors' names."""
    folder = tmp_path_factory.mktemp("run")
    save_file(sd, folder / "model.safetensors", {"step": "7", "format": "pt"})
    words = [
        "import",
        f"--from={folder / 'model.safetensors'}",
        f"--to={folder / 'run'}",
        "--tau=0.8,0.85",
    ]
    assert main([*words, "--config.net.heads=2", *data]) == 0
    return folder / "run"


def test_an_imported_run_is_one_for_eval_generate_and_train(run, tmp_path, capsys):
    assert config.parse(json.loads((run / "config.json").read_text())).net.compat
    assert main(["eval", f"--workdir={run}"]) == 0
    assert "not causal" in capsys.readouterr().out
    line = json.loads((run / "eval-test.json").read_text())
    assert (
        line["loss"] > 1
        and 0.2 < line["hard_rel_flops"] < 1
        and line["causal"] is False
        and "later tokens" in line["notice"]
    )
    assert main(["heatmap", f"--workdir={run}", "--text=the test"]) == 0
    assert "later tokens" in (run / "heatmap.html").read_text()
    assert main(["generate", f"--workdir={run}", "--prompt=the", "--max_tokens=4"]) == 2
    assert "net.route.meta is batch" in capsys.readouterr().err
    words = [
        "generate",
        f"--workdir={run}",
        "--prompt=the",
        "--max_tokens=4",
        "--config.net.route.meta=prefix",
    ]
    assert main(words) == 0
    assert "routed tokens kept" in capsys.readouterr().out
    shutil.copytree(run, tmp_path / "run")
    assert (
        main([f"--config={run / 'config.json'}", f"--workdir={tmp_path / 'run'}"]) == 0
    )  # it is trained: only measured
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["best_step"], result["causal"], result["test"]["loss"]) == (
        7,
        False,
        line["loss"],
    )
    assert "later tokens" in result["notice"]


def test_a_run_with_a_sampler_has_a_table_of_the_texts_examples(sd, data, tmp_path):
    """Which no other model needs to be made, and only the text itself can count."""
    save_file(sd, tmp_path / "model.safetensors", {"step": "7", "format": "pt"})
    words = [
        "import",
        f"--from={tmp_path / 'model.safetensors'}",
        f"--to={tmp_path / 'run'}",
        "--config.net.heads=2",
    ]
    assert main([*words, "--config.sampler.beta=0.5", "--config.train.batch_size=2", *data]) == 0
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", print, read_only=True)
    _, named, _ = checkpoints.named()
    checkpoints.close()
    cfg = config.parse(json.loads((tmp_path / "run" / "config.json").read_text()))
    examples = build(cfg, print).examples
    assert examples > 1 and any(
        a.shape[:1] == (examples,) for name, a in named.items() if name.startswith("sampler/")
    )


def test_there_and_back_again_is_bitwise(run, sd, data, tmp_path, capsys):
    assert (
        main(
            [
                "export",
                f"--workdir={run}",
                "--format=safetensors",
                f"--to={tmp_path / 'out.safetensors'}",
            ]
        )
        == 0
    )
    assert "other logits" not in capsys.readouterr().out
    back = load_file(tmp_path / "out.safetensors")
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in back.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in sd.items()
    }
    # the file says how it is configured, and where its thresholds are
    assert (
        main(["import", f"--from={tmp_path / 'out.safetensors'}", f"--to={tmp_path / 'again'}"])
        == 0
    )
    assert (tmp_path / "again" / "config.json").read_text() == (run / "config.json").read_text()
    for folder in (run, tmp_path / "again"):
        step, named, score, _ = outside.load(folder, print)
        assert (step, score) == (7, np.log(257))
        np.testing.assert_array_equal(named["routing/tau"], np.float32([0.8, 0.85]))
    measured = {
        "step": 7,
        "data": "other text",
        "tau": [0.5, 0.6],
        "spread": [0.1, 0.1],
    }  # what calibrate writes
    (tmp_path / "again" / "thresholds.json").write_text(json.dumps(measured))
    assert (
        main(["export", f"--workdir={tmp_path / 'again'}", f"--to={tmp_path / 'new.safetensors'}"])
        == 0
    )
    assert json.loads(files.read(tmp_path / "new.safetensors").about["tau"]) == [
        0.5,
        np.float32(0.6),
    ]


def test_a_checkpoint_of_pytorch_is_the_same_run(run, sd, data, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="reading a .pt takes PyTorch: the extra `import`")
    tables = {
        f"layers.{i}.attn.rope.inv_freq": torch.tensor(1e4 ** (-np.arange(8) / 8)).float()
        for i in (1, 2, 3)
    }
    tables |= {f"layers.{i}.attn.rope.cos_cache": torch.ones(32, 16) for i in (1, 2, 3)}
    state = {name: torch.tensor(a) for name, a in sd.items()} | tables
    checkpoint = {
        "step": 7,
        "model": state,
        "val_ppl": 99.5,
        "cfg": {"routing_mode": "threshold", "vocab_size": 257},
    }
    checkpoint["cfg"] |= {"tau_low": 0.8, "tau_high": 0.9}
    torch.save(checkpoint, tmp_path / "best.pt")
    assert (
        main(["import", f"--from={tmp_path / 'best.pt'}", f"--to={tmp_path / 'run'}", *data]) == 0
    )
    shown = capsys.readouterr().out
    assert "threshold 0.85" in shown and "6 tensors" in shown and "not causal" in shown
    step, named, score, _ = outside.load(tmp_path / "run", print)
    want = outside.load(run, print).named
    assert (step, score) == (7, np.log(99.5)) and named.keys() == want.keys()
    assert all(
        named[name].tobytes() == a.tobytes() for name, a in want.items() if name != "routing/tau"
    )
    torch.save(state, tmp_path / "plain.pt")  # a state_dict alone says as much
    assert (
        main(["import", f"--from={tmp_path / 'plain.pt'}", f"--to={tmp_path / 'plain'}", *data])
        == 0
    )
    assert "threshold 0.8954: the file names none" in capsys.readouterr().out


class Bomb:
    """A file that holds it makes `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(sd, data, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="reading a .pt takes PyTorch: the extra `import`")
    canary = tmp_path / "canary"
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"model": Bomb(canary)}, protocol=2))
    torch.save({"model": {"token_emb.weight": Bomb(canary)}}, tmp_path / "zip.pt")
    torch.save(
        {"model": {"w": torch.ones(2)}, "cfg": Bomb(canary)},
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Bomb(canary)))
    for name in ("raw.pt", "zip.pt", "old.pt", "raw.safetensors"):
        assert (
            main(["import", f"--from={tmp_path / name}", f"--to={tmp_path / 'run'}", *data]) == 2
        ), name
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and name in err, err
        assert "mkdir, and nothing of it was run" in err or name == "raw.safetensors"
    assert not canary.exists() and not (tmp_path / "run").exists()
    pickle.loads((tmp_path / "raw.pt").read_bytes())  # this is how it would have been made
    assert canary.exists()


def test_files_that_are_no_checkpoint_are_one_line(sd, data, tmp_path, capsys, monkeypatch):
    def refused(tensors, *words):
        path = tmp_path / "x.safetensors"
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        else:
            save_file(tensors, path)
        assert main(["import", f"--from={path}", f"--to={tmp_path / 'run'}", *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert not (tmp_path / "run" / "config.json").exists()
        return err

    assert "no .safetensors file" in refused(b"\x00" * 40, *data)
    assert "not finite" in refused(sd | {"norm.bias": np.full(32, np.nan, np.float32)}, *data)
    assert "no plain tensor" in refused(sd | {"norm.bias": np.zeros(32, np.int64)}, *data)
    assert "how many attention heads" in refused(sd, *data)
    assert "which tokenizer has 257 tokens" in refused(sd, "--config.net.heads=2")
    assert "3 thresholds for 2" in refused(sd, *data, "--config.net.heads=2", "--tau=0.1,0.2,0.3")
    assert "--tau" in refused(sd, *data, "--tau=7")
    tables = {"layers.3.attn.rope.inv_freq": 1e4 ** (-np.arange(8, dtype=np.float32) / 8)}
    assert "net.heads is 4, the file says 2" in refused(sd | tables, *data, "--config.net.heads=4")
    path = tmp_path / "y.safetensors"
    for about in (
        {"config": "{", "names": "chiar"},
        {"config": "[" * 100_000, "names": "chiar"},
        {"config": "{}"},
        {"step": "-1"},
        {"step": "9" * 12},
        {"val_ppl": "many"},
        {"config": "{}", "names": "chiar", "tau": "x"},
    ):
        save_file(sd, path, about)
        assert (
            main(
                [
                    "import",
                    f"--from={path}",
                    f"--to={tmp_path / 'run'}",
                    "--config.net.heads=2",
                    *data,
                ]
            )
            == 2
        ), about
        assert capsys.readouterr().err.count("\n") == 1
    wrong = {"layers.1.ffn.0.weight": np.zeros((63, 32), np.float32)}
    assert "mlp/ffn/up/kernel is [32, 63]" in refused(sd | wrong, *data, "--config.net.heads=2")
    monkeypatch.setitem(sys.modules, "torch", None)  # not installed
    (tmp_path / "x.pt").write_bytes(b"no zip")
    assert main(["import", f"--from={tmp_path / 'x.pt'}", f"--to={tmp_path / 'run'}"]) == 2
    assert "torch is not installed; pip install 'cerebra-jax[import]'" in capsys.readouterr().err
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "precious").touch()
    assert main(["import", f"--from={tmp_path / 'x.pt'}", f"--to={tmp_path / 'run'}"]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "net",
    [{"name": "cerebra"}, {"name": "chiar", "scan": True}, {"route": {"mode": "hard"}}],
    ids=str,
)
def test_any_run_goes_out_and_comes_back_bitwise(net, tiny_cfg, tmp_path, capsys):
    """In our own names where the authors have none, whatever its configuration."""
    elsewhere = {"task.cache_dir": "elsewhere", "sampler.beta": 0.5, "train.duration": "3 epochs"}
    cfg = tiny_cfg({"net": {"depth": 4} | net} | elsewhere)
    named = {f"params/{name}": a for name, a in random_params(cfg, 257).items()}
    tau = np.linspace(0.1, 0.9, cfg.net.depth if cfg.net.name == "cerebra" else cfg.net.depth - 2)
    named |= {"routing/tau": np.float32(tau), "routing/spread": np.float32(tau)}
    file, theirs = tmp_path / "a.safetensors", "scan" in net
    files.write(
        file,
        named,
        {"config": json.dumps(config.to_dict(cfg)), "names": "cerebra_jax", "step": "5"},
    )
    for i in range(2):
        assert main(["import", f"--from={file}", f"--to={tmp_path / f'run{i}'}"]) == 0
        file = tmp_path / f"{i}.safetensors"
        assert main(["export", f"--workdir={tmp_path / f'run{i}'}", f"--to={file}"]) == 0
        assert ("token_emb.weight" in load_file(file)) == theirs
        other = "other logits than net.compat=False, net.route.meta=prefix, net.route.dispatch=True"
        assert (other in capsys.readouterr().out) == theirs
    assert (
        load_file(tmp_path / "0.safetensors").keys() == load_file(tmp_path / "1.safetensors").keys()
    )
    assert json.loads((tmp_path / "run1" / "config.json").read_text())["task"]["cache_dir"] == ""
    step, back, *_ = outside.load(tmp_path / "run1", print)
    assert step == 5 and back.keys() == named.keys()
    changed = [name for name, a in named.items() if back[name].tobytes() != a.tobytes()]
    assert changed == (
        ["routing/spread"] if theirs else []
    )  # the authors' names have no place for it
