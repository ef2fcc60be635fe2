"""Equal training FLOPs: for each family and budget runs of several sizes, each as long as it pays.

python -m cerebra_jax.main sweep --config=configs/sweeps/isoflop.py:smoke --jobs=2
python -m cerebra_jax.main sweep --config=configs/sweeps/isoflop.py:small --dry
python -m cerebra_jax.main sweep --config=configs/sweeps/isoflop.py:lr --dry
python -m cerebra_jax.main sweep --config=configs/sweeps/isoflop.py:small,dense,1e12,s0 --dry

    full (default)    WikiText-2, BPE, L = 256: budgets of 5e12 to 1.5e14 FLOPs, 3, 3, 2, 1 seeds
    small             the same at 1e12, 3e12 and 1e13, 2, 2 and 1 seeds: hours of two cores
    bytes             WikiText-2 as bytes, L = 1024, the budgets of full: dense, dense-local,
                      cerebra-budget, mod
    lr                the learning rates of LRS at 1e12 and one size, for each family
    smoke             the offline corpus, seconds a run: dense and mod

Words after the part choose among its families, budgets and seeds, for sessions or machines that
share the work: `:small,mod,ssm` has all budgets of these two, `:small,mod,1e12,s0` one and its
first seed. Give them one --workdir. All budgets have one seed before the next, so that a sweep that
is stopped leaves something to compare.

The text is that of --config.task.data_dir=DIR, or WikiText-2 is downloaded; there is no other text.

A budget is what training executes: forward and backward pass, router, compressor and dispatch, each
step at the price of its own program. Steps follow from it, so no duration stands here. Every run of
WikiText-2 sees the text 4 times at most (an epoch is 4,064,967 tokens of this BPE, or 10,797,148
bytes) and takes 100 steps at least. It is validated at its end, where its learning rate is lowest.

The families: dense; dense-local, with the short convolution that Cerebra's layers have (net.local),
so that it is not taken for routing; cerebra-budget, which ends at 0.7 of the dense FLOPs, from all
of them on its way; cerebra-fixed, one program of the same mean cost from the first step to the
last; in that program chance in the router's place, with a gate that is learned (cerebra-random) or
1 (cerebra-random-gate1); mod; chiar; ssm, whose layers are 1.7 times as many. Names are
FAMILY@BUDGET,DEPTHxWIDTH.

The learning rate is base · sqrt(128 / width). Each family has its own base, whatever the budget:
that of LRS with the lowest loss on validation data in `lr`, which is the same grid for each family
(benchmarks/results/README.md, "Equal training FLOPs").
"""

import itertools

from cerebra_jax.cli.sweep_points import chosen
from cerebra_jax.errors import UserError

MEAN = 0.82  # cerebra-budget's cost over a whole run: 0.3 at 1.0 of dense, 0.2 at 0.85, 0.5 at 0.7
RANDOM = {"objective.budget": MEAN, "objective.buckets": 1, "twin": "random"}
# model of configs/wikitext.py, keys of its own, learning rate at width 128
FAMILIES = {
    "dense": ("dense", {}, 2e-3),
    "dense-local": ("dense", {"net.local": 4}, 4e-3),
    "cerebra-budget": ("cerebra", {"objective.budget": 0.7}, 2e-3),
    "cerebra-fixed": ("cerebra", {"objective.budget": MEAN, "objective.buckets": 1}, 4e-3),
    "cerebra-random": ("cerebra", RANDOM | {"net.route.gate": "learned"}, 4e-3),
    "cerebra-random-gate1": ("cerebra", RANDOM, 4e-3),
    "mod": ("mod", {}, 8e-3),
    "chiar": ("chiar", {"net.route.dct": "fft"}, 4e-3),  # a CPU's program, whatever runs it
    "ssm": ("ssm", {}, 8e-3),
}
DEEPER = {"ssm": 1.7}  # as in configs/wikitext.py: layers per layer of the Transformer
HEADS = {16: 2, 32: 2, 48: 2, 64: 2, 96: 3, 128: 4, 192: 6, 256: 8, 320: 10, 384: 12}  # by width

# By budget: seeds, and (depth, width) of the Transformer. Four layers at least: of two, CHIAR has
# none to route.
FULL = {
    "5e12": (3, ((4, 32), (4, 48), (4, 64), (4, 96), (4, 128))),
    "1.5e13": (3, ((4, 64), (4, 96), (4, 128), (5, 192), (6, 256))),
    "5e13": (2, ((4, 128), (5, 192), (6, 256), (8, 320), (10, 384))),
    "1.5e14": (1, ((5, 192), (6, 256), (8, 320), (10, 384))),
}
SMALL = {
    "1e12": (2, ((4, 16), (4, 32), (4, 48), (4, 64))),
    "3e12": (2, ((4, 16), (4, 32), (4, 48), (4, 64))),
    "1e13": (1, ((4, 48), (4, 64), (4, 96))),
}
BYTES = {
    "5e12": (3, ((4, 32), (4, 48), (4, 64), (4, 96))),
    "1.5e13": (3, ((4, 32), (4, 48), (4, 64), (4, 96), (4, 128))),
    "5e13": (2, ((4, 64), (4, 96), (4, 128), (5, 192), (6, 256))),
    "1.5e14": (1, ((4, 128), (5, 192), (6, 256), (8, 320))),
}
LR = {"1e12": (1, ((4, 48),))}
LRS = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)  # at width 128
SMOKE = {budget: (1, ((2, 16), (2, 48))) for budget in ("2e10", "6e10")}

TEXT = {
    "task.offline_fallback": False,  # nothing but WikiText-2
    "task.vocab_size": 1024,  # at 4,096 the logits, which nobody routes, are most of a small model
    "train.batch_size": 8,
}
IN_BYTES = {
    "task.offline_fallback": False,
    "task.tokenizer": "bytes",
    "task.seq_len": 1024,
    "train.batch_size": 4,
}
OFFLINE = {"task.dataset": "offline", "train.batch_size": 32, "train.checkpoint_every": "1 frac"}
# budgets, the families that are meant, keys of all points, parts of configs/wikitext.py
PARTS = {
    "full": (FULL, tuple(FAMILIES), TEXT, ""),
    "small": (SMALL, tuple(FAMILIES), TEXT, ""),
    "bytes": (BYTES, ("dense", "dense-local", "cerebra-budget", "mod"), IN_BYTES, ""),
    "lr": (LR, tuple(FAMILIES), TEXT, ""),
    "smoke": (SMOKE, ("dense", "mod"), OFFLINE, "-smoke"),
}


def get_sweep(arg: str = "full"):
    """Family x budget x size x seed; of the part `lr` also x learning rate."""
    part, families, budgets, seeds = _chosen(arg)
    ladders, _, common, suffix = PARTS[part]
    for seed, budget in itertools.product(seeds, budgets):
        of_budget, sizes = ladders[budget]
        if seed >= of_budget:
            continue
        for family, (depth, width) in itertools.product(families, sizes):
            model, own, base = FAMILIES[family]
            size = shape(round(DEEPER.get(model, 1) * depth), width)
            point = {"config": f"configs/wikitext.py:{model}{suffix}", "flops": float(budget)}
            point |= {"train.eval_every": "1 frac"} | common | own | size | {"seed": seed}
            name = f"{family}@{budget},{size['net.depth']}x{width}"
            if part != "lr":
                yield point | {"name": name, "train.lr": rate(width, base)}
                continue
            for lr in (rate(width, base) for base in LRS):
                yield point | {"name": f"{name},lr={lr:g}", "train.lr": lr}


def rate(width: int, base: float) -> float:
    """Returns the learning rate of a width."""
    return float(f"{base * (128 / width) ** 0.5:.3g}")


def shape(depth: int, width: int):
    """Returns the keys of a size."""
    return {
        "net.depth": depth,
        "net.width": width,
        "net.heads": HEADS[width],
        "net.ffn_width": 4 * width,
    }


def _chosen(arg: str):
    """Returns the part, and its families, budgets and seeds that `arg` names."""
    part, *words = arg.split(",")
    if part not in PARTS:
        hint = f"begin with {', '.join(PARTS)}"
        raise UserError(f"configs/sweeps/isoflop.py has no part {part!r}", hint)
    budgets, families, _, _ = PARTS[part]
    seeds = {f"s{seed}": seed for seed in range(max(count for count, _ in budgets.values()))}
    families, budgets, names = chosen(
        "configs/sweeps/isoflop.py", part, words, families, budgets, seeds
    )
    return part, families, budgets, [seeds[name] for name in names]
