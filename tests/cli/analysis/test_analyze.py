"""The command on a run: figures as JSON and tables, by its own decisions; a mistake is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cerebra_jax.analysis import routing_shares as routing
from cerebra_jax.main import main


def test_it_tells_every_layer_and_feature(trained, capsys):
    run = trained({"net.name": "chiar", "net.depth": 4})
    assert main(["analyze", f"--workdir={run}", "--windows=8"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((run / "analysis-valid.json").read_text())
    assert found["layers"] == [1, 2] and found["split"] == "valid" and 8 <= found["windows"] <= 12
    shares = {name: row["share"] for kind in routing.CLASSES for name, row in found[kind].items()}
    assert (
        np.isclose(sum(row["share"] for row in found["characters"].values()), 1)
        and shares["digit"] > 0.02
    )
    assert (
        shares["determiner"] > 0.02 < shares["conjunction"] and shares["pronoun"] == 0
    )  # the, and
    for i, kept in enumerate(found["kept"]):
        rows = [
            (row["share"], row["kept"][i]) for row in found["characters"].values() if row["share"]
        ]
        assert np.isclose(sum(share * of[0] for share, of in rows), kept)
        assert all(low <= value <= high for _, (value, low, high) in rows)
    for decision in routing.DECISIONS:
        assert len(found["correlations"][decision]) == 12
        for layers in found["correlations"][decision].values():
            for value, low, high in layers:
                assert value is None or -1 <= low <= value <= high <= 1
    told = [layers[0] for layers in found["correlations"]["score"].values()]
    assert any(value is not None and (low > 0.05 or high < -0.05) for value, low, high in told)
    page = (run / "analysis-valid.md").read_text()
    assert routing.verdict(found) in page and routing.verdict(found) in shown.replace("\n", " ")
    assert (
        "| digit | " in page and "| determiner | " in page and "gradient norm at the layer" in shown
    )
    assert page.count("\n| ") == sum(1 + len(rows) for _, rows in routing.tables(found))
    assert all(0 < share < 1 for share in found["kept"])


def test_windows_come_from_all_over_the_split(trained):
    from cerebra_jax.cli.analyze import _spread
    from cerebra_jax.cli.settings import load
    from cerebra_jax.tasks.registry import build

    run = trained({"net.name": "chiar", "net.depth": 4})
    task = build(load(str(run / "config.json"), {}))
    every, some = list(_spread(task, "valid", 10**6)), list(_spread(task, "valid", 16))
    assert sum(len(b["ex_B"]) for b in every) >= task.windows("valid") and 16 <= 4 * len(some) <= 24
    at = [
        next(i for i, b in enumerate(every) if np.array_equal(b["inputs_BxL"], one["inputs_BxL"]))
        for one in some
    ]
    assert at[0] == 0 and len(set(np.diff(at))) == 1 and at[-1] > 0.7 * len(every)


@pytest.mark.parametrize(
    ("keys", "words", "what"),
    [
        ({"net": {"name": "transformer"}}, [], "the run is of a dense model"),
        (
            {"net": {"name": "cerebra"}, "task": {"name": "listops", "seq_len": 600}},
            [],
            "the run's task is listops",
        ),
        ({"net": {"name": "chiar"}}, ["--windows=1"], "--windows is '1'"),
        ({"net": {"name": "chiar"}}, ["--split=train"], "--split is 'train'"),
        ({"net": {"name": "chiar"}}, ["--text=a"], "analyze takes no --text"),
    ],
)
def test_a_mistake_is_one_line(keys, words, what, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert main(["analyze", f"--workdir={tmp_path}", *words]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1
