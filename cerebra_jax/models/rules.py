"""What each model demands of a configuration: one function per model, and `check` for all of them.

Every function yields (what is wrong, how to put it right), as `checks.check` does. This module
imports no JAX: a configuration that cannot work is refused before JAX is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cerebra_jax.checks import ROUTED, Problem, counts, joined, numbers, to_steps
from cerebra_jax.config.mixers import RECURRENT
from cerebra_jax.cost import device

if TYPE_CHECKING:
    from cerebra_jax.config import NetCfg, RouteCfg, RunCfg

PRUNABLE = ("transformer", "cerebra", "chiar")
ALWAYS = ("always_full", "always_compressed")
CHIAR_MODES = ("threshold", "hard", "soft", "random", *ALWAYS)
CEREBRA_MODES = ("threshold", "soft", "topk", "random", "oracle", *ALWAYS)
MOD_MODES = ("threshold", "topk", "random", "oracle")
MAX_PER_LAYER = 1e3  # the largest number of net.route.by_layer


def check(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the model of a configuration, or the device that it is priced for, forbids.

    Raises UserError for a device that nobody knows.
    """
    if cfg.objective.device:
        device.given(cfg.objective.device)
    yield from RULES[cfg.net.name](cfg)
    yield from _mixers(cfg)


# One function per model.


def check_transformer(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the dense Transformer forbids: routing."""
    yield from _unrouted(cfg)
    yield from _no_operators_of_chiar(cfg)
    yield from _no_rates_per_layer(cfg)
    yield from _pruned(cfg)


def check_cerebra(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what Cerebra forbids: modes, rates and widths that it cannot have."""
    yield from _mode(cfg.net, CEREBRA_MODES)
    yield from _heavy_or_light(cfg)
    yield from _rates_per_layer(cfg.net)
    yield from _slots_by_demand(cfg)
    yield from _pruned(cfg)


def check_mod(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what Mixture-of-Depths forbids: it routes every second block, and cannot be pruned."""
    if cfg.net.depth < 2:
        yield "net.depth is 1", "mod routes every second block: depth >= 2"
    yield from _mode(cfg.net, MOD_MODES)
    yield from _heavy_or_light(cfg)
    yield from _no_rates_per_layer(cfg)
    yield from _unpruned(cfg)


def check_chiar(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what CHIAR forbids.

    It is a causal language model, with rules for two and for three operators.
    """
    net, route = cfg.net, cfg.net.route

    # the model as a whole
    if net.depth < 2:
        yield "net.depth is 1", "chiar needs a first and a last layer: depth >= 2"
    if not net.causal:
        yield "net.causal is False for chiar", "chiar is a causal model"
    if net.local:
        yield f"net.local is {net.local} for chiar", "use net.local=0"
    if net.features or net.outputs:
        what = "net.features or net.outputs is set for chiar, a language model"
        yield what, "use net.name=transformer or cerebra"

    # how tokens are chosen
    yield from _mode(net, CHIAR_MODES)
    if route.mode in ("threshold", "random") and route.rate >= 1.0:
        hint = "a threshold needs a share below 1; net.route.mode=always_full attends everywhere"
        yield "net.route.rate is 1", hint
    if route.score != "spectral" and route.mode != "threshold":
        yield _score(net)
    if route.tau == "learned":
        yield "net.route.tau is learned for chiar", "use net.route.tau=running"
    if route.gate == "learned":
        yield "net.route.gate is learned for chiar", "use net.route.gate=one, or net.name=cerebra"
    if route.tau == "calibrated" and cfg.task.name == "mixed":
        hint = "held-out rows come task after task: use net.route.tau=running"
        yield "net.route.tau is calibrated for several tasks", hint
    yield from _operators(cfg)

    yield from _no_rates_per_layer(cfg)
    yield from _pruned(cfg)


def check_window(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the Transformer of a sliding window forbids."""
    if cfg.net.attention == "cudnn":
        hint = "its mask is more than causal: use net.attention=auto"
        yield "net.attention is cudnn for window", hint
    yield from _baseline(cfg)


def check_recurrent(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the LSTM and the state-space model forbid: 8 bits."""
    yield from _baseline(cfg)
    if cfg.quant.bits:
        hint = "a recurrence adds up its rounding: use quant.bits=0, or another net.name"
        yield f"quant.bits is 8 for {cfg.net.name}", hint


def check_cnn(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the convolutional model forbids."""
    yield from _baseline(cfg)


def check_fnet(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what FNet forbids: its Fourier transform sees all tokens, and mixes padding in."""
    yield from _encoder_only(cfg.net)
    yield from _baseline(cfg)
    if cfg.task.buckets > 1:
        yield _depends_on_length(cfg)


def check_mlp(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what the MLP forbids: unless it pools its tokens, it has a weight for each place."""
    yield from _encoder_only(cfg.net)
    yield from _baseline(cfg)
    if cfg.task.buckets > 1 and not cfg.net.pool:
        yield _depends_on_length(cfg)


RULES: dict[str, Callable[[RunCfg], Iterator[Problem]]] = {
    "transformer": check_transformer,
    "cerebra": check_cerebra,
    "chiar": check_chiar,
    "mod": check_mod,
    "window": check_window,
    "lstm": check_recurrent,
    "ssm": check_recurrent,
    "cnn": check_cnn,
    "fnet": check_fnet,
    "mlp": check_mlp,
}


# Rules that several models share.


def _mixers(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what is wrong with the layers of the heavy and the light path."""
    net, route = cfg.net, cfg.net.route
    if net.heavy != "attention" and net.name not in ("transformer", "cerebra", "mod"):
        hint = "use net.heavy=attention, or net.name=transformer, cerebra or mod"
        yield f"net.heavy is {net.heavy} for {net.name}", hint
    if net.light != "compressed" and net.name != "cerebra":
        yield f"net.light is {net.light} for {net.name}", "only cerebra has a light path to choose"
    everyone = route.mode in ("soft", "always_full", "always_compressed")
    if net.name in ROUTED and net.heavy in RECURRENT and route.kv == "all" and not everyone:
        what = f"net.heavy is {net.heavy} with net.route.kv=all"
        yield what, "its state reads the selected tokens alone: use net.route.kv=routed"
    recurrent = [name for name in (net.heavy, net.light) if name in RECURRENT]
    if cfg.quant.bits and recurrent:
        hint = "a recurrence adds up its rounding: use quant.bits=0, or other layers"
        yield f"quant.bits is 8 with a layer of {recurrent[0]}", hint
    if net.compress.reconstruct and net.light != "compressed":
        what = f"net.compress.reconstruct is set with net.light={net.light}"
        yield what, "nothing is compressed: use net.compress.reconstruct=0"


def _baseline(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what all baselines forbid: routing and pruning."""
    yield from _unrouted(cfg)
    yield from _no_operators_of_chiar(cfg)
    yield from _no_rates_per_layer(cfg)
    yield from _unpruned(cfg)


def _unrouted(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what makes no sense where every example costs the same."""
    name = "a dense model" if cfg.net.name == "transformer" else cfg.net.name
    routed = ", ".join(ROUTED)
    if cfg.objective.lam or cfg.objective.budget:
        key = "lam" if cfg.objective.lam else "budget"
        hint = "its cost cannot change: use objective.lam=0 and objective.budget=0"
        yield f"objective.{key} is set for {name}", f"{hint}, or one of {routed}"
    if cfg.sampler.gamma and cfg.task.buckets <= 1:
        hint = f"every example costs it the same: use sampler.gamma=0, or one of {routed}"
        yield f"sampler.gamma is set for {name}", hint


def _encoder_only(net: NetCfg) -> Iterator[Problem]:
    if net.causal:
        what = f"net.causal is True for {net.name}, which sees the whole input at once"
        hint = "use net.causal=False and a task with one answer per example"
        yield what, f"it is no language model: {hint}"


def _depends_on_length(cfg: RunCfg) -> Problem:
    what = f"task.buckets is {cfg.task.buckets}, but what {cfg.net.name} computes"
    hint = "use task.buckets=0, or another net.name"
    return f"{what} depends on the length that it is padded to", hint


def _mode(net: NetCfg, modes: tuple[str, ...]) -> Iterator[Problem]:
    if net.route.mode not in modes:
        what = f"net.route.mode is {net.route.mode} for {net.name}"
        yield what, f"choose one of {', '.join(modes)}"


def _heavy_or_light(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what Cerebra and Mixture-of-Depths forbid of routes and widths."""
    net, route = cfg.net, cfg.net.route

    # which tokens can be chosen
    if net.causal and route.mode == "topk":
        hint = "which tokens are best depends on later ones: use threshold, or net.causal=False"
        yield "net.route.mode is topk in a causal model", hint
    yield from _no_operators_of_chiar(cfg)
    if route.tau == "calibrated":
        yield f"net.route.tau is calibrated for {net.name}", "use net.route.tau=running"

    # how much of the heavy path they take
    if route.gate == "learned" and "random" not in (route.mode, cfg.twin):
        what = f"net.route.gate is learned with net.route.mode={route.mode}"
        yield what, "only what chance decides lacks a gate of its own: use net.route.gate=one"

    # how many of them
    if route.mode in ("threshold", "random", "oracle") and not 0.0 < route.rate < 1.0:
        hint = "use 0 < rate < 1, or net.route.mode=always_full or always_compressed"
        yield f"net.route.rate is {route.rate:g}", hint
    if route.mode == "threshold" and not route.floor <= route.rate <= route.ceiling:
        what = f"net.route.rate {route.rate:g} is not between net.route.floor and net.route.ceiling"
        yield what, "use floor <= rate <= ceiling"

    # the light path
    if net.compress.heads:
        width = math.ceil(net.compress.s * net.width - 1e-9 * net.width)
        if width % net.compress.heads:
            what = f"net.compress.heads {net.compress.heads} does not divide the light width"
            yield f"{what} {width}", f"use {math.gcd(net.heads, width)}, or 0"


def _operators(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what CHIAR forbids of its third operator, and of the reward for using all of them."""
    route = cfg.net.route
    if route.rbf or route.collapse:
        if route.mode.startswith("always"):
            yield _operator_without_choice(cfg.net)
        if route.mode == "random" and route.collapse:
            what, _ = _operator_without_choice(cfg.net)
            yield what, "chance takes no reward: use net.route.collapse=0"
    if route.rate + route.rbf > 1.0:
        what = f"net.route.rate {route.rate:g} and net.route.rbf {route.rbf:g}"
        yield f"{what} are more than all tokens", "use shares whose sum is at most 1"
    if route.rbf and cfg.objective.budget:
        hint = "a budget knows two paths: use objective.budget=0, or net.route.rbf=0"
        yield "objective.budget is set for three operators", hint
    if route.rbf and route.mode in ("hard", "soft") and _is_bounded(route):
        what = "net.route.floor or net.route.ceiling is set for a choice among three operators"
        yield what, "use net.route.floor=0 and net.route.ceiling=1"


def _is_bounded(route: RouteCfg) -> bool:
    return route.floor != 0.0 or route.ceiling != 1.0


def _no_operators_of_chiar(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what only CHIAR can have: its scores, a third operator, a reward for variety."""
    route = cfg.net.route
    if route.score != "spectral":
        yield _score(cfg.net)
    if route.rbf or route.collapse:
        yield _operator_without_choice(cfg.net)


def _score(net: NetCfg) -> Problem:
    what = f"net.route.score is {net.route.score} for {net.name}"
    hint = "only a threshold of chiar looks at an entropy: use net.route.score=spectral"
    return f"{what} with net.route.mode={net.route.mode}", hint


def _operator_without_choice(net: NetCfg) -> Problem:
    key = "net.route.rbf" if net.route.rbf else "net.route.collapse"
    what = f"{key} is set for {net.name} with net.route.mode={net.route.mode}"
    return what, f"it is for the operators of chiar: use {key}=0"


def _rates_per_layer(net: NetCfg) -> Iterator[Problem]:
    """Yields what is wrong with net.route.by_layer.

    It has a number for each layer, and divides what net.route.rate gives.
    """
    route = net.route
    if not route.by_layer:
        return
    what = f"net.route.by_layer is {joined(route.by_layer)!r}"
    if not _is_list_of_rates(route.by_layer, net.depth):
        yield what, f"give {net.depth} numbers above 0 with commas, or none"
    if net.scan:
        hint = "layers with different slots: use net.scan=False"
        yield f"{what} with net.scan", hint
    if route.k or route.mode not in ("threshold", "topk", "random", "oracle"):
        other = f"k={route.k}" if route.k else f"mode={route.mode}"
        hint = "it divides what net.route.rate gives: use net.route.by_layer=''"
        yield f"{what} with net.route.{other}", hint


def _no_rates_per_layer(cfg: RunCfg) -> Iterator[Problem]:
    if cfg.net.route.by_layer:
        what = f"net.route.by_layer is {joined(cfg.net.route.by_layer)!r} for {cfg.net.name}"
        yield what, "only the layers of cerebra have rates of their own: use ''"
    if cfg.net.route.by_demand:
        hint = "only the layers of cerebra have slots of their own: use net.route.by_demand=False"
        yield f"net.route.by_demand is set for {cfg.net.name}", hint


def _slots_by_demand(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what net.route.by_demand cannot do: it needs routers that say how much they want."""
    net, route = cfg.net, cfg.net.route
    if not route.by_demand:
        return
    what = "net.route.by_demand is set"
    if route.mode != "threshold" or route.tau != "learned":
        other = f"tau={route.tau}" if route.mode == "threshold" else f"mode={route.mode}"
        hint = "such a router wants as much in every layer: use mode=threshold and tau=learned"
        yield f"{what} with net.route.{other}", hint
    if route.by_layer:
        hint = "one says how the slots are divided, the other finds it: use one of them"
        yield f"{what} with net.route.by_layer", hint
    if net.scan:
        yield f"{what} with net.scan", "layers with different slots: use net.scan=False"
    if not route.dispatch:
        yield f"{what} with net.route.dispatch=False", "there are no slots to divide: use True"
    if cfg.prune.on:
        hint = "the price of a unit would change: prune a run with the net.route.by_layer it found"
        yield f"{what} with prune", hint
    if to_steps(route.divide_at, 1000, 1000) == 0:
        hint = "no demand is known before the first step: use '0.25 frac'"
        yield f"net.route.divide_at is {route.divide_at!r}", hint


def _is_list_of_rates(values: str | tuple[float, ...], depth: int) -> bool:
    try:
        found = numbers(values)
    except ValueError:
        return False
    return len(found) == depth and all(0.0 < number <= MAX_PER_LAYER for number in found)


class _Remaining(NamedTuple):
    """What pruning has left of one kind of unit, such as heads."""

    key: str
    values: str | tuple[int, ...]
    unpruned: int


def _remaining(net: NetCfg) -> list[_Remaining]:
    return [
        _Remaining("net.kept.heads", net.kept.heads, net.heads),
        _Remaining("net.kept.ffn", net.kept.ffn, net.ffn_width),
        _Remaining("net.kept.rest", net.kept.rest, net.ffn_width),
        _Remaining("net.kept.channels", net.kept.channels, net.width),
    ]


def _pruned(cfg: RunCfg) -> Iterator[Problem]:
    """Yields what is wrong with the pruning of a model that can be pruned.

    It is pruned before training (net.kept) or in training (prune).
    """
    net = cfg.net
    for units in _remaining(net):
        if not _is_list_of_counts(units, net.depth):
            hint = f"give {net.depth} numbers from 0 to {units.unpruned} with commas, or none"
            yield f"{units.key} is {joined(units.values)!r}", hint
    given = _given(net)
    if given and net.scan:
        yield f"{given} is set with net.scan", "layers of different widths: use net.scan=False"
    if cfg.prune.dct and net.name != "chiar":
        yield f"prune.dct is set for {net.name}", "it is for chiar's filters: 0"


def _unpruned(cfg: RunCfg) -> Iterator[Problem]:
    """Yields the pruning that is asked of a model that cannot be pruned.

    Its control, where it has one, may be.
    """
    net, hint = cfg.net, f"only {', '.join(PRUNABLE)} can be pruned"
    given = _given(net)
    if given:
        yield f"{given} is set for {net.name}", hint
    if cfg.prune.on and not cfg.twin:
        yield f"prune is set for net.name={net.name}", hint
    if cfg.prune.dct:
        yield f"prune.dct is set for {net.name}", "it is for chiar's filters: 0"


def _given(net: NetCfg) -> str:
    """Returns the keys of the lists that are not empty, with commas."""
    return ", ".join(units.key for units in _remaining(net) if units.values)


def _is_list_of_counts(units: _Remaining, depth: int) -> bool:
    try:
        found = counts(units.values)
    except ValueError:
        return False
    return len(found) in (0, depth) and all(0 <= count <= units.unpruned for count in found)
