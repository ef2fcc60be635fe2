"""The light path: L tokens become M = ceil(r L) compressed ones of width E = ceil(s D).

Every token attends to them. Compressed token j covers the tokens of window j,
[floor(j L / M), ceil((j + 1) L / M)), for any r and s in (0, 1]. A causal query sees it only if the
whole window lies at or before the query; a learned null key, before every token, is what the first
queries see. Cerebra 3.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.kernels import attention as kernels
from cerebra_jax.kernels.fused_attention import WINDOWS_A_ROW, fused_kernel, is_windowed
from cerebra_jax.layers import cache as cached
from cerebra_jax.layers.attention import masked_blocks
from cerebra_jax.layers.linear import as_matrix, normal
from cerebra_jax.layers.parameters import Dense, Module
from cerebra_jax.layers.prunable import Group, Member
from cerebra_jax.layers.rows import Rows, block_layout

TAPS = 3  # width of the depthwise convolution of `hybrid`


class Windows(NamedTuple):
    """Static windows of L tokens: the token at each place, and whether it is inside its window."""

    idx_MxW: np.ndarray
    inside_MxW: np.ndarray
    last_M: np.ndarray  # the last token of each window

    @property
    def tiles(self) -> bool:
        """Returns whether windows are equal and do not overlap: cutting them is a reshape."""
        return bool(self.inside_MxW.all()) and self.idx_MxW.size == self.last_M[-1] + 1


def ceil_share(share: float, n: int) -> int:
    """Returns ceil(share · n), at least 1; a decimal means itself (0.07 of 100 is 7, not 8)."""
    return max(1, math.ceil(share * n - 1e-9 * n))


def windows(L: int, r: float) -> Windows:
    """Returns the M = ceil(r L) windows of L tokens."""
    M = ceil_share(r, L)
    j_M = np.arange(M)
    first_M = j_M * L // M
    last_M = -(-(j_M + 1) * L // M) - 1
    place_MxW = first_M[:, None] + np.arange((last_M - first_M).max() + 1)[None]
    return Windows(np.minimum(place_MxW, L - 1), place_MxW <= last_M[:, None], last_M)


class Closing(NamedTuple):
    """The windows that a chunk of tokens may end, m of them, for each row."""

    j_Bxm: jax.Array  # number of the window, M where the chunk does not end it
    last_Bxm: jax.Array  # its last token
    place_BxmxW: jax.Array  # its tokens, counted from the first one of the window buffer
    inside_BxmxW: jax.Array
    real_Bxn: jax.Array  # which tokens of the chunk are real

    @property
    def run(self) -> jax.Array:
        """Returns whether any window of any row ends."""
        return self.inside_BxmxW.any()


def closing(win: Windows, L: int, pos_Bxn) -> Closing:
    """Returns the windows that end in a chunk at positions `pos_Bxn` (L: not a token).

    The chunk follows a buffer of W − 1 tokens.
    """
    (M, W), n = win.idx_MxW.shape, pos_Bxn.shape[1]
    before = np.searchsorted(win.last_M, np.arange(L + n + 1))  # windows that end before a position
    most = int((before[n:] - before[: L + 1]).max())
    first_Bx1 = pos_Bxn[:, :1]
    new_Bx1 = (pos_Bxn < L).sum(1, keepdims=True)

    # which of the next windows end inside the chunk
    j_Bxm = jnp.asarray(before)[first_Bx1] + jnp.arange(most)[None]
    at_Bxm = jnp.minimum(j_Bxm, M - 1)
    last_Bxm = jnp.asarray(win.last_M)[at_Bxm]
    ends_Bxm = (j_Bxm < M) & (last_Bxm < first_Bx1 + new_Bx1)

    # where their tokens stand in the buffer and the chunk
    place_BxmxW = jnp.asarray(win.idx_MxW)[at_Bxm] - first_Bx1[..., None] + W - 1
    inside_BxmxW = jnp.asarray(win.inside_MxW)[at_Bxm] & ends_Bxm[..., None]
    return Closing(jnp.where(ends_Bxm, j_Bxm, M), last_Bxm, place_BxmxW, inside_BxmxW, pos_Bxn < L)


class Compressor(Module):
    """Compresses windows of tokens: (B, L, D) -> ((B, M, E), which windows hold a token, loss).

    Over the tokens t of a window that are real (inside the window and not padding):
    conv: Σ_t K_t x_t / n, a strided convolution with a mean over the n real tokens; attention: a
    softmax over t of a learned query's scores, per head, then a projection; hybrid: a depthwise
    convolution inside the window before that. The second result is (B or 1, M) bool. The third is
    None, or with `reconstruct` the mean of (x_t − decoded x_t)² over the real tokens, (B,), against
    the inputs as they are (no gradient into them).
    """

    length: int  # L
    share: float  # r
    channels: int  # E, unless some were pruned
    heads: int
    kind: str = "conv"
    reconstruct: bool = False

    @nn.compact
    def __call__(
        self, x_BxLxD, mask_BxL=None, ends: Closing | None = None, recent=None
    ) -> tuple[Any, ...]:  # Any: a module has one compact method, and `decode` has other results
        if ends is not None:
            return self._next(x_BxLxD, ends, recent)
        win, (B, _, D) = windows(self.length, self.share), x_BxLxD.shape
        M, W = win.idx_MxW.shape
        real = jnp.asarray(win.inside_MxW)[None]
        if mask_BxL is not None:
            real = real & mask_BxL[:, win.idx_MxW]
        x = x_BxLxD.reshape(B, M, W, D) if win.tiles else x_BxLxD[:, win.idx_MxW]
        if not win.tiles or mask_BxL is not None:  # else every place holds a real token
            x = jnp.where(real[..., None], x, jnp.zeros((), x.dtype))
        y_BxMxE = self._compress(x, real)
        lost_B = self._reconstruction(x, y_BxMxE, real) if self.reconstruct else None
        return y_BxMxE, real.any(-1), lost_B

    def decode(self, x_BxnxD, ends: Closing, recent_BxWxD):
        """Returns the windows that a chunk may end, (B, m, E), and the last W − 1 tokens."""
        return self(x_BxnxD, None, ends, recent_BxWxD)

    def init_cache(self, batch: int, width: int, dtype: str):
        """Returns the W − 1 tokens before the first one: zeros."""
        W = windows(self.length, self.share).idx_MxW.shape[1]
        return jnp.zeros((batch, W - 1, width), dtype)

    def prunable(self, place: str, layer: int, readers: tuple[str, ...]) -> list[Group]:
        """Returns its channels, which pruning may remove; `readers`: matrices that read them."""
        if self.kind == "conv":
            made = Member(f"{place}/kernel", 2)
        else:
            made = Member(f"{place}/project/kernel", 1)
        read = [Member(name, 0) for name in readers]
        if self.reconstruct:
            read.append(Member(f"{place}/decoder/kernel", 0))
        return [Group(made.name, layer, "channels", self.channels, (made, *read))]

    def _next(self, x_BxnxD, ends: Closing, recent_BxWxD):
        x, recent_BxWxD = cached.slide(recent_BxWxD, x_BxnxD, ends.real_Bxn)
        B, m, W = ends.inside_BxmxW.shape
        at_BxP = jnp.clip(ends.place_BxmxW, 0, x.shape[1] - 1).reshape(B, m * W)
        x_BxmxWxD = jnp.take_along_axis(x, at_BxP[..., None], axis=1)
        x_BxmxWxD = x_BxmxWxD.reshape(B, m, W, x.shape[2])
        x_BxmxWxD = jnp.where(ends.inside_BxmxW[..., None], x_BxmxWxD, jnp.zeros((), x.dtype))

        def compress(layer, x):
            return layer._compress(x, ends.inside_BxmxW)

        c_BxmxE = cached.when(ends.run, compress, self, x_BxmxWxD, self.channels)
        return c_BxmxE, recent_BxWxD

    def _compress(self, x_BxMxWxD, real_BxMxW):
        """Returns the compressed windows, (B, M, E), of windows with zeros where none is real."""
        n_BxMx1 = real_BxMxW.sum(-1, keepdims=True).astype(jnp.float32)
        has_whole = self.has_variable("folded", "whole")
        whole = self.get_variable("folded", "whole") if has_whole else None
        if self.kind == "conv":
            return self._convolved(x_BxMxWxD, n_BxMx1, whole)
        return self._pooled(x_BxMxWxD, real_BxMxW, n_BxMx1, whole)

    def _convolved(self, x, n_BxMx1, whole):
        W, D = x.shape[2:]
        kernel = whole
        if kernel is None:
            init = normal((W / D) ** 0.5)
            kernel = self.param("kernel", init, (W, D, self.channels), jnp.float32)
        kernel = jnp.asarray(kernel, x.dtype)
        y_BxMxE = jax.lax.dot_general(x, kernel, (((2, 3), (0, 1)), ((), ())))
        return y_BxMxE / jnp.maximum(n_BxMx1, 1).astype(x.dtype)

    def _pooled(self, x, real_BxMxW, n_BxMx1, whole):
        (B, M, W, D), H = x.shape, self.heads
        mixed = Depthwise(x.dtype, name="taps")(x) if self.kind == "hybrid" else x
        query = Dense(H, False, jnp.float32, kernel_init=normal(), name="query")
        score = query(x.astype(jnp.float32))
        # a window without real tokens weighs them all alike: its result is seen by no query
        score = jnp.where(real_BxMxW[..., None] | (n_BxMx1[..., None] == 0), score, -jnp.inf)
        p = jax.nn.softmax(score, axis=2).astype(x.dtype)
        per_head = mixed.reshape(B, M, W, H, D // H)
        pooled = jnp.einsum("bmwh,bmwhc->bmhc", p, per_head).reshape(B, M, D)
        if whole is not None:
            return pooled @ whole.astype(x.dtype)
        init = normal(D**-0.5)
        return Dense(self.channels, False, x.dtype, kernel_init=init, name="project")(pooled)

    def _reconstruction(self, x_BxMxWxD, y_BxMxE, real):
        B, M, W, D = x_BxMxWxD.shape
        decoder = Dense(W * D, False, y_BxMxE.dtype, kernel_init=normal(), name="decoder")
        decoded = decoder(y_BxMxE).reshape(B, M, W, D).astype(jnp.float32)
        error = decoded - jax.lax.stop_gradient(x_BxMxWxD).astype(jnp.float32)
        square = jnp.where(real, jnp.square(error).mean(-1), 0.0).sum((1, 2))
        return square / jnp.maximum(real.sum((1, 2)), 1)


class Depthwise(Module):
    """Computes x + Σ_i w_i ⊙ x_{t+i−1} inside each window, zeros beyond it: (B, M, W, D) -> same.

    Multiply-adds of shifted arrays, elementwise work by the conventions; XLA's grouped convolution
    is 30 times slower on a CPU.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxMxWxD):
        W, D = x_BxMxWxD.shape[2:]
        kernel = self.param("kernel", normal(), (TAPS, D), jnp.float32).astype(self.dtype)
        side = (TAPS // 2, TAPS // 2)
        padded = jnp.pad(x_BxMxWxD, ((0, 0), (0, 0), side, (0, 0)))
        taps = [padded[:, :, i : i + W] * kernel[i][None, None, None] for i in range(TAPS)]
        return x_BxMxWxD + sum(taps)


class CompressedAttention(Module):
    """Attends from every token to the compressed ones and a learned null key: (B, L, D) -> same.

    Queries, keys and values have width E = `inner`; compressed tokens too, unless some of their
    features were pruned. A compressed token stands at the last position of its window, so causality
    is the usual mask.
    """

    width: int
    inner: int
    heads: int
    dtype: str = "float32"
    std: float = 0.02
    out_scale: float = 1.0
    kernel: str = "auto"
    head_share: float = 1.0  # heads, as a share of those of the heavy path
    platform: str = "cpu"

    pairwise = True
    step = 1

    def setup(self):
        self.q = self._linear(self.inner, self.std)
        self.kv = self._linear(2 * self.inner, self.std)
        self.null = self.param("null", normal(), (2, self.inner), jnp.float32)
        self.out = self._linear(self.width, self.std * self.out_scale)

    def _linear(self, width: int, std: float) -> Dense:
        return Dense(width, False, jnp.dtype(self.dtype), kernel_init=normal(std))

    def __call__(self, queries: Rows, keys: Rows) -> jax.Array:
        k, v = self._split(self._keys(keys.x), keys.pos)
        memory = kernels.Keys(k, v, keys.rank)
        return self._look(queries, memory, self.blocks(queries, keys))

    def decode(self, rows: Rows, kv: cached.KV, windows: Rows, ends: Closing):
        """Returns the result for a chunk whose windows join the cache, and the cache."""

        def make(layer, c):
            return layer._keys(c)

        made = cached.when(ends.run, make, self, windows.x, 2 * self.inner)
        k, v = self._split(made, windows.pos)
        kv = cached.write(kv, ends.j_Bxm, k, v, windows.rank)
        layout = cached.layout(rows.count, kv.order_BxN.shape[1])
        blocks = masked_blocks(self.kernel, layout, self.platform, self.head_share)
        return self._look(rows, kernels.Keys(*kv), blocks), kv

    def init_cache(self, batch: int, slots: int, length: int) -> cached.KV:
        """Returns an empty memory of that many windows for each row."""
        sizes = (batch, self.heads, slots, self.inner // self.heads)
        return cached.empty_kv(*sizes, self.dtype, length)

    def blocks(self, queries: Rows, keys: Rows) -> kernels.Blocks:
        """Returns which scores are computed, and by which kernel."""
        layout = block_layout(queries, keys)
        head_width = self.inner // self.heads
        rows = keys.count // WINDOWS_A_ROW
        kernel = fused_kernel(self.kernel, self.dtype, head_width, self.platform, rows)
        if kernel and not queries.causal:
            return kernels.Blocks(layout, kernel, form="all", padding=keys.padding)
        if kernel and queries.plain and is_windowed(queries.count, keys.count):
            return kernels.Blocks(layout, kernel, form="windows")
        return masked_blocks(self.kernel, layout, self.platform, self.head_share)

    def _look(self, queries: Rows, memory: kernels.Keys, blocks: kernels.Blocks):
        B, n, _ = queries.x.shape
        q = _rope(self._heads(as_matrix(self.q, queries.x)), queries.pos)
        null_2xE = self.null.astype(queries.x.dtype)
        null = tuple(x.reshape(self.heads, self.inner // self.heads) for x in null_2xE)
        o = kernels.attend_blocks(kernels.Queries(q, queries.rank), memory, blocks, null)
        return as_matrix(self.out, o.swapaxes(1, 2).reshape(B, n, self.inner))

    def _keys(self, c_BxMxE):
        # `folded` maps windows to keys and values already: see `fold`
        if self.has_variable("folded", "whole"):
            return c_BxMxE
        return as_matrix(self.kv, c_BxMxE)

    def _heads(self, x_BxnxE):
        B, n, _ = x_BxnxE.shape
        return x_BxnxE.reshape(B, n, self.heads, self.inner // self.heads).swapaxes(1, 2)

    def _split(self, kv_BxMx2E, pos):
        k, v = (self._heads(x) for x in jnp.split(kv_BxMx2E, 2, axis=2))
        return _rope(k, pos), v


def _rope(x_BxHxLxC, pos):
    """Returns x with rotary embeddings; an odd head width's last feature carries no position."""
    even = x_BxHxLxC.shape[-1] // 2 * 2
    rotated = kernels.rope(x_BxHxLxC[..., :even], pos)
    if even == x_BxHxLxC.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x_BxHxLxC[..., even:]], axis=-1)


class LightMemory(NamedTuple):
    """What the light path remembers while decoding."""

    kv: cached.KV
    recent: jax.Array  # (B, W - 1, D), the tokens of the window that has not ended


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Cerebra's light path: compresses the tokens, then attends to the result.

    A pair of modules of the caller, whose parameters stand beside each other.
    """

    compress: Compressor
    attend: CompressedAttention
    causal: bool = True

    def __call__(self, queries: Rows, keys: Rows) -> jax.Array:
        return self.with_loss(queries, keys)[0]

    def with_loss(self, queries: Rows, keys: Rows):
        """Returns the result, and the reconstruction loss (B,) or None."""
        c_BxMxE, seen, lost_B = self.compress(keys.x, keys.mask)
        return self.attend(queries, self.window_rows(keys, c_BxMxE, seen)), lost_B

    def window_rows(self, tokens: Rows, c_BxMxE, seen) -> Rows:
        """Returns the windows as keys: each stands at its last token."""
        last_M = windows(tokens.length, self.compress.share).last_M
        last_1xM = jnp.asarray(last_M)[None]
        rank = jnp.where(seen, last_1xM if self.causal else 0, tokens.length)
        segments = window_segments(tokens.segments, last_M, self.causal)
        mask_BxM = None if tokens.mask is None else seen
        return Rows(c_BxMxE, last_1xM, rank, tokens.length, segments, mask_BxM, causal=self.causal)

    def decode(self, tokens: Rows, memory: LightMemory, place=None):
        """Returns the result for a chunk of tokens, and the memory after it."""
        win = windows(tokens.length, self.compress.share)
        ends = closing(win, tokens.length, tokens.pos)
        c_BxmxE, recent = self.compress.decode(tokens.x, ends, memory.recent)
        rank = jnp.where(ends.j_Bxm < len(win.last_M), ends.last_Bxm, tokens.length)
        closed = Rows(c_BxmxE, ends.last_Bxm, rank, tokens.length, ())
        y_BxnxD, kv = self.attend.decode(tokens, memory.kv, closed, ends)
        return y_BxnxD, LightMemory(kv, recent)

    def init_cache(self, batch: int, slots: int, length: int) -> LightMemory:
        """Returns the memory of rows that have read nothing."""
        M = len(windows(length, self.compress.share).last_M)
        kv = self.attend.init_cache(batch, M, length)
        recent = self.compress.init_cache(batch, self.attend.width, self.attend.dtype)
        return LightMemory(kv, recent)


def window_segments(segments, last_M: np.ndarray, causal: bool):
    """Returns ranges of windows: to the end of each token segment, those that end by then."""
    if not causal:
        return ((0, len(last_M)),)
    ends = [int((last_M < end).sum()) for _, end in segments]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def visible_pairs(length: int, share: float, causal: bool) -> int:
    """Returns how many (token, window) pairs see each other."""
    last_M = windows(length, share).last_M
    return int((length - last_M).sum()) if causal else length * len(last_M)


def fold(kind: str, params: Any) -> dict[str, Any]:
    """Returns the collection `folded`: keys and values of the windows in one map instead of two.

    Of fixed float weights, in each layer where that is no more work: W·D·2E against
    W·D·E + 2E² (conv), D·2E against D·E + 2E² (else).
    """
    found = {}
    for name, layer in params.items():
        if not isinstance(layer, Mapping) or "compressor" not in layer:
            continue
        maker = layer["compressor"] if kind == "conv" else layer["compressor"]["project"]
        first, second = maker["kernel"], layer["light"]["kv"]["kernel"]
        if isinstance(first, Mapping):  # int8
            continue
        stacked = name == "layers"  # by net.scan
        rows = math.prod(first.shape[int(stacked) : -1])
        E, wide = second.shape[-2:]
        if rows * wide <= rows * E + E * wide:
            make = jax.vmap(_product) if stacked else _product
            one = {"whole": jnp.ones(second.shape[:-2])}
            found[name] = {"compressor": {"whole": make(first, second)}, "light": one}
    return found


def _product(a, b):
    return jnp.einsum("...e,ef->...f", a, b, precision=jax.lax.Precision.HIGHEST)
