"""The vocabulary of the code base: dimension letters, and the records that pass between layers.

Arrays carry their shape in their name, `x_BxLxD`. Letters:

    B batch   L tokens   M compressed tokens   K slots   D width   H heads   C head width
    F FFN width   V vocabulary   N rows of a data set   T targets (L, Q or 1)   S segments
    R routed layers   G character n-grams of a token

This module imports no JAX, so that a mistyped configuration is refused before JAX is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax

Batch = dict[str, Any]
"""One global or per-device batch of arrays.

`inputs_BxL` int32, `labels_BxL` int32, `w_BxL` float32 (0 = padding), `ex_B` int32: the index of
the example in the global batch, by which dropout and routing noise are keyed, so they do not depend
on the number of devices. With a pooled head labels and weights are (B, 1), the labels of a
regression float32. Further arrays, where the configuration says so:

`values_BxL` float32: each token's embedding is multiplied by it, and gets a bias of its place.
`subwords_BxLxG` int32 (net.subwords = G): rows of the token table, whose mean joins its own, or −1.
`at_BxQ` int32 (net.answers = Q): the positions asked for; labels and weights are then (B, Q).
`mask_BxL` bool, for encoders (False = padding, which no token sees); else every token is real.
`task_B` int32 (net.tasks): which of its tasks a row is of.
`needed_BxL` bool: the tokens that the answers depend on, which an oracle router keeps.
`features_BxLxN` float32 (net.features = N): instead of `inputs_BxL`."""


class Knobs(NamedTuple):
    """What the schedule sets during training: float32 scalars, so no phase change retraces."""

    lam: Any  # weight of the relative FLOP penalty
    temperature: (
        Any  # softness of the routing decision in the expected cost, in units of the score's spread
    )
    rate: Any = 1.0  # share of tokens above a running threshold, in units of net.route.rate


class Out(NamedTuple):
    """What a model computes: features and the output matrix.

    A pooled head has one row, L = 1, and V outputs. The logits of a whole batch are never formed in
    training: the loss takes them in chunks.
    """

    h: jax.Array  # (B, L, D) after the last norm
    head_VxD: jax.Array

    def logits(self) -> jax.Array:
        """Returns h · headᵀ in float32, (B, L, V)."""
        return self.h.astype("float32") @ self.head_VxD.T.astype("float32")


class LayerReport(NamedTuple):
    """What a routed layer says about its decisions; stacked over the layers, axis R comes first."""

    expected_B: jax.Array | None  # relative cost that the gradient sees; None: no decisions
    hard_B: jax.Array | None  # relative cost of the decisions taken
    stats: dict[str, jax.Array]  # name -> (B,)
    observed: dict[str, jax.Array]  # name -> (B,): what the routing state follows
    scores: dict[str, jax.Array]  # as in `Aux`, (B, L)
    losses: dict[str, jax.Array]  # name -> (B,), without their weights


class Aux(NamedTuple):
    """What a forward pass says about itself. Relative costs: 1.0 = the dense Transformer's."""

    expected_B: jax.Array  # relative FLOPs that the gradient sees, per example
    hard_B: jax.Array  # relative FLOPs of the decisions taken, per example
    stats: dict[str, jax.Array]
    """name -> (R, B), or (B,), per example; averaged over real examples, all devices."""
    observed: dict[str, jax.Array]  # name -> (R, B): what the routing state follows
    scores: dict[str, jax.Array]
    """"score" -> (R, B, L) what the routers looked at; the compiler drops it where it is unused;
    "kept", "mixed" -> bool, (R, B, L): took the heavy path, or CHIAR's RBF mixer, if any."""
    losses: dict[str, jax.Array]
    """name -> (B,) auxiliary losses with their weights in; their sum joins the objective."""


class Cost(NamedTuple):
    """Forward FLOPs of an example as Python integers; 1 MAC = 2 FLOPs. Parts: `layer_03/attention`.

    model: causal attention counted as half the square, routed parts at their ceiling (every token
    routed). executed: what the compiled program runs: static capacities, padding, the key blocks it
    really visits.
    """

    model: dict[str, int]
    executed: dict[str, int]

    @property
    def model_flops(self) -> int:
        """Returns the model's FLOPs of all parts."""
        return sum(self.model.values())

    @property
    def executed_flops(self) -> int:
        """Returns the program's FLOPs of all parts."""
        return sum(self.executed.values())


class LayerDecision(NamedTuple):
    """What decisions cost in a routed layer, relative to the dense Transformer of that shape."""

    token: float = 0.0  # a kept token
    pair: float = 0.0  # a visible pair of a kept query and a key
    mixed: float = 0.0  # a token that takes CHIAR's RBF mixer


class DecisionCost(NamedTuple):
    """What routing decisions cost in a unit, relative to the dense Transformer of the same shape.

    An example costs fixed + Σ over routed layers (token · kept tokens + pair · visible pairs of
    kept queries and keys).
    """

    fixed: float  # what no decision changes
    layers: tuple[LayerDecision, ...] = ()


class TokenCost(NamedTuple):
    """Forward FLOPs of decoding one token with a cache, exact integers; parts as in `Cost`.

    A cache has a static length, so the position of the token makes no difference. always: what
    every token costs. kept: what it adds where a router keeps it. window: what it adds where it
    ends a window of the compressor, as a share `ends` of the tokens do.
    """

    always: dict[str, int]
    kept: dict[str, int]
    window: dict[str, int]
    ends: float = 0.0

    @property
    def executed_flops(self) -> int:
        """Returns the dearest token: kept in every layer, and at the end of a window."""
        return sum(sum(parts.values()) for parts in self[:3])

    def mean(self, share: float) -> float:
        """Returns the cost on average, where `share` of the tokens are kept in each layer."""
        always, kept, window = (sum(parts.values()) for parts in self[:3])
        return always + share * kept + self.ends * window
