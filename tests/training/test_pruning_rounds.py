"""Pruning in a run: its targets, one program for all rounds, and a killed run that ends as an
uninterrupted one.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import Preempted, UserError
from cerebra_jax.layers import prunable as units
from cerebra_jax.models.model import build
from cerebra_jax.policies import pruning
from cerebra_jax.policies.schedule import Length
from cerebra_jax.tasks.registry import build as build_task
from cerebra_jax.training import imported as outside
from cerebra_jax.training import metrics, parallel, state, step
from cerebra_jax.training import optimizer as optim
from cerebra_jax.training import pruning_rounds as rounds
from cerebra_jax.training.checkpoint import Checkpoints
from cerebra_jax.training.experiment import policies, prepare
from cerebra_jax.training.objective import Objective

PRUNE = {"keep": 0.6, "start": "3 steps", "end": "10 steps", "rounds": 4, "tile": 1}


@pytest.fixture(scope="module")
def cfg_of(table):

    def make(pruned: dict, **more):
        net = {
            "name": "cerebra",
            "causal": False,
            "depth": 1,
            "width": 16,
            "heads": 4,
            "ffn_width": 24,
            "dropout": 0.1,
        }
        net["route"] = {"mode": "topk"}
        every = {
            "duration": "12 steps",
            "batch_size": 8,
            "eval_every": "2 steps",
            "checkpoint_every": "2 steps",
        }
        return config.parse(
            {
                "task": {"name": "tabular", "path": str(table), "target": "y", "seq_len": 0},
                "net": net,
                "train": every | {"devices": 1},
                "prune": PRUNE | pruned,
            }
            | more
        )

    return make


@pytest.fixture(scope="module")
def whole(go, cfg_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return *go(cfg_of({"unstructured": 0.3}), folder), folder


def test_a_run_ends_at_its_target_and_says_so(whole, cfg_of):
    found, lines, screen, folder = whole
    cfg = cfg_of({"unstructured": 0.3})
    s = prepare(cfg, build_task(cfg, lambda line: None))
    share = s.model.dense.executed_flops / s.model.cost.executed_flops
    kept = {
        line["step"]: line["kept_rel_flops"] * share for line in lines if line["split"] == "train"
    }
    rounds = s.rounds

    def without_one_of(group):
        return rounds.flops({g.name: g.n - (g is group) for g in rounds.groups})

    unit = max(abs(without_one_of(g) - rounds.full) for g in rounds.groups) / rounds.full
    assert s.rounds.plan.steps == (3, 5, 7, 10)
    for i, at in enumerate(s.rounds.plan.steps):
        target = 0.6 + 0.4 * (1 - (i + 1) / 4) ** 3
        assert (
            target - unit < kept[at + 1] <= target + 1e-9
        )  # the step after the round is the first with its masks
        assert kept[at] > kept[at + 1]
    assert {line["phase"] for line in lines if 4 <= line["step"] <= 11} == {"prune"}
    assert found["best_step"] == 12 and found["test"]["kept_rel_flops"] * share == kept[12]
    said = [line for line in screen.lines if "of pruning" in line]
    assert (
        len(said) == 4
        and "round 4 of 4" in said[3]
        and "shrunk" in said[3]
        and "which saves nothing" in said[3]
    )


def test_a_share_that_whole_tiles_miss_is_named_with_the_nearest_ones(cfg_of):
    cfg = cfg_of({"keep": 0.99, "tile": 6})
    made = prepare(cfg, build_task(cfg, lambda line: None)).rounds
    all_left = {group.name: group.n for group in made.groups}
    ffn = next(group for group in made.groups if group.kind == "ffn")
    half = all_left | {ffn.name: ffn.n - 6}
    share = made.flops(half) / made.full

    def masks(left):
        return {"units": {n: np.float32(np.arange(all_left[n]) < k) for n, k in left.items()}}

    # a tile of the FFN is too much, and nothing else went: the share above is all of it
    [line] = made.missed(masks(half))
    assert share < 0.97 and line.startswith("warning: prune.keep is 0.99, which no choice")
    assert f"it is {share:.3f} of the FLOPs now, a tile more is 1.000; a smaller prune.t" in line

    # what is near enough needs no word
    cfg = cfg_of({"keep": share / 0.99, "tile": 6})
    assert prepare(cfg, build_task(cfg, lambda line: None)).rounds.missed(masks(half)) == []


def test_masks_are_in_the_checkpoint_and_in_what_goes_out(whole, cfg_of):
    *_, folder = whole
    cfg = cfg_of({"unstructured": 0.3})
    s = prepare(cfg, build_task(cfg, lambda line: None))
    checkpoints = Checkpoints(folder / "checkpoints", print, read_only=True)
    assert checkpoints.by_validation() == [
        12
    ]  # and not 10: what is not pruned to its end is no candidate
    _, best, _ = checkpoints.best(s.like)
    checkpoints.close()
    left = {g.name: best.prune["units"][g.name].sum() for g in s.rounds.groups}
    assert any(left[g.name] < g.n for g in s.rounds.groups) and all(n >= 1 for n in left.values())
    named = outside.load(folder, print).named
    for name, mask in best.prune["units"].items():
        weights = named[f"params/{name}"]
        rows = np.moveaxis(weights, -1 if "/compressor/" in name else 0, 0).reshape(len(mask), -1)
        assert ((np.abs(rows).max(1) > 0) <= (mask > 0)).all()
    for name, mask in best.prune["elements"].items():
        assert abs(mask.mean() - 0.7) < 0.02 and (named[f"params/{name}"][mask == 0] == 0).all()
    kernel = best.params["layer_00"]["heavy"]["out"]["kernel"]
    assert np.array_equal(kernel, named["params/layer_00/heavy/out/kernel"])


def test_a_killed_run_ends_as_an_uninterrupted_one(go, whole, cfg_of, tmp_path):
    found, lines, _, _ = whole
    for stops in ((3, 8),):  # before a round, and between two
        folder, left = tmp_path / f"run{stops[0]}", list(stops)
        while left:
            calls = iter(range(100))
            at = left.pop(0)
            begin = max(
                [line["step"] for line in metrics.read(folder / "metrics.jsonl")], default=0
            )
            with pytest.raises(Preempted):
                go(
                    cfg_of({"unstructured": 0.3}),
                    folder,
                    lambda n=calls, a=at - begin: next(n) >= a,
                )
        again, kept, _ = go(cfg_of({"unstructured": 0.3}), folder)
        assert again["params_sha256"] == found["params_sha256"]
        assert kept == lines


def test_one_program_for_all_rounds_jit_or_not_and_on_any_number_of_devices(tiny_cfg):
    cfg = tiny_cfg(
        {"net": {"name": "transformer", "depth": 1}, "prune": {"keep": 0.8}, "train.accum": 2}
    )
    V, L, B = 40, 16, 8
    model = build(cfg, V)
    rng = np.random.RandomState(0)
    ids = rng.randint(0, V, (B, L + 1)).astype(np.int32)
    batch = {
        "inputs_BxL": ids[:, :-1],
        "labels_BxL": ids[:, 1:],
        "w_BxL": np.ones((B, L), np.float32),
        "ex_B": np.arange(B, dtype=np.int32),
    }

    class Task:
        def loss(self, out, batch, chunk):
            nats = jax.nn.logsumexp(out.h @ out.head_VxD.T, -1) - (
                out.h * out.head_VxD[batch["labels_BxL"]]
            ).sum(-1)
            return nats.sum(), {"loss": (nats.sum(), batch["w_BxL"].sum())}

    length, traces = Length(10, 10), []
    optimizer = optim.make(cfg.train, length)
    objective = Objective(model, Task(), policies(cfg))
    pure = step.make_train_step(objective, optimizer, cfg, length)

    def counted(*args, **kwargs):
        traces.append(1)
        return pure(*args, **kwargs)

    ends = []
    for devices in (1, 2):
        dp = parallel.DataParallel(
            counted, step.make_eval_step(model, Task()), jax.devices()[:devices]
        )
        s = dp.place(state.init(model, optimizer, batch, jax.random.key(0), objective.policies))
        traces.clear()
        for share in (1.0, 0.5):
            half = {
                name: pruning.least(np.arange(m.size), np.ones(m.shape, np.float32), 1 - share)
                for name, m in s.prune["units"].items()
            }
            s = dp.place(s.replace(prune=jax.device_get(s.prune) | {"units": half}))
            s, _ = dp.step(s, dp.shard(batch), jax.random.key(7))
        assert len(traces) == 1
        ends.append(jax.device_get(s))
    for one, two in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    slopes = ends[0].prune["slopes"]
    assert all((x > 0).any() and np.isfinite(x).all() for x in slopes.values())
    before = jax.device_get(s)
    with jax.disable_jit():
        eager, _ = pure(before, jax.tree.map(np.asarray, batch), jax.random.key(7))
    jitted, _ = jax.jit(pure)(before, batch, jax.random.key(7))
    for one, two in zip(jax.tree.leaves(eager.prune), jax.tree.leaves(jitted.prune), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)
    frozen = ends[0].prune["units"]
    model_params = units.masked(ends[0].params, {"units": frozen})
    rows = model_params["layer_00"]["ffn"]["down"]["kernel"]
    assert not np.asarray(rows)[np.asarray(frozen["layer_00/ffn/down/kernel"]) == 0].any()


@pytest.mark.parametrize("score", ["magnitude", "random", "taylor"])
def test_other_scores_end_at_the_same_cost(score, cfg_of):
    """Each is a choice of its own, repeatable, that meets the target of its round."""
    chosen = {}
    for kind in (score, score, "sensitivity"):
        cfg = cfg_of({"score": kind})
        s = prepare(cfg, build_task(cfg, lambda line: None))
        fresh = s.fresh()
        rng = np.random.RandomState(3)
        slopes = {
            name: rng.rand(*m.shape).astype(np.float32) for name, m in fresh.prune["units"].items()
        }
        masks, _ = s.rounds.turn(10, fresh.params, fresh.prune | {"slopes": slopes})
        again = chosen.setdefault(kind, masks["units"])
        assert all((again[name] == mask).all() for name, mask in masks["units"].items())
        assert s.rounds.relative(masks) * s.model.dense.executed_flops <= 0.6 * s.rounds.full
    assert any((chosen[score][name] != mask).any() for name, mask in chosen["sensitivity"].items())


def test_what_cannot_be_pruned_is_refused(cfg_of):
    with pytest.raises(UserError, match="left with the fewest"):
        cfg = cfg_of({"keep": 0.01})
        prepare(cfg, build_task(cfg, lambda line: None))
    for more in ({"net": {"name": "mod"}}, {"net": {"name": "transformer", "scan": True}}):
        with pytest.raises(UserError, match="prune"):
            cfg_of({}, **more)
    with pytest.raises(UserError, match="dct"):
        cfg_of({"dct": 0.5})


def test_coefficients_of_chiar_end_at_zero_and_save_nothing(tiny_cfg):
    cfg = tiny_cfg({"net.depth": 4, "prune": {"dct": 0.5, "score": "magnitude"}})
    model = build(cfg, 40)
    s = rounds.Rounds(cfg, model, 40, Length(100, 10))
    params = jax.eval_shape(
        model.init,
        jax.random.key(0),
        {"inputs_BxL": np.zeros((1, 32), np.int32), "ex_B": np.zeros(1, np.int32)},
    )
    params = jax.tree.map(lambda x: np.random.RandomState(0).rand(*x.shape), params["params"])
    masks = rounds.policy(cfg).init({"params": params}, jax.random.key(0))
    masks, line = s.turn(s.last, params, jax.device_get(masks))
    filters = {g.name for g in s.groups if g.kind == "dct"}
    assert filters == {"first_filter/w", "layer_00/filter/w", "layer_01/filter/w"}
    assert all(m.mean() == (0.5 if name in filters else 1.0) for name, m in masks["units"].items())
    assert s.relative(masks) == model.executed and "save nothing" in line
