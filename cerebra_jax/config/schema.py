"""Declares every configuration key, its default, its meaning and its allowed values. No JAX here.

A list is a tuple: its default is empty, and `item` is the type of what it holds. On the command
line, and in files of earlier versions, it is text with commas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from cerebra_jax.checks import ROUTED, UNROUTED
from cerebra_jax.config.mixers import HEAVY, LIGHT


def _f(
    default: Any,
    doc: str,
    *,
    of: tuple[Any, ...] = (),
    lo: float = -math.inf,
    hi: float = math.inf,
    item: type | None = None,
) -> Any:
    """Returns a field with its meaning and what it may be: one of `of`, or between lo and hi, or a
    list of items.
    """
    metadata = {"doc": doc, "of": of, "lo": lo, "hi": hi, "item": item, "place": ""}
    return field(default=default, metadata=metadata)


def _path(place: str, doc: str) -> Any:
    """Returns a field for a path.

    place: "read" where it names files of data, which any configuration may name; "write" where it
    names a folder to write in and to load compiled programs from, which a file of data (a run's
    config.json) may not name.
    """
    plain = {"of": (), "lo": -math.inf, "hi": math.inf, "item": None}
    return field(default="", metadata={"doc": doc, "place": place} | plain)


@dataclass(frozen=True)
class TaskCfg:
    """Holds what is learned: the task, its data and how they are read."""

    name: str = _f(
        "text", "task", of=("text", "tabular", "intent", "long_sequence", "listops", "mixed")
    )
    dataset: str = _f("wikitext2", "text to train on", of=("wikitext2", "wikitext103", "offline"))
    data_dir: str = _path(
        "read", "folder with train/valid/test text, plain or .gz; empty: download"
    )
    cache_dir: str = _path(
        "write", "where prepared data is kept; empty: $CEREBRA_CACHE or ~/.cache/cerebra_jax"
    )
    offline_fallback: bool = _f(True, "train on the offline corpus where nothing can be downloaded")
    tokenizer: str = _f(
        "bpe", "tokenizer; words for intent only", of=("bpe", "words", "bytes", "gpt2")
    )
    tokenizer_from: str = _path(
        "read",
        "folder of a run whose bpe or words are taken as they are; empty: learnt from the texts",
    )
    vocab_size: int = _f(
        4096,
        "tokens of a BPE or of words at most, or symbols of a synthetic task",
        lo=3,
        hi=200_000,
    )
    gpt2_dir: str = _path("read", "folder with GPT-2's vocab.json and merges.txt")
    seq_len: int = _f(
        256,
        "tokens per window or example (L); 0: what the data need (not for a text)",
        lo=0,
        hi=1 << 20,
    )
    buckets: int = _f(
        0,
        "programs for texts or expressions of similar length; 0: one, of task.seq_len",
        lo=0,
        hi=16,
    )
    eval_context: int = _f(0, "tokens of context re-read before each evaluation window", lo=0)
    path: str = _path(
        "read",
        "table (CSV, or .gz) of tabular and intent; of intent also a folder or CLINC150's JSON; "
        "empty: made up",
    )
    tfds: str = _f(
        "",
        "a data set of tensorflow-datasets for intent, instead of task.path: NAME or NAME/CONFIG",
    )
    target: str = _f(
        "",
        "column to predict: numbers are a regression, anything else a classification; of intent: "
        "the labels",
    )
    columns: tuple[str, ...] = _f(
        (),
        "columns to predict from; empty: all others; of intent: the one with the texts",
        item=str,
    )
    ignore: tuple[str, ...] = _f((), "columns to leave out", item=str)
    types: tuple[str, ...] = _f(
        (),
        "NAME:number, NAME:category or NAME:date of columns; *:KIND for all features; else by what "
        "they hold",
        item=str,
    )
    delimiter: str = _f("", "what parts the fields of a table: one sign, or tab; empty: found out")
    encoding: str = _f(
        "", "of a table: utf-8, utf-16, cp1252 …, as Python names it; empty: found out"
    )
    decimal: str = _f(
        "", "mark before the decimals of a table; empty: found out", of=("", "point", "comma")
    )
    missing: tuple[str, ...] = _f(
        (), "fields of a table that stand for nothing, beside the usual NA, #N/A, - …", item=str
    )
    dates: str = _f("", "form of the dates of a table, such as %m/%d/%Y; empty: found out")
    scale: str = _f(
        "standard",
        "how columns of numbers are scaled, by training rows",
        of=("standard", "quantile"),
    )
    target_scale: str = _f(
        "standard",
        "what a regression learns: the number, its logarithm (of positive ones), or its quantile",
        of=("standard", "log", "quantile"),
    )
    class_weights: tuple[str, ...] = _f(
        (),
        "how much classes count in training: balanced, or NAME:WEIGHT of some; empty: alike",
        item=str,
    )
    min_count: int = _f(
        2, "a category or word that training shows less often is one with those never seen", lo=1
    )
    dedup: bool = _f(False, "leave out rows that equal an earlier one in every column")
    valid_share: float = _f(0.1, "share of the rows for validation", lo=0.0, hi=0.9)
    test_share: float = _f(0.1, "share of the rows for the test", lo=0.0, hi=0.9)
    split_column: str = _f("", "column that says train, valid or test of each row; empty: none")
    group: str = _f("", "column whose equal rows stay in one split; empty: none")
    time: str = _f("", "column of dates or numbers by which the latest rows are the test")
    stratify: bool = _f(False, "split each class at random, so that splits have equal shares")
    folds: int = _f(
        0, "k-fold: the test is fold `seed` mod folds, others train; 0: one split", lo=0, hi=1000
    )
    shots: int = _f(0, "training texts of each intent; 0: all", lo=0)
    oos: bool = _f(False, "add the class of texts that belong to no intent, labelled oos")
    subwords: int = _f(
        0,
        "rows of a table of hashed character n-grams, for words of intent; 0: none",
        lo=0,
        hi=1 << 22,
    )
    word_noise: float = _f(
        0.0, "share of the tokens of training texts that are hidden", lo=0.0, hi=0.9
    )
    kind: str = _f(
        "mqar",
        "what is recalled in long_sequence",
        of=("mqar", "selective", "copy", "masked", "induction"),
    )
    pairs: int = _f(8, "long_sequence: pairs, data tokens or masked tokens to remember (K)", lo=1)
    skew: float = _f(
        1.0,
        "mqar: queries come at gap g with weight (g + 1)^(skew - 1); 1: anywhere alike",
        lo=0.0,
        hi=1.0,
    )
    filler: str = _f("random", "mqar: tokens between the queries", of=("random", "zero"))
    rows: int = _f(10_000, "listops: expressions in all three splits", lo=100, hi=1_000_000)
    shortest: int = _f(
        500, "listops: expressions are longer than this, and shorter than task.seq_len", lo=2
    )


@dataclass(frozen=True)
class RouteCfg:
    """Holds how tokens are routed."""

    mode: str = _f(
        "threshold",
        "how tokens are chosen; chiar: all but topk, oracle; mod: threshold, topk, random, oracle; "
        "cerebra: all but hard (topk needs net.causal=False, oracle a task that marks what it "
        "needs: long_sequence)",
        of=(
            "threshold",
            "hard",
            "soft",
            "topk",
            "random",
            "oracle",
            "always_full",
            "always_compressed",
        ),
    )
    rate: float = _f(
        0.25, "share of tokens that take the heavy path, in each routed layer", lo=0.0, hi=1.0
    )
    by_layer: tuple[float, ...] = _f(
        (),
        "cerebra: rate, floor and ceiling of each layer in units of these keys; empty: 1",
        item=float,
    )
    k: int = _f(0, "tokens that topk keeps; 0: rate of them", lo=0)
    part: str = _f(
        "block", "what cerebra routes: attention, or attention and FFN", of=("attention", "block")
    )
    noise: float = _f(
        1.0, "Gumbel noise on the scores of topk in training, in temperatures", lo=0.0, hi=10.0
    )
    z_loss: float = _f(1e-4, "weight of the mean squared router score of cerebra", lo=0.0, hi=10.0)
    floor: float = _f(
        0.0,
        "least share of tokens that a threshold may come to keep; below it the penalty stops",
        lo=0.0,
        hi=1.0,
    )
    ceiling: float = _f(
        1.0, "largest share of tokens that a threshold may come to keep", lo=0.0, hi=1.0
    )
    capacity: float = _f(
        1.25, "slots of the compiled program per routed token expected", lo=0.01, hi=100.0
    )
    dispatch: bool = _f(
        True, "gather routed tokens; False runs both branches and masks: it saves nothing"
    )
    lowering: str = _f(
        "gather",
        "how dispatch moves tokens; onehot: by matrix products, for exporters without gather",
        of=("gather", "onehot"),
    )
    kv: str = _f("all", "which tokens are keys and values", of=("all", "routed"))
    tau: str = _f(
        "running",
        "threshold: running quantile at `rate`, calibrated on held-out text (chiar), or learned "
        "from `rate` (cerebra)",
        of=("running", "calibrated", "learned"),
    )
    score: str = _f(
        "spectral",
        "what a threshold of chiar looks at: the entropy of the spectrum, of the spectrum of "
        "reordered features, or of the features",
        of=("spectral", "permuted", "raw"),
    )
    rbf: float = _f(
        0.0,
        "chiar: share of tokens for a third operator, an RBF mixer between the two; 0: none",
        lo=0.0,
        hi=1.0,
    )
    collapse: float = _f(
        0.0,
        "weight of the entropy of mean operator use in chiar, which is rewarded",
        lo=0.0,
        hi=1e3,
    )
    decay: float = _f(0.95, "memory of the running quantile, per step", lo=0.0, hi=0.99999)
    calibrate_at: str = _f(
        "0.1 frac", "when a calibrated threshold is measured again (also at step 0)"
    )
    meta: str = _f(
        "prefix",
        "what the MetaRouter sees: the running mean, the batch mean (leaks), the task of a row "
        "(mixed), or nothing",
        of=("prefix", "batch", "task", "off"),
    )
    dct: str = _f(
        "auto",
        "how chiar's DCT is computed; folded: as one matrix where no router sees it; auto: by "
        "device and net.width",
        of=("auto", "fft", "matmul", "folded"),
    )


@dataclass(frozen=True)
class CompressCfg:
    """Holds the light path of Cerebra: compressed tokens."""

    kind: str = _f(
        "conv",
        "strided convolution, attention pooling, or both",
        of=("conv", "attention", "hybrid"),
    )
    r: float = _f(0.25, "compressed tokens per token: M = ceil(r L)", lo=1e-6, hi=1.0)
    s: float = _f(
        0.5,
        "width of the light path per width: ceil(s D), and of its FFN: ceil(s F)",
        lo=1e-6,
        hi=1.0,
    )
    reconstruct: float = _f(
        0.0, "weight of the reconstruction loss of the compressed tokens", lo=0.0, hi=1e4
    )
    heads: int = _f(
        0, "heads of the light path; 0: as many of net.heads as divide its width", lo=0, hi=1024
    )


@dataclass(frozen=True)
class KeptCfg:
    """Holds what pruning has left of each layer, a number for each.

    0, or an empty list, means all of it.

    The command `shrink` writes these lists.
    """

    heads: tuple[int, ...] = _f(
        (),
        "attention heads left in each layer, of net.heads; 0: all; empty: all, everywhere",
        item=int,
    )
    ffn: tuple[int, ...] = _f(
        (),
        "hidden features of the FFN left in each layer; of a routed FFN, of what all tokens take",
        item=int,
    )
    rest: tuple[int, ...] = _f(
        (),
        "hidden features of a routed FFN left in each layer, of the part heavy tokens alone take",
        item=int,
    )
    channels: tuple[int, ...] = _f(
        (), "features of compressed tokens left in each layer of cerebra", item=int
    )


@dataclass(frozen=True)
class NetCfg:
    """Holds the shape of a model."""

    name: str = _f("chiar", "model", of=("transformer", *ROUTED, *UNROUTED))
    features: int = _f(0, "numbers per token of the input; 0: token ids", lo=0, hi=1 << 20)
    outputs: int = _f(
        0, "outputs of a pooled head: classes, or 1 for a regression; 0: logits per token", lo=0
    )
    subwords: int = _f(
        0, "character n-grams per token at most, where a task has them; 0: none", lo=0, hi=1024
    )
    tasks: int = _f(
        0, "tasks of the rows of a batch, where there are several (mixed)", lo=0, hi=1024
    )
    answers: int = _f(
        0,
        "positions of an example whose logits are formed, where a task asks at some; 0: all",
        lo=0,
    )
    pool: str = _f(
        "",
        "pool before the last norm, mlp before its layers; empty: mean after it",
        of=("", "mean", "max"),
    )
    pooler: bool = _f(False, "a residual FFN between what net.pool pools and the outputs")
    causal: bool = _f(True, "tokens see earlier tokens only; False: an encoder")
    depth: int = _f(6, "layers", lo=1, hi=1000)
    heavy: str = _f(
        "attention", "the layer that mixes tokens; in cerebra and mod that of kept tokens", of=HEAVY
    )
    light: str = _f(
        "compressed", "cerebra: the layer of the light path; none: those tokens pass", of=LIGHT
    )
    width: int = _f(128, "features per token (D)", lo=8, hi=65_536)
    heads: int = _f(4, "attention heads (H)", lo=1, hi=1024)
    ffn: str = _f("gelu", "feed-forward kind", of=("gelu", "gated"))
    ffn_width: int = _f(512, "hidden features of the feed-forward layer (F)", lo=8, hi=1 << 20)
    norm: str = _f(
        "pre",
        "LayerNorm of the dense Transformer: before each part, or after it",
        of=("pre", "post"),
    )
    init_std: float = _f(
        0.02,
        "standard deviation of the initial weights; 0.125 suits a width of 64",
        lo=1e-6,
        hi=10.0,
    )
    branch: float = _f(
        1.0, "initial size of what attention and FFN add; 0: a block begins as x", lo=0.0, hi=100.0
    )
    local: int = _f(
        0,
        "tokens that a depthwise convolution beside attention sees, with earlier ones; 0: none",
        lo=0,
        hi=64,
    )
    window: int = _f(
        64, "tokens that a token of the window model sees, itself included", lo=1, hi=1 << 20
    )
    rbf_features: int = _f(32, "random frequencies of the RBF mixer, in each head", lo=1, hi=4096)
    kernel: int = _f(4, "taps of the convolutions of cnn and ssm", lo=2, hi=256)
    ssm_state: int = _f(16, "states per feature of ssm", lo=1, hi=4096)
    dropout: float = _f(0.0, "dropout rate", lo=0.0, hi=0.9)
    compat: bool = _f(
        False,
        "numerics of chiar's published code: DCT doubled, layer 1 gated with its FFN, exact GELU",
    )
    dtype: str = _f(
        "float32",
        "dtype of matmuls; softmax, norms, router and logits stay float32",
        of=("float32", "bfloat16"),
    )
    scan: bool = _f(False, "scan over layers: one layer is compiled")
    remat: str = _f(
        "off",
        "what the backward pass recomputes: nothing, elementwise work, or each layer; auto: what "
        "suits the device; False and True are off and full",
        of=("auto", "off", "dots", "full"),
    )
    attention: str = _f("auto", "attention kernel", of=("auto", "full", "blockwise", "cudnn"))
    loss_chunk: int = _f(1024, "tokens whose logits exist at once", lo=1)
    route: RouteCfg = field(default_factory=RouteCfg)
    compress: CompressCfg = field(default_factory=CompressCfg)
    kept: KeptCfg = field(default_factory=KeptCfg)


@dataclass(frozen=True)
class ObjectiveCfg:
    """Holds what compute costs in the objective."""

    lam: float = _f(
        0.0,
        "final weight of the relative cost in the objective; its start under a budget",
        lo=0.0,
        hi=1e4,
    )
    budget: float = _f(
        0.0, "executed cost to end at, as a share of the dense model's; 0: off", lo=0.0, hi=10.0
    )
    unit: str = _f(
        "flops", "what lam, budget and reported costs count", of=("flops", "bytes", "seconds")
    )
    device: str = _f(
        "", "whose seconds: cpu t4 a100 h100 h200 v5e v6e, or FLOP/s / bytes/s; empty: this one's"
    )
    dual_rate: float = _f(
        0.05, "how fast a budget's multiplier follows the missed cost, per step", lo=0.0, hi=10.0
    )
    lam_max: float = _f(1e3, "a budget's multiplier stays below this", lo=0.0, hi=1e6)
    buckets: int = _f(
        3,
        "compiled programs, each smaller, for a budget on its way or a demand that lam lowers",
        lo=1,
        hi=16,
    )
    warm: str = _f(
        "0.1 frac", "how long the penalty stays 0, or a budget's target at the dense cost"
    )
    ramp: str = _f("0.4 frac", "how long the penalty then rises, or the target falls, linearly")
    temperature: float = _f(
        1.0, "routing softness at the start, in spreads of the score", lo=0.01, hi=100.0
    )
    temperature_end: float = _f(0.5, "routing softness at the end", lo=0.01, hi=100.0)


@dataclass(frozen=True)
class TrainCfg:
    """Holds how a model is trained."""

    duration: str = _f("600 steps", "how long to train: steps or epochs")
    batch_size: int = _f(16, "windows per step, over all devices", lo=1, hi=1 << 30)
    accum: int = _f(1, "micro-batches per step", lo=1)
    lr: float = _f(2e-3, "peak learning rate", lo=0.0, hi=10.0)
    lr_end: float = _f(0.1, "final learning rate as a share of the peak", lo=0.0, hi=1.0)
    warmup: str = _f("0.05 frac", "linear warm-up")
    b1: float = _f(0.9, "AdamW beta 1", lo=0.0, hi=0.9999)
    b2: float = _f(0.95, "AdamW beta 2", lo=0.0, hi=0.99999)
    weight_decay: float = _f(0.1, "AdamW weight decay, on matrices only", lo=0.0, hi=10.0)
    clip: float = _f(1.0, "global gradient norm is clipped to this", lo=1e-6, hi=1e9)
    freeze: tuple[str, ...] = _f(
        (), "parameters that stay as they begin: names, with * for any signs: embed/*", item=str
    )
    max_skips: int = _f(
        3, "steps in a row whose loss is huge or not finite, before train.on_nonfinite", lo=0
    )
    on_nonfinite: str = _f(
        "skip",
        "skip: steps that are not finite are left out, after train.max_skips of them the run ends; "
        "rollback: it then goes on once from its last checkpoint with other batches; halt: it ends "
        "at the first",
        of=("skip", "rollback", "halt"),
    )
    devices: int = _f(0, "devices to use; 0: all", lo=0)
    log_every: str = _f("0.1 frac", "interval of a printed line")
    eval_every: str = _f("0.5 frac", "interval of a validation pass")
    checkpoint_every: str = _f("0.25 frac", "interval of a checkpoint")
    patience: int = _f(
        0, "validations in a row without a better one that end a run early; 0: never", lo=0
    )


@dataclass(frozen=True)
class SamplerCfg:
    """Holds how examples are drawn."""

    beta: float = _f(
        0.0,
        "draw examples of high loss more often, e^beta per standard deviation",
        lo=-100.0,
        hi=100.0,
    )
    gamma: float = _f(
        0.0, "draw costly examples less often, e^-gamma per dense forward pass", lo=-1e4, hi=1e4
    )
    mode: str = _f(
        "importance",
        "weigh examples so that the gradient stays unbiased, or not",
        of=("importance", "curriculum"),
    )
    floor: float = _f(0.1, "share of the draws that is uniform", lo=1e-3, hi=1.0)
    start: str = _f("0.1 frac", "when the sampler begins; before that, epochs in random order")
    decay: float = _f(
        0.5, "memory of an example's running loss and cost, per visit", lo=0.0, hi=0.9999
    )
    clip: float = _f(10.0, "largest importance weight", lo=1.0, hi=1e6)

    @property
    def on(self) -> bool:
        """Returns True where examples are not drawn alike."""
        return self.beta != 0.0 or self.gamma != 0.0


@dataclass(frozen=True)
class PruneCfg:
    """Holds what is pruned during training."""

    keep: float = _f(
        1.0,
        "share of the model's executed FLOPs to end at, by removing heads, hidden features and "
        "channels of compressed tokens; 1: nothing is removed",
        lo=1e-3,
        hi=1.0,
    )
    score: str = _f(
        "sensitivity",
        "what goes first: the least |loss change| per FLOP saved, the least |loss change|, small "
        "weights, or any",
        of=("sensitivity", "taylor", "magnitude", "random"),
    )
    start: str = _f("0.4 frac", "when the first round of pruning is")
    end: str = _f("0.8 frac", "when the last round is; checkpoints are judged after it")
    rounds: int = _f(8, "rounds, whose targets fall cubically", lo=1, hi=1000)
    tile: int = _f(
        8,
        "hidden features and channels go so many at a time, so that multiples of it are left",
        lo=1,
        hi=512,
    )
    dct: float = _f(
        0.0,
        "share of the coefficients of chiar's filters to end at zero; it saves nothing",
        lo=0.0,
        hi=1.0,
    )
    unstructured: float = _f(
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

    bits: int = _f(
        0,
        "8: linear layers multiply in int8, from quant.start on (extra quant); 0: off",
        of=(0, 8),
    )
    start: str = _f(
        "0.7 frac", "when training in 8 bits begins; 1 frac: never, the end is only rounded"
    )
    stored: bool = _f(
        False, "the weights are int8: convert sets it, and such a run is not trained further"
    )


@dataclass(frozen=True)
class RunCfg:
    """Holds a whole run."""

    seed: int = _f(0, "seeds everything", lo=0, hi=(1 << 31) - 1)
    twin: str = _f(
        "",
        "run a twin of this model: the dense Transformer of its shape, one that executes its "
        "FLOPs, or the model with a random router",
        of=("", "dense", "equal_flops", "random"),
    )
    init_from: str = _path(
        "read", "folder of a run from whose weights this one begins; empty: afresh"
    )
    task: TaskCfg = field(default_factory=TaskCfg)
    net: NetCfg = field(default_factory=NetCfg)
    objective: ObjectiveCfg = field(default_factory=ObjectiveCfg)
    train: TrainCfg = field(default_factory=TrainCfg)
    sampler: SamplerCfg = field(default_factory=SamplerCfg)
    prune: PruneCfg = field(default_factory=PruneCfg)
    quant: QuantCfg = field(default_factory=QuantCfg)
