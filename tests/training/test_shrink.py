"""shrink: a smaller run that answers as the pruned one did, and trains on with its optimizer."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import cerebra_jax
from cerebra_jax import config, main
from cerebra_jax.layers import prunable as units
from cerebra_jax.training import shrink as cut
from cerebra_jax.training import workdir as record
from cerebra_jax.training.checkpoint import Checkpoints

NET = {
    "name": "cerebra",
    "causal": False,
    "depth": 2,
    "width": 32,
    "heads": 4,
    "ffn_width": 64,
    "route": {"mode": "topk"},
}
TRAIN = {
    "duration": "8 steps",
    "batch_size": 8,
    "eval_every": "4 steps",
    "checkpoint_every": "4 steps",
    "devices": 1,
}


def write(path: Path, net: dict, **more) -> Path:
    """A table and a run's configuration about it, as a file."""
    rng = random.Random(0)
    rows = [f"{rng.choice('abc')},{rng.gauss(0, 1):.3f},{rng.gauss(5, 2):.3f}" for _ in range(60)]
    (path / "t.csv").write_text("kind,x,y\n" + "\n".join(rows) + "\n")
    task = {"name": "tabular", "path": str(path / "t.csv"), "target": "y", "seq_len": 0}
    record.write_json(
        path / "c.json",
        config.to_dict(config.parse({"task": task, "net": net, "train": TRAIN} | more)),
    )
    return path / "c.json"


def arrays(workdir: Path) -> dict:
    checkpoints = Checkpoints(workdir / "checkpoints", print, read_only=True)
    _, named, _ = checkpoints.named()
    checkpoints.close()
    return named


def size(workdir: Path) -> int:
    return sum(
        path.stat().st_size for path in (workdir / "checkpoints").rglob("*") if path.is_file()
    )


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A run that pruned to 0.6 of its FLOPs, with a tile of 4 (of 1 for the units it cuts one by
    one).
    """
    path = tmp_path_factory.mktemp("pruned")
    file = write(
        path, NET, prune={"keep": 0.6, "start": "2 steps", "end": "5 steps", "rounds": 3, "tile": 1}
    )
    assert main.main(["--config", str(file), "--workdir", str(path / "run")]) == 0
    return path / "run"


@pytest.fixture(scope="module")
def small(pruned):
    to = pruned.parent / "small"
    words = [
        "shrink",
        "--workdir",
        str(pruned),
        "--to",
        str(to),
        "--tile=1",
        "--config.train.duration=12 steps",
    ]
    assert main.main(words) == 0
    return to


def test_the_smaller_run_answers_as_the_pruned_one(pruned, small, capsys):
    rows = [{"kind": kind, "x": x} for kind in "abc" for x in (-1.0, 0.3, 2.0)]
    want, got = (
        np.array(cerebra_jax.load(run).predict(rows)["prediction"]) for run in (pruned, small)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.std(want) > 0
    cfg = config.parse((small / "config.json").read_text())
    assert (
        not cfg.prune.on and cfg.net.kept != config.KeptCfg() and cfg.train.duration == "12 steps"
    )
    assert main.main(["eval", "--workdir", str(small), "--split=valid"]) == 0
    capsys.readouterr()
    a, b = (record.read_json(p) for p in (pruned / "result.json", small / "eval-valid.json"))
    assert abs(a["val"]["rmse"] / b["rmse"] - 1) < 1e-5
    np.testing.assert_allclose(b["executed_rel_flops"], a["val"]["kept_rel_flops"], rtol=1e-9)


def test_optimizer_and_weights_are_the_rows_that_are_left(pruned, small):
    before, after = arrays(pruned), arrays(small)
    assert not [name for name in after if name.startswith("prune/")]
    masks = {
        name.removeprefix("prune/units/"): a
        for name, a in before.items()
        if name.startswith("prune/units/")
    }
    assert any(0 < m.sum() < m.size for m in masks.values())
    for name in [name for name in masks if "/compressor/" not in name]:
        mask = masks[name]
        rows = np.repeat(mask, before[f"params/{name}"].shape[0] // mask.size) > 0
        of = [key for key in before if key.endswith(f"/{name}") and not key.startswith("prune/")]
        assert len(of) == 3  # the parameter, and two moments
        for key in of:
            np.testing.assert_array_equal(after[key], before[key][rows])
    count = {
        key: sum(a.size for name, a in x.items() if name.startswith("params/"))
        for key, x in (("before", before), ("after", after))
    }
    assert size(small) < (count["after"] / count["before"] + 0.05) * size(pruned)
    assert after["step"] == before["step"] > 5


def test_training_goes_on_from_the_smaller_run(small, tmp_path, capsys):
    import shutil

    shutil.copytree(small, tmp_path / "run")
    assert main.main(["--config", str(tmp_path / "run" / "config.json")]) == 0
    assert "resuming at step 8 of 12" in capsys.readouterr().out
    found = record.read_json(tmp_path / "run" / "result.json")
    assert found["steps"] == 12 and found["params"] < 0.9 * sum(
        a.size for name, a in arrays(small.parent / "run").items() if name.startswith("params/")
    )


def test_a_sampled_run_on_text_keeps_its_table(tmp_path):
    """The sampler counts the text's examples, which no other model needs to be built."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"the {split} text is short\n" * 40)
    task = {"data_dir": str(tmp_path), "tokenizer": "bytes", "seq_len": 32}
    prune = {"keep": 0.7, "start": "2 steps", "end": "5 steps", "rounds": 2, "tile": 1}
    values = {
        "task": task,
        "net": NET | {"name": "transformer", "causal": True},
        "train": TRAIN,
        "prune": prune,
    }
    record.write_json(
        tmp_path / "c.json", config.to_dict(config.parse(values | {"sampler": {"beta": 0.5}}))
    )
    run, to = tmp_path / "run", tmp_path / "small"
    assert main.main(["--config", str(tmp_path / "c.json"), "--workdir", str(run)]) == 0
    assert main.main(["shrink", "--workdir", str(run), "--to", str(to), "--tile=1"]) == 0
    before, after = arrays(run), arrays(to)
    table = [name for name in before if name.startswith("sampler/")]
    assert table and all(np.array_equal(before[name], after[name]) for name in table)


def test_what_stays_for_the_tile_is_the_most_important_of_what_was_pruned():
    mask, slope = (
        np.array([1, 0, 1, 0, 0, 0, 1, 0], np.float32),
        np.array([0, 5, 0, 1, 9, 2, 0, 3], np.float32),
    )
    group = units.Group("x", 0, "ffn", 8, ())
    assert cut.left(group, mask, slope, 1).tolist() == [0, 2, 6]
    assert cut.left(group, mask, slope, 4).tolist() == [0, 2, 4, 6]
    assert cut.left(group, mask, slope, 5).tolist() == [0, 1, 2, 4, 6]
    assert cut.left(group, mask, slope, 128).tolist() == list(range(8))
    assert cut.left(group._replace(kind="heads"), mask, slope, 128).tolist() == [0, 2, 6]
    assert cut.left(group._replace(kind="dct"), mask, slope, 1).tolist() == list(range(8))
    assert len(cut.left(group, 0 * mask, slope, 1)) == 1


def test_a_tile_that_is_not_full_is_filled_with_zeros(pruned, tmp_path, capsys):
    to = tmp_path / "tiled"
    assert main.main(["shrink", "--workdir", str(pruned), "--to", str(to), "--tile=8"]) == 0
    out = capsys.readouterr().out
    assert "to fill the tile" in out and "outputs differ by" in out
    kept = config.parse((to / "config.json").read_text()).net.kept
    left = [*kept.ffn, *kept.rest, *kept.channels]
    assert left and all(n % 8 == 0 for n in left)
    after = arrays(to)
    rows = after["params/layer_01/ffn_rest/down/kernel"]
    assert (np.abs(rows).max(1) == 0).sum() == len(rows) - arrays(pruned)[
        "prune/units/layer_01/ffn_rest/down/kernel"
    ].sum()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "--to is missing"),
        (["--to={run}"], "is not empty"),
        (["--to={new}", "--tile=x"], "whole number"),
        (["--to={new}", "--config.net.depth=3"], "cannot change net.depth"),
    ],
)
def test_mistakes_are_one_line(pruned, tmp_path, words, what, capsys):
    words = [word.format(run=pruned, new=tmp_path / "new") for word in words]
    assert main.main(["shrink", "--workdir", str(pruned), *words]) == 2
    assert what in capsys.readouterr().err
