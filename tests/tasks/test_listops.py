"""ListOps: the evaluator, the Arena's rules, and the floor that the outermost operator gives."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cerebra_jax.errors import UserError
from cerebra_jax.tasks import listops, registry

SAMPLE = Path(__file__).parents[3] / "shared/data/listops_sample/spinn_test_d20s.tsv.gz"


@pytest.mark.skipif(not SAMPLE.exists(), reason="the original ListOps is not beside the checkout")
def test_the_evaluator_agrees_with_every_row_of_the_original_data():
    with gzip.open(SAMPLE, "rt") as f:
        rows = [line.rstrip("\n").split("\t") for line in f]
    assert len(rows) == 10_000
    assert all(listops.evaluate(listops.parse(text)) == int(label) for label, text in rows)


@pytest.mark.parametrize(
    "text, result",
    [
        ("7", 7),
        ("( ( ( [MAX 2 ) 9 ) ] )", 9),
        ("[SM 8 9 3 ]", 0),
        ("[MED 1 4 ]", 2),
        ("[MED 9 [MIN 3 5 ] 0 ]", 3),
        ("[MIN [SM 6 6 ] 8 [MED 1 2 3 4 ] ]", 2),
    ],
)
def test_results_by_hand(text, result):
    assert listops.evaluate(listops.parse(text)) == result


@pytest.mark.parametrize("text", ["", "1 2", "[MAX 1", "[MAX ]", "1 ]"])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError):
        listops.evaluate(listops.parse(text))


def test_trees_keep_the_rules():
    found = listops.trees(150, 100, 700, seed=1)
    assert len({bytes(t) for t, _ in found}) == 150
    for tokens, result in found:
        assert 100 < len(tokens) < 700 and listops.evaluate(tokens) == result
        depth = arguments = 0
        counts: list[int] = []
        for token in tokens:  # depth of the root is 1; 2 to 10 arguments
            if token < listops.END and counts:
                counts[-1] += 1
            if listops.MIN <= token < listops.END:
                counts.append(0)
                depth = max(depth, len(counts))
            elif token == listops.END:
                arguments = counts.pop()
                assert 2 <= arguments <= 10
        assert depth <= 9
    assert listops.trees(20, 100, 700, seed=1) == found[:20] != listops.trees(20, 100, 700, seed=2)


def test_the_arena_s_label_shares_and_outermost_operator_score():
    """Largest class 16.7 %, outermost operator alone 36.1 % (12,000 trees).

    Here 1,500, so ± 3 standard errors.
    """
    found = listops.arrays(listops.trees(1500, 500, 2000, seed=0), 2000)
    half = (
        {name: x[:750] for name, x in found.items()},
        {name: x[750:] for name, x in found.items()},
    )
    assert abs(np.bincount(found["labels_BxL"][:, 0]).max() / 1500 - 0.167) < 0.03
    assert abs(listops.outermost(*half) - 0.361) < 0.055
    assert abs(found["mask_BxL"].sum(1).mean() - 1037) < 60


def test_the_task_is_padded_masked_and_split_without_overlap(tiny_cfg):
    sizes = {"name": "listops", "seq_len": 60, "shortest": 10, "rows": 120}
    cfg = tiny_cfg({"task": sizes, "net.causal": False, "net.name": "transformer"})
    task = registry.build(cfg, lambda line: None)
    rows = {s: [b for b in task.eval_batches(s, 8)] for s in ("train", "valid", "test")}
    seen = {
        s: {x.tobytes() for b in bs for x in b["inputs_BxL"][b["w_BxL"][:, 0] > 0]}
        for s, bs in rows.items()
    }
    assert sum(map(len, seen.values())) == 120 and len(set.union(*seen.values())) == 120
    for b in rows["train"]:
        for ids, mask, label in zip(b["inputs_BxL"], b["mask_BxL"], b["labels_BxL"], strict=True):
            assert (
                listops.evaluate(ids[mask].tolist()) == label[0]
                and (ids[~mask] == listops.PAD).all()
            )
    assert sum(task.info()["splits"]["train"]["label_shares"]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match="leaves no length"):
        tiny_cfg({"task": {"name": "listops", "seq_len": 32}, "net": {"name": "transformer"}})
