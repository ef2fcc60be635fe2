"""Points that are given by their training FLOPs, and the sweep of equal FLOPs made of them."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import sys
from pathlib import Path

import pytest

from cerebra_jax import config
from cerebra_jax.cli import flags, sweep_hours, sweep_price
from cerebra_jax.cli import sweep as command
from cerebra_jax.cli import sweep_points as points
from cerebra_jax.cli import sweep_pool as pool
from cerebra_jax.cli.sweep_hours import Priced
from cerebra_jax.cli.sweep_points import Point
from cerebra_jax.cli.sweep_price import price
from cerebra_jax.errors import Preempted, UserError
from cerebra_jax.models.model import cost_of, dense_of
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import results
from cerebra_jax.training.experiment import prepare

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "configs" / "sweeps" / "isoflop.py"
# tokens of the training text, by the part of the sweep
EPOCH = {"full": 4_064_967, "bytes": 10_797_148}
EPOCH |= {"small": EPOCH["full"], "lr": EPOCH["full"]}
GRID = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)  # learning rates at width 128


@functools.cache
def rows(arg: str) -> list[Point]:
    spec = f"{FILE}:{arg}"
    return points.load(spec, points.call(spec, ("get_sweep",))[1], {}, Path("runs"))


def flops_of_steps(cfg: config.RunCfg, steps: int) -> int:
    """What a run of so many steps writes as its training FLOPs: added up step by step."""
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, duration=f"{steps} steps"))
    return results._trained(prepare(cfg, build(cfg, lambda line: None)), [], steps)


RECALL = {"task": {"name": "long_sequence", "vocab_size": 64, "pairs": 4}}
CEREBRA = RECALL | {"net.name": "cerebra", "net.route.kv": "routed", "task.seq_len": 64}
SPENDERS = {
    "dense": RECALL | {"net.name": "transformer"},
    "remat": RECALL | {"net.name": "transformer", "net.remat": "full", "train.accum": 2},
    "mod": RECALL | {"net.name": "mod"},
    "budget": CEREBRA | {"objective.budget": 0.85},
    "warm in steps": CEREBRA
    | {"objective": {"budget": 0.85, "buckets": 5, "warm": "9 steps", "ramp": "0.9 frac"}},
    "chance": CEREBRA | {"objective.budget": 0.85, "twin": "random", "net.route.gate": "learned"},
}


@pytest.mark.parametrize("name", SPENDERS)
@pytest.mark.parametrize("steps", [3.4, 700.9])
def test_the_steps_are_those_that_spend_most_nearly_the_flops(tiny_cfg, name, steps):
    cfg = tiny_cfg(SPENDERS[name])
    flops = steps * price(cfg)["step_flops"]
    found = price(cfg, flops)
    trained = flops_of_steps(cfg, found["steps"])
    assert found["flops"] == trained and found["duration"] == f"{found['steps']} steps"
    for other in (found["steps"] - 1, found["steps"] + 1):
        assert abs(trained - flops) <= abs(flops_of_steps(cfg, other) - flops)
    assert abs(trained - flops) < max(0.005 * flops, flops / found["steps"])


DECIDES = {
    "sampler": ({"sampler.beta": 0.5}, "the work of a sampler"),
    "patience": ({"train.patience": 3}, "may end it early"),
    "demand": ({"net.route.tau": "learned", "objective.lam": 0.1}, "what its router learns"),
    "slots": (
        {"net.route.by_demand": True, "net.route.tau": "learned", "objective.budget": 0.85},
        "moves its slots",
    ),
    "epochs": ({"objective.budget": 0.85, "objective.warm": "1 epochs"}, "counts epochs"),
}


@pytest.mark.parametrize("name", DECIDES)
def test_a_run_that_decides_itself_what_it_spends_is_refused(tiny_cfg, name):
    keys, said = DECIDES[name]
    with pytest.raises(UserError, match=said):
        price(tiny_cfg(CEREBRA | keys), 1e9)


def test_less_than_half_a_step_is_refused(tiny_cfg):
    cfg = tiny_cfg(SPENDERS["dense"])
    with pytest.raises(UserError, match="no step"):
        price(cfg, 0.4 * price(cfg)["step_flops"])
    with pytest.raises(UserError, match="too many steps"):
        price(cfg, 1e30)


ROW = {"config": str(ROOT / "configs" / "wikitext.py") + ":smoke", "flops": 1e12}


@pytest.mark.parametrize(
    ("keys", "overrides", "said"),
    [
        ({"train.duration": "9 steps"}, {}, "flops and train.duration are both set"),
        ({}, {"train.duration": "9 steps"}, "flops and train.duration are both set"),
        ({"flops": "1e12"}, {}, "its flops are '1e12'"),
        ({"flops": True}, {}, "its flops are True"),
        ({"flops": 0}, {}, "its flops are 0"),
        ({"flops": math.nan}, {}, "its flops are nan"),
    ],
)
def test_flops_that_cannot_be_are_one_line(keys, overrides, said):
    with pytest.raises(UserError, match=re.escape(said)) as e:
        points.load("mine.py", [ROW | keys], overrides, Path("runs"))
    assert "\n" not in str(e.value) and e.value.hint


def test_budgets_tell_points_apart():
    found = points.load(
        "mine.py", [ROW | {"name": "a"}, ROW | {"name": "b", "flops": 2e12}], {}, Path()
    )
    assert [point.flops for point in found] == [1e12, 2e12]
    with pytest.raises(UserError, match="the same configuration"):
        points.load("mine.py", [ROW | {"name": "a"}, ROW | {"name": "b"}], {}, Path())


def test_what_differs_in_seed_and_learning_rate_alone_is_priced_once(tiny_cfg, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sweep_price, "price", lambda cfg, flops: asked.append(cfg) or {"steps": 7})
    cfgs = [
        tiny_cfg({"seed": seed, "train.lr": lr, "net.depth": depth})
        for seed in (0, 1)
        for lr in (1e-3, 2e-3)
        for depth in (3, 4)
    ]
    pairs = [(config.to_dict(cfg), flops) for cfg in cfgs for flops in (None, 1e9)]
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(pairs)))
    sweep_price.main()
    assert json.loads(capsys.readouterr().out) == [{"steps": 7}] * 16 and len(asked) == 4


CHILD = """
import json, sys
from pathlib import Path
here = Path(sys.argv[1])
(here / "metrics.jsonl").touch()
if (here.parent / "finish").exists():
    (here / "result.json").write_text("{}")
else:
    sys.exit(75)
"""


def test_the_same_command_has_the_same_steps_and_goes_on(tiny_cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pool, "command", lambda p: [sys.executable, "-ISc", CHILD, str(p.workdir)])
    monkeypatch.setattr(command, "prices", lambda asked: [price(*pair) for pair in asked])
    cfg = json.dumps(config.to_dict(tiny_cfg(SPENDERS["budget"])))
    (tmp_path / "base.json").write_text(cfg)
    (tmp_path / "mine.py").write_text(
        "def get_sweep():\n    for flops in (1e9, 2e9):\n"
        "        yield {'config': 'base.json', 'name': f'dense@{flops:g},2x32', 'flops': flops}\n"
    )
    words = [f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'runs'}"]

    def durations() -> dict[str, str]:
        files = (tmp_path / "runs").glob("*/config.json")
        return {f.parent.name: json.loads(f.read_text())["train"]["duration"] for f in files}

    with pytest.raises(Preempted):
        command.run(flags.parse(["sweep", *words]))
    first = durations()
    assert sorted(first) == ["dense@1e+09,2x32-s0", "dense@2e+09,2x32-s0"]
    (tmp_path / "runs" / "finish").touch()
    for state in ("to resume", "done"):
        capsys.readouterr()
        command.run(flags.parse(["sweep", *words]))
        said = capsys.readouterr().out.splitlines()
        assert durations() == first and all(line.startswith(f"{state} ") for line in said[:2])
    # another budget in the folder of a run is another run
    text = (tmp_path / "mine.py").read_text().replace("'flops': flops", "'flops': 3 * flops")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match="holds another run: train.duration"):
        command.run(flags.parse(["sweep", *words]))


def test_hours_are_modelled_until_a_run_is_done_and_then_measured(tiny_cfg, monkeypatch):
    cfg = tiny_cfg()
    wall = {"small": 10.0, "large": 10.0}
    spent = {"small": 1e12, "large": 4e12}

    def result(workdir: Path):
        return {"costs": {"train_total": spent[workdir.name]}, "wall_s": wall[workdir.name]}

    monkeypatch.setattr(sweep_hours.folder, "result", result)

    def run(name: str, state: str, flops: float, step: int) -> Priced:
        given = {"flops": flops, "step_flops": step, "seconds": 7200.0, "modelled": "a model"}
        return Priced(Point(name, cfg, Path(name)), state, given)

    left = [run("a", "new", 2e12, 110), run("b", "to resume", 4e12, 900), run("c", "new", None, 1)]
    assert sweep_hours.line(left, 2) == "about 4.0 h, modelled, not measured: a model"
    done = [run("small", "done", 1e12, 100), run("large", "done", 4e12, 1000)]
    # 20 s at the speed of the small one, 10 s at that of the large one, two at once
    assert sweep_hours.line(left + done, 2).startswith("about 20 s, 2 at once, at measured speeds")
    assert sweep_hours.line(left + done, 1).startswith("about 30 s, 1 at once, at measured speeds")


# the sweep itself


@pytest.mark.parametrize("part", ["full", "small", "bytes", "lr", "smoke"])
def test_every_part_is_a_ladder_by_one_rule(part):
    found = rows(part)
    name = re.compile(r"([a-z0-9-]+)@([\d.]+e\d+),(\d+)x(\d+)(,lr=[\d.]+)?-s(\d)")
    seen, bases = {}, {}
    for point in found:
        family, budget, depth, width, lr, seed = name.fullmatch(point.name).groups()
        net = point.cfg.net
        assert (net.depth, net.width, net.ffn_width) == (int(depth), int(width), 4 * int(width))
        assert point.flops == float(budget) and point.cfg.seed == int(seed)
        base = point.cfg.train.lr / math.sqrt(128 / net.width)
        if lr:
            assert point.cfg.train.lr == float(lr.removeprefix(",lr="))
        on_grid = [one for one in GRID if base == pytest.approx(one, 0.005)]
        bases.setdefault(family, set()).update(on_grid)
        seen.setdefault(family, set()).add((budget, net.width, lr, seed))
        assert on_grid
    assert len({frozenset(points) for points in seen.values()}) == 1  # equal effort for each
    assert {len(found) for found in bases.values()} == {5 if part == "lr" else 1}
    assert (len(seen) == 9) == (part in ("full", "small", "lr"))


def test_words_choose_families_and_budgets_whose_points_are_those_of_the_whole():
    whole = {point.name: point for point in rows("small")}
    chosen = rows("small,ssm,dense,1e12,1e13")
    assert {p.name.split(",")[0] for p in chosen} == {
        f"{family}@{budget}" for family in ("dense", "ssm") for budget in ("1e12", "1e13")
    }
    assert all(whole[point.name] == point for point in chosen)
    second = rows("small,mod,3e12,s1")
    assert [point.name for point in second] == [n for n in whole if re.match("mod@3e12.*-s1", n)]
    assert second and max(rows("small,dense"), key=lambda p: p.cfg.seed).cfg.seed == 1
    assert {p.name.split("@")[0] for p in rows("bytes,mod")} == {"mod"}
    for wrong in ("tiny", "small,lstm", "small,5e12", "bytes,chiar", "small,", "lr,s1"):
        with pytest.raises(UserError, match="isoflop.py"):
            rows(wrong)


@functools.cache
def forward(net: config.NetCfg, L: int, vocab: int) -> int:
    """What an example's forward pass executes; families share theirs."""
    return cost_of(net, L, vocab, "cpu").executed_flops


def ends_of_ladders(part: str) -> list[Point]:
    """The smallest and the largest size of each family and budget."""
    ladders: dict[str, list[Point]] = {}
    for point in rows(part):
        ladders.setdefault(point.name.partition(",")[0], []).append(point)
    by_width = [sorted(ladder, key=lambda p: p.cfg.net.width) for ladder in ladders.values()]
    return [point for ladder in by_width for point in (ladder[0], ladder[-1])]


@pytest.mark.parametrize("part", ["full", "small", "bytes", "lr"])
def test_no_run_sees_the_text_more_than_four_times_or_is_shorter_than_100_steps(part):
    """Of Cerebra it is said from below and above: it executes 0.7 to 1 of dense, on average."""
    for point in ends_of_ladders(part):
        net, task, train = point.cfg.net, point.cfg.task, point.cfg.train
        vocab = 257 if task.tokenizer == "bytes" else task.vocab_size
        least = 1.0
        if net.name == "cerebra":
            net, least = dataclasses.replace(dense_of(net), route=config.RouteCfg()), 0.7
        step = 3 * train.batch_size * forward(net, task.seq_len, vocab)
        tokens = point.flops / step / least * train.batch_size * task.seq_len
        assert tokens <= 4 * EPOCH[part], point.name
        assert point.flops / step >= 100, point.name


def test_the_fixed_form_and_chance_take_as_many_steps_as_the_budget():
    families = ("cerebra-budget", "cerebra-fixed", "cerebra-random", "cerebra-random-gate1")
    first = {point.name.partition("@")[0]: point for point in reversed(rows("small,1e12"))}
    found = [price(first[name].cfg, first[name].flops) for name in families]
    steps = [one["steps"] for one in found]
    assert max(steps) < 1.01 * min(steps)
    ends, *fixed = (one["executed"] for one in found)
    assert ends == pytest.approx(0.7, abs=0.01) and min(fixed) > 0.81 > ends
    # chance pays for the learned gate what the router pays for its score
    assert fixed[0] == pytest.approx(fixed[1], rel=1e-3) and fixed[1] > fixed[2]
