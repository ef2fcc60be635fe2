"""What a model is compared with, trained by the same recipe: cfg.twin."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable

from cerebra_jax import checks
from cerebra_jax.config import NetCfg, PruneCfg, RunCfg
from cerebra_jax.cost.device import platform_of
from cerebra_jax.errors import UserError
from cerebra_jax.models.model import cost_of, dense_of


def control(cfg: RunCfg, vocab: int) -> RunCfg:
    """Returns the configuration that cfg.twin stands for; cfg itself without one.

    dense: the Transformer of the same shape. equal_flops: the Transformer of the same depth, heads
    and sequence whose program runs the FLOPs of this one, or just fewer. random: the same routed
    model, which tokens left to chance.
    """
    if not cfg.twin:
        return cfg
    kind, pruned = cfg.twin, cfg.prune
    plain = dataclasses.replace(cfg.objective, lam=0.0, budget=0.0)
    quant = dataclasses.replace(cfg.quant, stored=False)
    cfg = dataclasses.replace(cfg, twin="", objective=plain, quant=quant)
    if kind == "random":
        return _random(cfg)
    if cfg.net == dense_of(cfg.net):
        raise UserError(
            f"twin is {kind} of a dense Transformer",
            "it is its own: use twin='', or a routed net.name",
        )
    # of chiar alone
    route = dataclasses.replace(cfg.net.route, score="spectral", rbf=0.0, collapse=0.0)
    route = dataclasses.replace(route, by_demand=False)  # of cerebra
    net = dataclasses.replace(dense_of(cfg.net), route=route)
    if kind == "equal_flops":
        platform = platform_of(cfg.objective.device)
        own = cost_of(cfg.net, cfg.task.seq_len, vocab, platform).executed_flops
        target = round(pruned.keep * own)

        def fits(candidate: NetCfg) -> bool:
            spent = cost_of(candidate, cfg.task.seq_len, vocab, platform)
            return spent.executed_flops <= target

        net = _widest(net, fits, target)
    return dataclasses.replace(cfg, net=net, prune=PruneCfg())


def _random(cfg: RunCfg) -> RunCfg:
    if cfg.net.name not in ("chiar", "cerebra", "mod"):
        raise UserError(
            f"twin is random, but {cfg.net.name} routes nothing",
            "use twin=dense or twin=equal_flops",
        )
    route = dataclasses.replace(cfg.net.route, mode="random", score="spectral", collapse=0.0)
    route = dataclasses.replace(route, by_demand=False)  # chance wants the same everywhere
    cfg = dataclasses.replace(cfg, net=dataclasses.replace(cfg.net, route=route))
    checks.together(cfg)
    return cfg


def _widest(net: NetCfg, fits: Callable[[NetCfg], bool], target: int) -> NetCfg:
    """Returns the widest dense Transformer that `fits` into `target` FLOPs.

    Narrower or wider than `net` with its depth and heads; its FFN keeps its ratio to the width,
    then takes up what is left.
    """

    def sized(step: int, hidden: int | None = None) -> NetCfg:
        width = 2 * net.heads * step
        ratio = max(8, width * net.ffn_width // net.width)
        ffn_width = ratio if hidden is None else hidden
        return dataclasses.replace(net, width=width, ffn_width=ffn_width)

    least = -(-8 // (2 * net.heads))
    if not fits(sized(least)):
        raise UserError(
            f"no dense Transformer of {net.depth} layers runs within {target:,} FLOPs a sequence",
            "use fewer layers, or twin=dense",
        )
    step = _largest(lambda n: fits(sized(n)), least)
    widest = sized(step).ffn_width
    return sized(step, _largest(lambda n: fits(sized(step, n)), widest))


def _largest(holds: Callable[[int], bool], low: int) -> int:
    """Returns the largest n >= low of which `holds` is true.

    It is true of `low`, and false from somewhere on.
    """
    high = 2 * low
    while holds(high):
        low, high = high, 2 * high
    return low + bisect.bisect_left(range(low + 1, high), True, key=lambda n: not holds(n))
