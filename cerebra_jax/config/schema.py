"""Declares every configuration key, its default, its meaning and its allowed values. No JAX here.

The keys of the task stand in `config/task.py`, those of the model in `config/net.py`, all others
here. A list is a tuple: its default is empty, and `item` is the type of what it holds. On the
command line, and in files of earlier versions, it is text with commas.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cerebra_jax.config.field import key, path
from cerebra_jax.config.net import NetCfg
from cerebra_jax.config.task import TaskCfg


@dataclass(frozen=True)
class ObjectiveCfg:
    """Holds what compute costs in the objective."""

    lam: float = key(
        0.0,
        "final weight of the relative cost in the objective; its start under a budget",
        lo=0.0,
        hi=1e4,
    )
    budget: float = key(
        0.0, "executed cost to end at, as a share of the dense model's; 0: off", lo=0.0, hi=10.0
    )
    unit: str = key(
        "flops", "what lam, budget and reported costs count", of=("flops", "bytes", "seconds")
    )
    device: str = key(
        "", "whose seconds: cpu t4 a100 h100 h200 v5e v6e, or FLOP/s / bytes/s; empty: this one's"
    )
    dual_rate: float = key(
        0.05, "how fast a budget's multiplier follows the missed cost, per step", lo=0.0, hi=10.0
    )
    lam_max: float = key(1e3, "a budget's multiplier stays below this", lo=0.0, hi=1e6)
    buckets: int = key(
        3,
        "compiled programs, each smaller, for a budget on its way or a demand that lam lowers",
        lo=1,
        hi=16,
    )
    warm: str = key(
        "0.1 frac", "how long the penalty stays 0, or a budget's target at the dense cost"
    )
    ramp: str = key("0.4 frac", "how long the penalty then rises, or the target falls, linearly")
    temperature: float = key(
        1.0, "routing softness at the start, in spreads of the score", lo=0.01, hi=100.0
    )
    temperature_end: float = key(0.5, "routing softness at the end", lo=0.01, hi=100.0)


@dataclass(frozen=True)
class TrainCfg:
    """Holds how a model is trained."""

    duration: str = key("600 steps", "how long to train: steps or epochs")
    batch_size: int = key(16, "windows per step, over all devices", lo=1, hi=1 << 30)
    accum: int = key(1, "micro-batches per step", lo=1)
    lr: float = key(2e-3, "peak learning rate", lo=0.0, hi=10.0)
    lr_end: float = key(0.1, "final learning rate as a share of the peak", lo=0.0, hi=1.0)
    warmup: str = key("0.05 frac", "linear warm-up")
    b1: float = key(0.9, "AdamW beta 1", lo=0.0, hi=0.9999)
    b2: float = key(0.95, "AdamW beta 2", lo=0.0, hi=0.99999)
    weight_decay: float = key(0.1, "AdamW weight decay, on matrices only", lo=0.0, hi=10.0)
    clip: float = key(1.0, "global gradient norm is clipped to this", lo=1e-6, hi=1e9)
    freeze: tuple[str, ...] = key(
        (), "parameters that stay as they begin: names, with * for any signs: embed/*", item=str
    )
    max_skips: int = key(
        3, "steps in a row whose loss is huge or not finite, before train.on_nonfinite", lo=0
    )
    on_nonfinite: str = key(
        "skip",
        "skip: steps that are not finite are left out, after train.max_skips of them the run ends; "
        "rollback: it then goes on once from its last checkpoint with other batches; halt: it ends "
        "at the first",
        of=("skip", "rollback", "halt"),
    )
    devices: int = key(0, "devices to use; 0: all", lo=0)
    log_every: str = key("0.1 frac", "interval of a printed line")
    eval_every: str = key("0.5 frac", "interval of a validation pass")
    checkpoint_every: str = key("0.25 frac", "interval of a checkpoint")
    patience: int = key(
        0, "validations in a row without a better one that end a run early; 0: never", lo=0
    )


@dataclass(frozen=True)
class SamplerCfg:
    """Holds how examples are drawn."""

    beta: float = key(
        0.0,
        "draw examples of high loss more often, e^beta per standard deviation",
        lo=-100.0,
        hi=100.0,
    )
    gamma: float = key(
        0.0, "draw costly examples less often, e^-gamma per dense forward pass", lo=-1e4, hi=1e4
    )
    mode: str = key(
        "importance",
        "weigh examples so that the gradient stays unbiased, or not",
        of=("importance", "curriculum"),
    )
    floor: float = key(0.1, "share of the draws that is uniform", lo=1e-3, hi=1.0)
    start: str = key("0.1 frac", "when the sampler begins; before that, epochs in random order")
    decay: float = key(
        0.5, "memory of an example's running loss and cost, per visit", lo=0.0, hi=0.9999
    )
    clip: float = key(10.0, "largest importance weight", lo=1.0, hi=1e6)

    @property
    def on(self) -> bool:
        """Returns True where examples are not drawn alike."""
        return self.beta != 0.0 or self.gamma != 0.0


@dataclass(frozen=True)
class PruneCfg:
    """Holds what is pruned during training."""

    keep: float = key(
        1.0,
        "share of the model's executed FLOPs to end at, by removing heads, hidden features and "
        "channels of compressed tokens; 1: nothing is removed",
        lo=1e-3,
        hi=1.0,
    )
    score: str = key(
        "sensitivity",
        "what goes first: the least |loss change| per FLOP saved, the least |loss change|, small "
        "weights, or any",
        of=("sensitivity", "taylor", "magnitude", "random"),
    )
    start: str = key("0.4 frac", "when the first round of pruning is")
    end: str = key("0.8 frac", "when the last round is; checkpoints are judged after it")
    rounds: int = key(8, "rounds, whose targets fall cubically", lo=1, hi=1000)
    tile: int = key(
        8,
        "hidden features and channels go so many at a time, so that multiples of it are left",
        lo=1,
        hi=512,
    )
    dct: float = key(
        0.0,
        "share of the coefficients of chiar's filters to end at zero; it saves nothing",
        lo=0.0,
        hi=1.0,
    )
    unstructured: float = key(
        0.0,
        "share of each matrix to end at zero, small weights first; it saves nothing",
        lo=0.0,
        hi=1.0,
    )

    @property
    def on(self) -> bool:
        """Returns True where anything is pruned."""
        return self.keep < 1.0 or self.dct > 0.0 or self.unstructured > 0.0


@dataclass(frozen=True)
class QuantCfg:
    """Holds how a model is trained for 8 bits."""

    bits: int = key(
        0,
        "8: linear layers multiply in int8, from quant.start on (extra quant); 0: off",
        of=(0, 8),
    )
    start: str = key(
        "0.7 frac", "when training in 8 bits begins; 1 frac: never, the end is only rounded"
    )
    stored: bool = key(
        False, "the weights are int8: convert sets it, and such a run is not trained further"
    )


@dataclass(frozen=True)
class RunCfg:
    """Holds a whole run."""

    seed: int = key(0, "seeds everything", lo=0, hi=(1 << 31) - 1)
    twin: str = key(
        "",
        "run a twin of this model: the dense Transformer of its shape, one that executes its "
        "FLOPs, or the model with a random router",
        of=("", "dense", "equal_flops", "random"),
    )
    init_from: str = path(
        "read", "folder of a run from whose weights this one begins; empty: afresh"
    )
    task: TaskCfg = field(default_factory=TaskCfg)
    net: NetCfg = field(default_factory=NetCfg)
    objective: ObjectiveCfg = field(default_factory=ObjectiveCfg)
    train: TrainCfg = field(default_factory=TrainCfg)
    sampler: SamplerCfg = field(default_factory=SamplerCfg)
    prune: PruneCfg = field(default_factory=PruneCfg)
    quant: QuantCfg = field(default_factory=QuantCfg)
