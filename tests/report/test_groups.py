"""Repeats differ in their seed only, nothing else is merged, and names tell groups apart."""

from __future__ import annotations

import json

import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.report import groups, runs, tables

OTHER = {
    bool: lambda v: not v,
    int: lambda v: v + 1,
    float: lambda v: v + 0.125,
    str: lambda v: v + "x",
    tuple: lambda v: [*v, 1],
}


@pytest.mark.parametrize("key", config.fields())
def test_runs_that_differ_in_any_key_but_the_seed_and_places_are_two_groups(key, make_run):
    default = config.fields()[key].default
    other = make_run("b", "chiar", 0, 1.0, {key: OTHER[type(default)](default)})
    if key in ("net.name", "seed"):
        return
    a = make_run("a", "chiar", 0, 1.0)
    if key in groups.NOT_IDENTITY:
        with pytest.raises(UserError, match="both seed 0"):
            runs.load([a, other])
        return
    names = list(runs.load([a, other]))
    assert len(names) == 2
    assert names[0] != names[1]
    if key != "twin":
        assert all(f"{key.rpartition('.')[2]}=" in name for name in names)


def test_other_data_of_the_same_name_are_another_group(make_run):
    made = [make_run(x, "chiar", 0, 1.0, data={"sha256": x * 64}) for x in "ab"]
    assert sorted(runs.load(made)) == [
        "chiar, data=wikitext2 aaaaaaaa",
        "chiar, data=wikitext2 bbbbbbbb",
    ]


def test_folds_of_the_same_rows_are_repeats(make_run):
    made = []
    for seed in range(2):
        data = {"sha256": f"{seed}" * 64, "fields_sha256": "f" * 64}
        made.append(make_run(f"{seed}", "chiar", seed, 1.0 + seed, {"task.folds": 2}, data=data))
    [group] = runs.load(made).values()
    assert len(group) == 2
    assert "standard deviation over folds" in tables.provenance(runs.load(made))


def test_names_are_what_tells_groups_apart(make_run):
    made = [
        make_run(f"{r}{lam}{s}", "cerebra", s, 1.0, {"net.route.rate": r, "objective.lam": lam})
        for r in (0.25, 0.5)
        for lam in (1e-4, 1e-2)
        for s in range(2)
    ]
    made.append(make_run("d", "transformer", 0, 1.0))
    found = runs.load(made)
    assert list(found) == [
        "transformer",
        *(f"cerebra, rate={r}, lam={lam}" for r in (0.25, 0.5) for lam in (0.0001, 0.01)),
    ]
    assert [len(rs) for rs in found.values()] == [1, 2, 2, 2, 2]
    made.append(make_run("e", "transformer", 1, 1.0, {"train.lr": 0.5}))
    assert "transformer, lr=0.5" in runs.load(made)
    assert "cerebra, rate=0.25, lam=0.0001, lr=0.002" in runs.load(made)


def test_keys_with_one_short_name_are_written_in_full():
    one = groups.identity(config.to_dict(config.parse({})), {"dataset": "x"})
    found = groups.names([one, {**one, "train.k": 3}, {**one, "net.route.k": 5}])
    assert found[1].endswith("train.k=3")
    assert "net.route.k=0" in found[1]
    assert "net.route.k=5" in found[2]


def test_values_that_look_alike_are_written_apart(make_run):
    made = [
        make_run(str(i), "chiar", 0, 1.0, {"train.lr": lr})
        for i, lr in enumerate((0.12345678, 0.12345679))
    ]
    assert len(set(runs.load(made))) == 2


def test_a_run_older_than_a_key_is_one_with_its_default(make_run):
    a = make_run("a", "chiar", 0, 1.0)
    b = make_run("b", "chiar", 1, 1.0)
    old = json.loads((b / "config.json").read_text())
    del old["net"]["norm"], old["twin"]
    (b / "config.json").write_text(json.dumps(old))
    assert [len(rs) for rs in runs.load([a, b]).values()] == [2]


def test_a_twin_is_named_after_what_it_is_a_twin_of_and_dense_models_come_first(make_run):
    made = [
        make_run(f"t{i}", "chiar", 0, 200.0, {"twin": twin})
        for i, twin in enumerate(("random", "equal_flops"))
    ]
    made += [make_run("m", "chiar", 0, 1.0), make_run("d", "transformer", 0, 1.0)]
    assert list(runs.load(made)) == [
        "transformer",
        "chiar",
        "equal-FLOP twin of chiar",
        "random twin of chiar",
    ]


def test_groups_can_be_called_after_their_folders(make_run):
    made = [
        make_run(f"{name}-s{s}", "chiar", s, 1.0, keys)
        for s in range(2)
        for name, keys in (("plain", {}), ("loud", {"sampler.beta": 0.5}))
    ]
    assert {
        name: [run.path for run in rs] for name, rs in runs.load(made, by_folder=True).items()
    } == {
        "plain": [made[0], made[2]],
        "loud": [made[1], made[3]],
    }
    other = make_run("third-s2", "chiar", 2, 1.0)
    with pytest.raises(UserError, match="plain, third"):
        runs.load([*made, other], by_folder=True)


def test_keys_of_the_sampler_tell_groups_of_one_model_apart(make_run):
    made = [make_run("d", "transformer", 0, 1.0), make_run("c", "chiar", 0, 1.0)]
    made.append(make_run("s", "chiar", 0, 1.0, {"sampler.beta": 0.5}))
    assert list(runs.load(made)) == ["transformer", "chiar, beta=0", "chiar, beta=0.5"]
