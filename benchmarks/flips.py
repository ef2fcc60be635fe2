"""Counts decisions that rounding turns: of cached decoding against the full pass, in each dtype.

The same weights and texts are run in float32 and in bfloat16. In one dtype the full pass and
decoding token by token compute the same sums in another order; across dtypes everything is rounded.

python benchmarks/flips.py [--models=cerebra,chiar] [--dtypes=float32,bfloat16] [--rows=8]
                           [--length=256] [--depth=4] [--spread=2.5] [--seed=0] [--out=FILE.json]

--spread multiplies the initial matrices: scores then vary as after training. benchmarks/README.md
says what the columns mean.
"""

from __future__ import annotations

import argparse
from typing import Any

import common
import jax
import numpy as np
import target_programs

from cerebra_jax.cost import timing
from cerebra_jax.models import model as models

HEADING = f"{'model':8} {'dtype':9} {'kept':>7} {'decoding':>9} {'rounding':>9}  decoding, by layer"
SETTLING = 4  # passes in which thresholds follow the scores of the texts


def options() -> argparse.Namespace:
    parser = common.parser(__doc__, rows=8, length=256, depth=4, seed=0)
    parser.add_argument("--models", type=common.words, default="cerebra,chiar")
    parser.add_argument("--dtypes", type=common.words, default="float32,bfloat16")
    parser.add_argument("--spread", type=float, default=2.5)
    return parser.parse_args()


def model_of(name: str, dtype: str, args: argparse.Namespace) -> models.Model:
    """Returns the model of configs/wikitext.py of size cpu in a dtype."""
    cell = target_programs.Cell(args.length, args.rows, args.depth)
    settings = {"net.dtype": dtype, "net.scan": False, "net.remat": "off"}
    cfg = target_programs.configuration(name, cell, settings, size="cpu")
    return models.build(cfg, cfg.task.vocab_size)


def texts(vocab: int, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens whose frequencies fall as those of words do."""
    rng = np.random.default_rng(args.seed)
    ids_BxL = rng.zipf(1.3, (args.rows, args.length)) % vocab
    return {"inputs_BxL": ids_BxL.astype(np.int32), "ex_B": np.arange(args.rows, dtype=np.int32)}


def settled(name: str, batch: dict[str, np.ndarray], args: argparse.Namespace) -> Any:
    """Returns float32 variables whose thresholds fit the texts."""
    model = model_of(name, "float32", args)
    variables = model.init(jax.random.key(args.seed), batch)
    wider = jax.tree.map(lambda x: x * args.spread if x.ndim > 1 else x, variables["params"])
    variables = variables | {"params": wider}
    look = jax.jit(lambda variables: model.apply(variables, batch, models.neutral_knobs())[1])
    for _ in range(SETTLING):
        observed = look(variables).observed
        variables["routing"] = {name: x.mean(1) for name, x in observed.items()}
    return variables


def in_full(model: models.Model, variables: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the decisions of the full pass, (R, B, L) bool."""
    run = jax.jit(lambda variables: model.apply(variables, batch, models.neutral_knobs())[1])
    return np.asarray(run(variables).scores["kept"]) > 0


def in_steps(model: models.Model, variables: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the decisions of decoding token by token, (R, B, L) bool."""

    @jax.jit
    def run(variables):
        def step(cache, token_B):
            return model.decode(variables, cache, token_B)[1], None

        start = model.init_cache(batch["ex_B"])
        return jax.lax.scan(step, start, batch["inputs_BxL"].T)[0].kept_RxBxL

    return np.asarray(run(variables))


def compared(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each dtype of a model."""
    batch = texts(model_of(name, "float32", args).pricing.vocab, args)
    variables = settled(name, batch, args)
    exact = in_full(model_of(name, "float32", args), variables, batch)
    rows = []
    for dtype in args.dtypes:
        model = model_of(name, dtype, args)
        full, steps = (f(model, variables, batch) for f in (in_full, in_steps))
        rows.append(
            {
                "model": name,
                "dtype": dtype,
                "kept": float(full.mean()),
                "decoding": (steps != full).mean((1, 2)).tolist(),
                "rounding": (full != exact).mean((1, 2)).tolist(),
            }
        )
    return rows


def show(row: dict[str, Any]) -> str:
    """Writes a row of the table."""
    layers = " ".join(f"{share:.2%}" for share in row["decoding"])
    means = [float(np.mean(row[which])) for which in ("decoding", "rounding")]
    head = f"{row['model']:8} {row['dtype']:9} {row['kept']:7.1%}"
    return f"{head} {means[0]:9.3%} {means[1]:9.3%}  {layers}"


def main() -> None:
    args = options()
    print(
        f"{'model':8} {'dtype':9} {'kept':>7} {'decoding':>9} {'rounding':>9}  decoding, by layer"
    )
    rows: list[dict[str, Any]] = []
    for name in args.models:
        for row in compared(name, args):
            rows.append(row)
            print(show(row), flush=True)
    common.write(args, timing.machine(), rows=rows)


if __name__ == "__main__":
    main()
