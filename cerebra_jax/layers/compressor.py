"""The light path: L tokens become M = ceil(r L) compressed ones of width E = ceil(s D); every token attends to them.

Compressed token j covers the tokens of window j, [floor(j L / M), ceil((j + 1) L / M)), for any r and s in (0, 1].
A causal query sees it only if the whole window lies at or before the query; a learned null key, before every token,
is what the first queries see. Cerebra 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cerebra_jax.config import CompressCfg, NetCfg
from cerebra_jax.cost import prices
from cerebra_jax.kernels import attention as att
from cerebra_jax.layers import block, shapes
from cerebra_jax.layers import cache as cached

TAPS = 3  # width of the depthwise convolution of `hybrid`


class Windows(NamedTuple):
    """Static windows of L tokens: the token at each place, and whether the place is inside its window."""

    idx_MxW: np.ndarray
    inside_MxW: np.ndarray
    last_M: np.ndarray  # the last token of each window

    @property
    def tiles(self) -> bool:
        """Windows are equal and do not overlap: cutting them out is a reshape."""
        return bool(self.inside_MxW.all()) and self.idx_MxW.size == self.last_M[-1] + 1


def ceil_share(share: float, n: int) -> int:
    """ceil(share · n), at least 1; a share written in decimals means that decimal (0.07 of 100 is 7, not 8)."""
    return max(1, math.ceil(share * n - 1e-9 * n))


def windows(L: int, r: float) -> Windows:
    """The M = ceil(r L) windows of L tokens."""
    M = ceil_share(r, L)
    j_M = np.arange(M)
    first_M, last_M = j_M * L // M, -(-(j_M + 1) * L // M) - 1
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
        """Whether any window of any row ends."""
        return self.inside_BxmxW.any()


def closing(win: Windows, L: int, pos_Bxn) -> Closing:
    """Windows that end in a chunk at positions `pos_Bxn` (L: not a token) after a buffer of W − 1 tokens."""
    (M, W), n = win.idx_MxW.shape, pos_Bxn.shape[1]
    before = np.searchsorted(win.last_M, np.arange(L + n + 1))  # windows that end before a position
    most = int((before[n:] - before[: L + 1]).max())
    first_Bx1, new_Bx1 = pos_Bxn[:, :1], (pos_Bxn < L).sum(1, keepdims=True)
    j_Bxm = jnp.asarray(before)[first_Bx1] + jnp.arange(most)[None]
    at_Bxm = jnp.minimum(j_Bxm, M - 1)
    last_Bxm = jnp.asarray(win.last_M)[at_Bxm]
    ends_Bxm = (j_Bxm < M) & (last_Bxm < first_Bx1 + new_Bx1)
    place_BxmxW = jnp.asarray(win.idx_MxW)[at_Bxm] - first_Bx1[..., None] + W - 1
    inside_BxmxW = jnp.asarray(win.inside_MxW)[at_Bxm] & ends_Bxm[..., None]
    return Closing(jnp.where(ends_Bxm, j_Bxm, M), last_Bxm, place_BxmxW, inside_BxmxW, pos_Bxn < L)


def light_width(c: CompressCfg, D: int) -> int:
    """E = ceil(s D)."""
    return ceil_share(c.s, D)


def channels(net: NetCfg) -> int:
    """Features of a compressed token: E, unless some were pruned."""
    return shapes.channels(net, light_width(net.compress, net.width))


class Compressor(nn.Module):
    """(B, L, D) -> (B, M, E), which windows hold a real token (B or 1, M) bool, and the reconstruction loss (B,).

    Over the tokens t of a window that are real (inside the window and not padding):
    conv: Σ_t K_t x_t / n, a strided convolution with a mean over the n real tokens; attention: a softmax over t of a
    learned query's scores, per head, then a projection; hybrid: a depthwise convolution inside the window before that.
    Loss: mean of (x_t − decoded x_t)² over the real tokens, against the inputs as they are (no gradient into them).
    With `ends`, the windows that a chunk may end: -> (B, m, E) and the buffer of the last W − 1 tokens, `recent`.
    """

    net: NetCfg
    L: int

    @nn.compact
    def __call__(self, x_BxLxD, mask_BxL=None, ends: Closing | None = None, recent=None):
        if ends is not None:
            return self._next(x_BxLxD, ends, recent)
        win, (B, _, D) = windows(self.L, self.net.compress.r), x_BxLxD.shape
        M, W = win.idx_MxW.shape
        real = jnp.asarray(win.inside_MxW)[None]
        if mask_BxL is not None:
            real = real & mask_BxL[:, win.idx_MxW]
        x = x_BxLxD.reshape(B, M, W, D) if win.tiles else x_BxLxD[:, win.idx_MxW]
        x = jnp.where(real[..., None], x, jnp.zeros((), x.dtype))
        y_BxMxE = self._compress(x, real)
        return (
            y_BxMxE,
            real.any(-1),
            self._reconstruction(x, y_BxMxE, real) if self.net.compress.reconstruct else None,
        )

    def _next(self, x_BxnxD, ends: Closing, recent_BxWxD):
        x, recent_BxWxD = cached.slide(recent_BxWxD, x_BxnxD, ends.real_Bxn)
        B, m, W = ends.inside_BxmxW.shape
        at_BxP = jnp.clip(ends.place_BxmxW, 0, x.shape[1] - 1).reshape(B, m * W)
        x_BxmxWxD = jnp.take_along_axis(x, at_BxP[..., None], axis=1).reshape(B, m, W, x.shape[2])
        x_BxmxWxD = jnp.where(ends.inside_BxmxW[..., None], x_BxmxWxD, jnp.zeros((), x.dtype))
        part = lambda module, x: module._compress(x, ends.inside_BxmxW)  # noqa: E731
        c_BxmxE = cached.when(ends.run, part, self, x_BxmxWxD, channels(self.net))
        return c_BxmxE, recent_BxWxD

    def _compress(self, x_BxMxWxD, real_BxMxW):
        """Windows, zeros where a place is not real -> (B, M, E)."""
        c, H, x, dtype = self.net.compress, self.net.heads, x_BxMxWxD, x_BxMxWxD.dtype
        (B, M, W, D), E = x.shape, channels(self.net)
        n = real_BxMxW.sum(-1, keepdims=True).astype(jnp.float32)
        whole = (
            self.get_variable("folded", "whole") if self.has_variable("folded", "whole") else None
        )
        if c.kind == "conv":
            kernel = whole
            if kernel is None:
                kernel = self.param("kernel", block._init((W / D) ** 0.5), (W, D, E), jnp.float32)
            y = jax.lax.dot_general(x, jnp.asarray(kernel, dtype), (((2, 3), (0, 1)), ((), ())))
            return y / jnp.maximum(n, 1).astype(dtype)
        mixed = Depthwise(dtype, name="taps")(x) if c.kind == "hybrid" else x
        score = nn.Dense(H, False, jnp.float32, kernel_init=block._init(), name="query")(
            x.astype(jnp.float32)
        )
        # a window without real tokens weighs them all alike: its result is seen by no query
        score = jnp.where(real_BxMxW[..., None] | (n[..., None] == 0), score, -jnp.inf)
        p = jax.nn.softmax(score, axis=2).astype(dtype)
        pooled = jnp.einsum("bmwh,bmwhc->bmhc", p, mixed.reshape(B, M, W, H, D // H)).reshape(
            B, M, D
        )
        if whole is not None:
            return pooled @ whole.astype(dtype)
        return nn.Dense(E, False, dtype, kernel_init=block._init(D**-0.5), name="project")(pooled)

    def _reconstruction(self, x_BxMxWxD, y_BxMxE, real):
        B, M, W, D = x_BxMxWxD.shape
        decoded = nn.Dense(W * D, False, y_BxMxE.dtype, kernel_init=block._init(), name="decoder")(
            y_BxMxE
        )
        error = decoded.reshape(B, M, W, D).astype(jnp.float32) - jax.lax.stop_gradient(
            x_BxMxWxD
        ).astype(jnp.float32)
        square = jnp.where(real, jnp.square(error).mean(-1), 0.0).sum((1, 2))
        return square / jnp.maximum(real.sum((1, 2)), 1)


class Depthwise(nn.Module):
    """x + Σ_i w_i ⊙ x_{t+i−1} inside each window, zeros beyond it: (B, M, W, D), same shape.

    Multiply-adds of shifted arrays, elementwise work by the conventions; XLA's grouped convolution is 30 times slower
    on a CPU.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxMxWxD):
        W, D = x_BxMxWxD.shape[2:]
        kernel = self.param("kernel", block._init(), (TAPS, D), jnp.float32).astype(self.dtype)
        padded = jnp.pad(x_BxMxWxD, ((0, 0), (0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
        return x_BxMxWxD + sum(
            padded[:, :, i : i + W] * kernel[i][None, None, None] for i in range(TAPS)
        )


def compressor_flops(net: NetCfg, L: int) -> int:
    """Forward FLOPs per example, as executed; the decoder of the reconstruction loss runs in training only."""
    D, E = net.width, channels(net)
    M, W = windows(L, net.compress.r).idx_MxW.shape
    if net.compress.kind == "conv":
        return M * prices.conv_flops(1, W, D, E)
    # scores of every place, then a weighted sum of W features per head and feature, then the projection
    return M * (
        W * prices.linear_flops(D, net.heads)
        + prices.matmul_flops(1, W, D)
        + prices.linear_flops(D, E)
    )


def fold(net: NetCfg, params: Any) -> dict[str, Any]:
    """The collection `folded`: of fixed float weights, keys and values of the windows in one map instead of two, in
    each layer where that is no more work: W·D·2E against W·D·E + 2E² (conv), D·2E against D·E + 2E² (else)."""
    found = {}
    for name, layer in params.items():
        if not isinstance(layer, Mapping) or "compressor" not in layer:
            continue
        conv = net.compress.kind == "conv"
        first = layer["compressor"]["kernel"] if conv else layer["compressor"]["project"]["kernel"]
        second = layer["light"]["kv"]["kernel"]
        if isinstance(first, Mapping):  # int8
            continue
        stacked = name == "layers"  # by net.scan
        rows, (E, wide) = math.prod(first.shape[int(stacked) : -1]), second.shape[-2:]
        if rows * wide <= rows * E + E * wide:
            one = lambda a, b: jnp.einsum(
                "...e,ef->...f", a, b, precision=jax.lax.Precision.HIGHEST
            )  # noqa: E731
            whole = (jax.vmap(one) if stacked else one)(first, second)
            found[name] = {
                "compressor": {"whole": whole},
                "light": {"whole": jnp.ones(second.shape[:-2])},
            }
    return found


class CompressedAttention(nn.Module):
    """Every token attends to the M compressed ones and to a learned null key: (B, L, D), (B, M, E) -> (B, L, D).

    Queries, keys and values have width E; compressed tokens too, unless some of their features were pruned.
    A compressed token stands at the last position of its window: causality is
    the usual mask. `order` is what the mask compares (see `block.orders`), `seen` which windows hold a real token.
    With `ends` and the cache `kv`: of a chunk, whose windows join the cache -> ((B, n, D), the cache).
    """

    net: NetCfg
    L: int
    out_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x_BxLxD,
        c_BxMxE,
        seen,
        pos_1xL,
        order,
        ends: Closing | None = None,
        kv: cached.KV | None = None,
    ):
        net = self.net
        (B, n, _), E, H = x_BxLxD.shape, light_width(net.compress, net.width), light_heads(net)
        last = (
            jnp.asarray(windows(self.L, net.compress.r).last_M)[None]
            if ends is None
            else ends.last_Bxm
        )

        def heads(x):
            return x.reshape(B, x.shape[1], H, E // H).swapaxes(1, 2)

        def keys(module, c):
            if self.has_variable("folded", "whole"):
                return c
            return block._dense(2 * E, False, c, net.init_std, "kv")

        q = heads(block._dense(E, False, x_BxLxD, net.init_std, "q"))
        made = cached.when(None if ends is None else ends.run, keys, self, c_BxMxE, 2 * E)
        null_2xE = self.param("null", block._init(), (2, E), jnp.float32).astype(x_BxLxD.dtype)
        null = tuple(x.reshape(H, E // H) for x in null_2xE)
        k, v = (heads(x) for x in jnp.split(made, 2, axis=2))
        k = _rope(k, last)
        korder = jnp.where(seen, last if net.causal else 0, self.L)
        plan = light_plan(net, self.L)
        if ends is not None:
            kv = cached.write(kv, ends.j_Bxm, k, v, korder)
            k, v, korder = kv
            plan = cached.plan(n, korder.shape[1])
        kernel = block.masked_kernel(net, plan, H)
        o = att.attend(_rope(q, pos_1xL), k, v, order, korder, plan, kernel, null=null)
        o_BxLxE = o.swapaxes(1, 2).reshape(B, n, E)
        y_BxLxD = block._dense(net.width, False, o_BxLxE, net.init_std * self.out_scale, "out")
        return y_BxLxD if ends is None else (y_BxLxD, kv)


def _rope(x_BxHxLxC, pos):
    """RoPE; where the head width is odd, its last feature carries no position."""
    even = x_BxHxLxC.shape[-1] // 2 * 2
    turned = att.rope(x_BxHxLxC[..., :even], pos)
    return (
        turned
        if even == x_BxHxLxC.shape[-1]
        else jnp.concatenate([turned, x_BxHxLxC[..., even:]], axis=-1)
    )


def light_heads(net: NetCfg) -> int:
    """Heads of the light path: net.compress.heads, or as many of the H as divide E = ceil(s D)."""
    return net.compress.heads or math.gcd(net.heads, light_width(net.compress, net.width))


def light_plan(net: NetCfg, L: int) -> att.Plan:
    """Attention plan of all queries over the windows; causal: those that end by the segment's end."""
    last_M = windows(L, net.compress.r).last_M
    if not net.causal:
        return ((0, L, 0, len(last_M)),)
    return tuple((a, b, 0, int((last_M < b).sum())) for a, b, _, _ in att.causal_plan(L))


def light_flops(net: NetCfg, L: int) -> tuple[int, int]:
    """(model, executed) forward FLOPs per example of the compressed attention; model counts the visible pairs. What the
    null key adds is elementwise work."""
    D, E = net.width, light_width(net.compress, net.width)
    last_M = windows(L, net.compress.r).last_M
    linear = 2 * L * prices.linear_flops(D, E) + len(last_M) * prices.linear_flops(
        channels(net), 2 * E
    )
    pairs = int((L - last_M).sum()) if net.causal else L * len(last_M)
    return linear + prices.attention_pairs_flops(pairs, E), linear + att.scores_flops(
        light_plan(net, L), E
    )
