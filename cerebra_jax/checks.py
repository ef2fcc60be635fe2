"""What no single configuration key can show: values that do not go together. Imports no JAX."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cerebra_jax.errors import UserError

if TYPE_CHECKING:
    from cerebra_jax.config import NetCfg, RunCfg

ROUTED = ("chiar", "cerebra", "mod")
PRUNABLE = ("transformer", "cerebra", "chiar")
PADDED = ("intent", "listops")  # tasks whose examples are of many lengths
RECURRENT = ("lstm", "ssm")
UNROUTED = ("window", "lstm", "ssm", "cnn", "fnet", "mlp")  # beside the dense Transformer


def need(ok: bool, what: str, mend: str) -> None:
    """UserError(what, mend) unless ok."""
    if not ok:
        raise UserError(what, mend)


def to_steps(spec: str, total: int, per_epoch: int) -> int:
    """Steps of a duration: "0.1 frac" (of `total`), "3 epochs" (of `per_epoch` steps) or "500 steps"."""
    try:
        number, unit = spec.split()
        scale = {"step": 1, "steps": 1, "epoch": per_epoch, "epochs": per_epoch, "frac": total}[
            unit
        ]
        steps = round(float(number) * scale)
    except (ValueError, KeyError, OverflowError):
        raise UserError(
            f"cannot read the duration {spec!r}", 'write "500 steps", "3 epochs" or "0.1 frac"'
        ) from None
    if steps < 0:
        raise UserError(f"the duration {spec!r} is negative", "use a positive one")
    return steps


def together(c: RunCfg) -> None:
    """UserError where values that are each allowed do not go together."""
    net, route = c.net, c.net.route
    need(
        net.width % net.heads == 0,
        f"net.width {net.width} is not divisible by net.heads {net.heads}",
        f"use net.heads={math.gcd(net.width, net.heads)}",
    )
    need(
        (net.width // net.heads) % 2 == 0,
        f"head width {net.width // net.heads} is odd",
        "RoPE needs an even one",
    )
    need(
        c.train.batch_size % c.train.accum == 0,
        f"train.batch_size {c.train.batch_size} is not divisible by train.accum {c.train.accum}",
        "change one of them",
    )
    text = c.task.name in ("text", "mixed")
    need(
        not text or c.task.seq_len > 1,
        f"task.seq_len is {c.task.seq_len}",
        "a text needs at least 2: 256, say",
    )
    need(
        not text or c.task.tokenizer != "words",
        "task.tokenizer is words for a text",
        "use bpe, bytes or gpt2",
    )
    need(
        not text or c.task.eval_context < c.task.seq_len,
        f"task.eval_context {c.task.eval_context} leaves nothing to score",
        f"keep it under task.seq_len={c.task.seq_len}",
    )
    need(
        c.task.name not in ("text", "intent", "mixed")
        or c.task.tokenizer != "bpe"
        or c.task.vocab_size >= 260,
        f"task.vocab_size is {c.task.vocab_size}",
        "a BPE vocabulary holds 256 bytes first: use 260 or more",
    )
    need(
        c.task.subwords == 0 or (c.task.name == "intent" and c.task.tokenizer == "words"),
        f"task.subwords is set for {c.task.tokenizer if c.task.name == 'intent' else c.task.name}",
        "they are parts of words: use task.name=intent with task.tokenizer=words, or task.subwords=0",
    )
    need(
        not c.task.tfds or (c.task.name in ("intent", "mixed") and not c.task.path),
        f"task.tfds is set beside task.{'path' if c.task.path else 'name'}={c.task.path or c.task.name}",
        "it is for task.name=intent, in the place of task.path",
    )
    need(
        net.name != "chiar" or net.depth >= 2,
        "net.depth is 1",
        "chiar needs a first and a last layer: depth >= 2",
    )
    need(
        net.name != "mod" or net.depth >= 2,
        "net.depth is 1",
        "mod routes every second block: depth >= 2",
    )
    need(
        net.name not in ("fnet", "mlp") or not net.causal,
        f"net.causal is True for {net.name}, which sees the whole input at once",
        "it is no language model: use net.causal=False and a task with one answer per example",
    )
    need(
        net.name in ROUTED or c.objective.lam == c.objective.budget == 0.0,
        f"objective.{'lam' if c.objective.lam else 'budget'} is set for {_kind(net)}",
        f"its cost cannot change: use objective.lam=0 and objective.budget=0, or one of {', '.join(ROUTED)}",
    )
    need(
        c.task.name != "mixed" or net.name != "chiar" or route.tau != "calibrated",
        "net.route.tau is calibrated for several tasks",
        "held-out rows come task after task: use net.route.tau=running",
    )
    need(
        c.objective.budget == 0.0 or net.route.rbf == 0.0,
        "objective.budget is set for three operators",
        "a budget knows two paths: use objective.budget=0, or net.route.rbf=0",
    )
    need(
        net.name in ROUTED or c.sampler.gamma == 0.0 or c.task.buckets > 1,
        f"sampler.gamma is set for {_kind(net)}",
        f"every example costs it the same: use sampler.gamma=0, or one of {', '.join(ROUTED)}",
    )
    if c.task.buckets > 1:
        what = f"task.buckets is {c.task.buckets}"
        all_alike = f"{what}, but the examples of task.name={c.task.name} are of one length"
        need(
            c.task.name in PADDED,
            all_alike,
            f"use task.buckets=0, or a task among {', '.join(PADDED)}",
        )
        both = f"{what} and objective.budget is set"
        need(c.objective.budget == 0.0, both, "a budget is one program's: use one of them")
        whole = f"{what}, but what {net.name} computes depends on the length that it is padded to"
        need(
            net.name != "fnet" and (net.name != "mlp" or bool(net.pool)),
            whole,
            "use task.buckets=0, or another net.name",
        )
    need(
        net.name != "chiar" or route.mode not in ("threshold", "random") or route.rate < 1.0,
        "net.route.rate is 1",
        "a threshold needs a share below 1; net.route.mode=always_full attends everywhere",
    )
    _routing(net)
    need(
        c.quant.bits == 0 or net.name not in RECURRENT,
        f"quant.bits is 8 for {net.name}",
        "a recurrence adds up its rounding: use quant.bits=0, or another net.name",
    )
    need(
        c.quant.bits == 8 or not c.quant.stored,
        "quant.stored is True without quant.bits",
        "use quant.bits=8",
    )
    need(
        net.features == net.outputs == 0 or (net.name != "chiar" and not text),
        f"net.features or net.outputs is set for {'a text' if text else 'chiar'}, a language model",
        "use net.features=0 and net.outputs=0" if text else "use net.name=transformer or cerebra",
    )
    _kept(net)
    _by_layer(net)
    pruned = f"prune is set for net.name={net.name}"
    need(
        not c.prune.on or net.name in PRUNABLE or bool(c.twin),
        pruned,
        f"only {', '.join(PRUNABLE)} can be pruned",
    )
    need(
        not c.prune.on or not net.scan,
        "prune is set with net.scan",
        "layers end at different widths: net.scan=False",
    )
    need(
        c.prune.dct == 0.0 or net.name == "chiar",
        f"prune.dct is set for {net.name}",
        "it is for chiar's filters: 0",
    )
    need(
        not net.kept.heads + net.kept.ffn
        or net.name != "transformer"
        or c.objective.unit == "flops",
        f"objective.unit is {c.objective.unit} for a Transformer that was pruned",
        "its costs are known in FLOPs: use objective.unit=flops",
    )
    need(
        not net.pooler or bool(net.pool),
        "net.pooler is set without net.pool",
        "use net.pool=mean or max",
    )
    need(net.causal or not text, "net.causal is False for a language model", "use net.causal=True")
    need(
        c.task.tokenizer != "gpt2" or bool(c.task.gpt2_dir),
        "task.tokenizer is gpt2 but task.gpt2_dir is empty",
        "give the folder with vocab.json and merges.txt",
    )


def joined(values: Iterable[object]) -> str:
    """Returns a list as it is written on the command line: "3,0,2"."""
    return ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in values)


def _by_layer(net: NetCfg) -> None:
    """Every layer has its share of the slots, and something that gives them to tokens."""
    route, rates = net.route, net.route.by_layer
    if not rates:
        return
    good = len(rates) == net.depth and all(0.0 < n <= 1e3 for n in rates)
    what = f"net.route.by_layer is {joined(rates)!r}"
    need(good, what, f"give {net.depth} numbers above 0 with commas, or none")
    need(
        net.name == "cerebra",
        f"{what} for {net.name}",
        "only the layers of cerebra have rates of their own: use ''",
    )
    need(not net.scan, f"{what} with net.scan", "layers with different slots: use net.scan=False")
    need(
        route.k == 0 and route.mode in ("threshold", "topk", "random", "oracle"),
        f"{what} with net.route.{f'k={route.k}' if route.k else f'mode={route.mode}'}",
        "it divides what net.route.rate gives: use net.route.by_layer=''",
    )


def _kept(net: NetCfg) -> None:
    """What is left of pruned layers is there for each of them, and was there before."""
    hidden, kept = net.ffn_width, net.kept
    lists = {"heads": (kept.heads, net.heads), "ffn": (kept.ffn, hidden), "rest": (kept.rest, hidden),
             "channels": (kept.channels, net.width)}  # fmt: skip
    for name, (left, most) in lists.items():
        good = len(left) in (0, net.depth) and all(0 <= n <= most for n in left)
        need(
            good,
            f"net.kept.{name} is {joined(left)!r}",
            f"give {net.depth} numbers from 0 to {most} with commas, or none",
        )
    given = ", ".join(f"net.kept.{name}" for name, (left, _) in lists.items() if left)
    need(
        not given or net.name in PRUNABLE,
        f"{given} is set for {net.name}",
        f"only {', '.join(PRUNABLE)} can be pruned",
    )
    need(
        not given or not net.scan,
        f"{given} is set with net.scan",
        "layers of different widths: use net.scan=False",
    )


def _kind(net: NetCfg) -> str:
    return "a dense model" if net.name == "transformer" else net.name


def _routing(net: NetCfg) -> None:
    """What CHIAR, and Cerebra and Mixture-of-Depths, do not share."""
    route, cerebra = net.route, net.name in ("cerebra", "mod")
    for name, modes in (
        ("chiar", ("threshold", "hard", "soft", "random", "always_full", "always_compressed")),
        (
            "cerebra",
            ("threshold", "soft", "topk", "random", "oracle", "always_full", "always_compressed"),
        ),
        ("mod", ("threshold", "topk", "random", "oracle")),
    ):
        what = f"net.route.mode is {route.mode} for {name}"
        need(net.name != name or route.mode in modes, what, f"choose one of {', '.join(modes)}")
    need(
        net.name != "window" or net.attention != "cudnn",
        "net.attention is cudnn for window",
        "its mask is more than causal: use net.attention=auto",
    )
    need(
        net.causal or net.attention != "cudnn",
        "net.attention is cudnn for an encoder",
        "use net.attention=auto",
    )
    need(
        net.name != "chiar" or net.local == 0,
        f"net.local is {net.local} for chiar",
        "use net.local=0",
    )
    need(
        net.name != "chiar" or net.causal,
        "net.causal is False for chiar",
        "chiar is a causal model",
    )
    need(
        not (cerebra and net.causal and route.mode == "topk"),
        "net.route.mode is topk in a causal model",
        "which tokens are best depends on later ones: use threshold, or net.causal=False",
    )
    if cerebra and net.compress.heads:
        width = math.ceil(net.compress.s * net.width - 1e-9 * net.width)
        need(
            width % net.compress.heads == 0,
            f"net.compress.heads {net.compress.heads} does not divide the light width {width}",
            f"use {math.gcd(net.heads, width)}, or 0",
        )
    need(
        route.score == "spectral" or (net.name == "chiar" and route.mode == "threshold"),
        f"net.route.score is {route.score} for {net.name} with net.route.mode={route.mode}",
        "only a threshold of chiar looks at an entropy: use net.route.score=spectral",
    )
    if route.rbf or route.collapse:
        key = "net.route.rbf" if route.rbf else "net.route.collapse"
        chooses = net.name == "chiar" and not route.mode.startswith("always")
        what = f"{key} is set for {net.name} with net.route.mode={route.mode}"
        need(chooses, what, f"it is for the operators of chiar: use {key}=0")
        fixed = route.mode == "random" and route.collapse > 0.0
        need(not fixed, what, "chance takes no reward: use net.route.collapse=0")
    need(
        route.rate + route.rbf <= 1.0,
        f"net.route.rate {route.rate:g} and net.route.rbf {route.rbf:g} are more than all tokens",
        "use shares whose sum is at most 1",
    )
    need(
        route.rbf == 0.0
        or (route.floor == 0.0 and route.ceiling == 1.0)
        or route.mode not in ("hard", "soft"),
        "net.route.floor or net.route.ceiling is set for a choice among three operators",
        "use net.route.floor=0 and net.route.ceiling=1",
    )
    wrong = {"chiar": "learned", "cerebra": "calibrated", "mod": "calibrated"}
    need(
        route.tau != wrong.get(net.name),
        f"net.route.tau is {route.tau} for {net.name}",
        "use net.route.tau=running",
    )
    need(
        not cerebra
        or route.mode not in ("threshold", "random", "oracle")
        or 0.0 < route.rate < 1.0,
        f"net.route.rate is {route.rate:g}",
        "use 0 < rate < 1, or net.route.mode=always_full or always_compressed",
    )
    need(
        not cerebra or route.mode != "threshold" or route.floor <= route.rate <= route.ceiling,
        f"net.route.rate {route.rate:g} is not between net.route.floor and net.route.ceiling",
        "use floor <= rate <= ceiling",
    )
