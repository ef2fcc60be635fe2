"""The keys of a model: its layers, how it routes and compresses, what pruning left. No JAX here."""

from __future__ import annotations

from dataclasses import dataclass, field

from cerebra_jax.checks import ROUTED, UNROUTED
from cerebra_jax.config.field import key
from cerebra_jax.config.mixers import HEAVY, LIGHT


@dataclass(frozen=True)
class RouteCfg:
    """Holds how tokens are routed."""

    mode: str = key(
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
    rate: float = key(
        0.25, "share of tokens that take the heavy path, in each routed layer", lo=0.0, hi=1.0
    )
    by_layer: tuple[float, ...] = key(
        (),
        "cerebra: rate, floor and ceiling of each layer in units of these keys; empty: 1",
        item=float,
    )
    by_demand: bool = key(
        False,
        "cerebra: the run moves slots to the layers whose routers want them, at no more cost: each "
        "time a budget changes the program, or once at net.route.divide_at; a layer keeps about "
        "a tenth of its even share at least",
    )
    divide_at: str = key(
        "0.25 frac", "when net.route.by_demand divides the slots of a run of one program"
    )
    k: int = key(0, "tokens that topk keeps; 0: rate of them", lo=0)
    part: str = key(
        "block", "what cerebra routes: attention, or attention and FFN", of=("attention", "block")
    )
    gate: str = key(
        "one",
        "cerebra and mod: how much of the heavy path a token takes that chance chose: all, or what "
        "a learned score says; decisions by a score have its gate",
        of=("one", "learned"),
    )
    noise: float = key(
        1.0, "Gumbel noise on the scores of topk in training, in temperatures", lo=0.0, hi=10.0
    )
    z_loss: float = key(1e-4, "weight of the mean squared router score of cerebra", lo=0.0, hi=10.0)
    floor: float = key(
        0.0,
        "least share of tokens that a threshold may come to keep; below it the penalty stops",
        lo=0.0,
        hi=1.0,
    )
    ceiling: float = key(
        1.0, "largest share of tokens that a threshold may come to keep", lo=0.0, hi=1.0
    )
    capacity: float = key(
        1.25, "slots of the compiled program per routed token expected", lo=0.01, hi=100.0
    )
    dispatch: bool = key(
        True, "gather routed tokens; False runs both branches and masks: it saves nothing"
    )
    lowering: str = key(
        "gather",
        "how dispatch moves tokens; onehot: by matrix products, for exporters without gather",
        of=("gather", "onehot"),
    )
    kv: str = key("all", "which tokens are keys and values", of=("all", "routed"))
    tau: str = key(
        "running",
        "threshold: running quantile at `rate`, calibrated on held-out text (chiar), or learned "
        "from `rate` (cerebra)",
        of=("running", "calibrated", "learned"),
    )
    score: str = key(
        "spectral",
        "what a threshold of chiar looks at: the entropy of the spectrum, of the spectrum of "
        "reordered features, or of the features",
        of=("spectral", "permuted", "raw"),
    )
    rbf: float = key(
        0.0,
        "chiar: share of tokens for a third operator, an RBF mixer between the two; 0: none",
        lo=0.0,
        hi=1.0,
    )
    collapse: float = key(
        0.0,
        "weight of the entropy of mean operator use in chiar, which is rewarded",
        lo=0.0,
        hi=1e3,
    )
    decay: float = key(0.95, "memory of the running quantile, per step", lo=0.0, hi=0.99999)
    calibrate_at: str = key(
        "0.1 frac", "when a calibrated threshold is measured again (also at step 0)"
    )
    meta: str = key(
        "prefix",
        "what the MetaRouter sees: the running mean, the batch mean (leaks), the task of a row "
        "(mixed), or nothing",
        of=("prefix", "batch", "task", "off"),
    )
    dct: str = key(
        "auto",
        "how chiar's DCT is computed; folded: as one matrix where no router sees it; auto: by "
        "device and net.width",
        of=("auto", "fft", "matmul", "folded"),
    )


@dataclass(frozen=True)
class CompressCfg:
    """Holds the light path of Cerebra: compressed tokens."""

    kind: str = key(
        "conv",
        "strided convolution, attention pooling, or both",
        of=("conv", "attention", "hybrid"),
    )
    r: float = key(0.25, "compressed tokens per token: M = ceil(r L)", lo=1e-6, hi=1.0)
    s: float = key(
        0.5,
        "width of the light path per width: ceil(s D), and of its FFN: ceil(s F)",
        lo=1e-6,
        hi=1.0,
    )
    reconstruct: float = key(
        0.0, "weight of the reconstruction loss of the compressed tokens", lo=0.0, hi=1e4
    )
    heads: int = key(
        0, "heads of the light path; 0: as many of net.heads as divide its width", lo=0, hi=1024
    )


@dataclass(frozen=True)
class KeptCfg:
    """Holds what pruning has left of each layer, a number for each.

    0, or an empty list, means all of it.

    The command `shrink` writes these lists.
    """

    heads: tuple[int, ...] = key(
        (),
        "attention heads left in each layer, of net.heads; 0: all; empty: all, everywhere",
        item=int,
    )
    ffn: tuple[int, ...] = key(
        (),
        "hidden features of the FFN left in each layer; of a routed FFN, of what all tokens take",
        item=int,
    )
    rest: tuple[int, ...] = key(
        (),
        "hidden features of a routed FFN left in each layer, of the part heavy tokens alone take",
        item=int,
    )
    channels: tuple[int, ...] = key(
        (), "features of compressed tokens left in each layer of cerebra", item=int
    )


@dataclass(frozen=True)
class NetCfg:
    """Holds the shape of a model."""

    name: str = key("chiar", "model", of=("transformer", *ROUTED, *UNROUTED))
    features: int = key(0, "numbers per token of the input; 0: token ids", lo=0, hi=1 << 20)
    outputs: int = key(
        0, "outputs of a pooled head: classes, or 1 for a regression; 0: logits per token", lo=0
    )
    subwords: int = key(
        0, "character n-grams per token at most, where a task has them; 0: none", lo=0, hi=1024
    )
    tasks: int = key(
        0, "tasks of the rows of a batch, where there are several (mixed)", lo=0, hi=1024
    )
    answers: int = key(
        0,
        "positions of an example whose logits are formed, where a task asks at some; 0: all",
        lo=0,
    )
    pool: str = key(
        "",
        "pool before the last norm, mlp before its layers; empty: mean after it",
        of=("", "mean", "max"),
    )
    pooler: bool = key(False, "a residual FFN between what net.pool pools and the outputs")
    causal: bool = key(True, "tokens see earlier tokens only; False: an encoder")
    depth: int = key(6, "layers", lo=1, hi=1000)
    heavy: str = key(
        "attention", "the layer that mixes tokens; in cerebra and mod that of kept tokens", of=HEAVY
    )
    light: str = key(
        "compressed", "cerebra: the layer of the light path; none: those tokens pass", of=LIGHT
    )
    width: int = key(128, "features per token (D)", lo=8, hi=65_536)
    heads: int = key(4, "attention heads (H)", lo=1, hi=1024)
    ffn: str = key("gelu", "feed-forward kind", of=("gelu", "gated"))
    ffn_width: int = key(512, "hidden features of the feed-forward layer (F)", lo=8, hi=1 << 20)
    norm: str = key(
        "pre",
        "LayerNorm of the dense Transformer: before each part, or after it",
        of=("pre", "post"),
    )
    init_std: float = key(
        0.02,
        "standard deviation of the initial weights; 0.125 suits a width of 64",
        lo=1e-6,
        hi=10.0,
    )
    branch: float = key(
        1.0, "initial size of what attention and FFN add; 0: a block begins as x", lo=0.0, hi=100.0
    )
    local: int = key(
        0,
        "tokens that a depthwise convolution beside attention sees, with earlier ones; 0: none",
        lo=0,
        hi=64,
    )
    window: int = key(
        64, "tokens that a token of the window model sees, itself included", lo=1, hi=1 << 20
    )
    rbf_features: int = key(32, "random frequencies of the RBF mixer, in each head", lo=1, hi=4096)
    kernel: int = key(4, "taps of the convolutions of cnn and ssm", lo=2, hi=256)
    ssm_state: int = key(16, "states per feature of ssm", lo=1, hi=4096)
    dropout: float = key(0.0, "dropout rate", lo=0.0, hi=0.9)
    compat: bool = key(
        False,
        "numerics of chiar's published code: DCT doubled, layer 1 gated with its FFN, exact GELU",
    )
    dtype: str = key(
        "float32",
        "dtype of matmuls; softmax, norms, router and logits stay float32",
        of=("float32", "bfloat16"),
    )
    scan: bool = key(False, "scan over layers: one layer is compiled")
    remat: str = key(
        "off",
        "what the backward pass recomputes: nothing, elementwise work, or each layer; auto: what "
        "suits the device; False and True are off and full",
        of=("auto", "off", "dots", "full"),
    )
    attention: str = key("auto", "attention kernel", of=("auto", "full", "blockwise", "cudnn"))
    loss_chunk: int = key(1024, "tokens whose logits exist at once", lo=1)
    route: RouteCfg = field(default_factory=RouteCfg)
    compress: CompressCfg = field(default_factory=CompressCfg)
    kept: KeptCfg = field(default_factory=KeptCfg)
