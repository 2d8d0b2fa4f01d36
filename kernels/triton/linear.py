"""The linear layers of a Swin block as functions of tensors: buffers, tile sides and launches of triton_linear.py."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import Windows
from . import launch
from .launch import exact_products, product_precision, tile_side
from .linear_kernels import (
    norm_backward_kernel,
    pack_kernel,
    projection_kernel,
    rows_to_heads_kernel,
    weight_gradient_kernel,
)
from .tuning import tuned

# Partial sums of weight gradients: the same number on every device, so that results do not depend on it.
WEIGHT_CHUNKS = 108
# Rows and columns of a tile (for weight gradients: how many tiles side by side), and warps, of kernels with up to 64,
# 128 and 256 channels: few instructions, and no spills on any target (TRITON.md). First with 16-bit products, then with
# float32 ones: tf32, and up to 64 channels exact ones, too.
TILES = {
    rows_to_heads_kernel: (((64, 32, 4), (64, 64, 4), (64, 64, 8)), ((64, 32, 4), (64, 32, 4), (32, 32, 4))),
    projection_kernel: (((64, 32, 4), (64, 32, 8), (64, 32, 8)), ((64, 32, 4), (64, 32, 8), (32, 32, 8))),
    norm_backward_kernel: (((64, 32, 4), (64, 32, 8), (32, 32, 8)), ((64, 32, 4), (64, 32, 8), (32, 32, 8))),
    weight_gradient_kernel: (
        ((64, 128, 3, 8), (64, 64, 3, 8), (32, 128, 1, 8)),
        ((32, 64, 1, 8), (32, 64, 1, 4), (32, 32, 1, 4)),
    ),
}


class Layout(NamedTuple):
    """How tokens lie in windows, and numbers in heads; the dtype is that of heads, packed weights and products."""

    windows: Windows
    heads: int
    head_dim: int
    head_stride: int
    dtype: torch.dtype


class Packed(NamedTuple):
    """Weights of head columns; where products are exact float32, `turned` holds them again, for `rows_to_heads`."""

    weight: Tensor  # (parts, heads, head_stride, C)
    turned: Tensor | None  # (C, parts, heads, head_stride)
    bias: Tensor | None = None  # (parts, heads, head_stride), float32

    def part(self, which: slice) -> "Packed":
        turned = None if self.turned is None else self.turned[:, which]
        return Packed(self.weight[which], turned, None if self.bias is None else self.bias[which])


class Rows(NamedTuple):
    """The tokens of a plan (its index and offsets), or all in window order."""

    capacity: int
    tokens: Tensor | None = None
    offsets: Tensor | None = None


def pack_qkv(layout: Layout, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor]) -> Packed:
    """With LayerNorm's weight and bias in them."""
    return _pack(layout, weight, 3, (weight.shape[1], 1), bias, *norm)


def pack_projection(layout: Layout, weight: Tensor) -> Packed:
    """Transposed, and without a bias."""
    return _pack(layout, weight, 1, (1, weight.shape[1]))


def _pack(
    layout: Layout,
    weight: Tensor,
    parts: int,
    steps: tuple[int, int],
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> Packed:
    shape, channels = (parts, layout.heads, layout.head_stride), weight.shape[1]
    packed = Packed(
        weight.new_empty(*shape, channels, dtype=layout.dtype),
        weight.new_empty(channels, *shape, dtype=layout.dtype) if exact_products(layout.dtype) else None,
        None if bias is None else weight.new_empty(shape, dtype=torch.float32),
    )
    columns = packed.weight.numel() // channels
    launch.launch(
        pack_kernel,
        (-(-columns // 16),),
        *(weight, bias, norm_weight, norm_bias, *packed),
        COLUMNS=columns,
        CHANNELS=channels,
        HEAD_DIM=layout.head_dim,
        HEAD_STRIDE=layout.head_stride,
        COLUMN_STEP=steps[0],
        CHANNEL_STEP=steps[1],
        BLOCK_N=16,
        BLOCK_C=tile_side(channels),
        num_warps=4,
    )
    return packed


def rows_to_heads(layout: Layout, x: Tensor, rows: Rows, packed: Packed, scale: Tensor | None = None) -> Tensor:
    """(rows, parts, heads, head_stride): with a bias from normalised rows of x, else from scaled ones."""
    heads = x.new_empty(rows.capacity, *packed.weight.shape[:3], dtype=layout.dtype)
    pointers = x, scale, *packed, rows.tokens, rows.offsets, heads
    step = 0 if packed.turned is None else packed.turned.stride(0)
    _run(rows_to_heads_kernel, layout, x, rows, heads.shape[1], pointers, TURNED_STEP=step)
    return heads


def project(
    layout: Layout, heads: Tensor, rows: Rows, packed: Packed, bias: Tensor, x: Tensor, scale: Tensor | None
) -> Tensor:
    """x + scale (heads W + bias); tokens that are no rows stay as they are in x."""
    y = torch.empty_like(x) if rows.tokens is None else x.clone()
    pointers = heads, packed.weight, bias, x, scale, rows.tokens, rows.offsets, y
    _run(projection_kernel, layout, x, rows, heads.shape[1], pointers)
    return y


def add_norm_gradient(layout: Layout, d_heads: Tensor, rows: Rows, packed: Packed, x: Tensor, dx: Tensor) -> None:
    """Add to rows of dx what comes back through `rows_to_heads` with a bias."""
    pointers = d_heads, packed.weight, x, rows.tokens, rows.offsets, dx
    _run(norm_backward_kernel, layout, x, rows, d_heads.shape[1], pointers)


def weight_gradient(
    layout: Layout, heads: Tensor, rows: Rows, x: Tensor, scale: Tensor | None = None, *, norm: bool
) -> tuple[Tensor, Tensor]:
    """Float32 gradients of packed weights, (parts * heads * head_dim, C), and of a bias.

    Of that of the heads where rows of x are normalised, else of that of the channels.
    """
    channels, parts = x.shape[-1], heads.shape[1]
    tiles = _tiles(weight_gradient_kernel, layout, parts, channels)
    chunks = max(1, min(WEIGHT_CHUNKS, -(-rows.capacity // tiles["BLOCK_R"])))
    d_packed = x.new_empty(chunks, *heads.shape[1:], channels, dtype=torch.float32)
    d_bias = x.new_empty(chunks, *(heads.shape[1:] if norm else (channels,)), dtype=torch.float32)
    pointers = heads, x, scale, rows.tokens, rows.offsets, d_packed, d_bias
    _run(weight_gradient_kernel, layout, x, rows, parts, pointers, chunks, NORM=norm)
    d_weight, d_bias = d_packed.sum(0), d_bias.sum(0)
    if norm:
        d_bias = d_bias[..., : layout.head_dim].flatten()
    return d_weight[:, :, : layout.head_dim].reshape(-1, channels), d_bias


def _run(
    kernel: Any,
    layout: Layout,
    x: Tensor,
    rows: Rows,
    parts: int,
    pointers: tuple[Tensor | None, ...],
    chunks: int = 0,
    **more: Any,
) -> None:
    """Launch a kernel over the rows, or over chunks of them and tiles of columns."""
    _, height, width, channels = x.shape
    columns = parts * layout.heads * layout.head_stride
    tiles = _tiles(kernel, layout, parts, channels)
    grid: tuple[int, ...] = (max(1, -(-rows.capacity // tiles["BLOCK_R"])),)
    if chunks:
        grid = (chunks, -(-columns // (tiles["TILES"] * tiles["BLOCK_N"])))
    # With tf32 at 30 channels ptxas would spill 8 bytes to have one more program run at once.
    limited = kernel is rows_to_heads_kernel and channels <= 64
    limited = limited and layout.dtype == torch.float32 and not exact_products(layout.dtype)
    launch.launch(
        kernel,
        grid,
        *pointers,
        *(rows.capacity, 0 if rows.offsets is None else len(rows.offsets) - 1, height, width),
        WINDOW_H=layout.windows.window[0],
        WINDOW_W=layout.windows.window[1],
        SHIFT_H=layout.windows.shift[0],
        SHIFT_W=layout.windows.shift[1],
        COLUMNS=columns,
        CHANNELS=channels,
        PRECISION=product_precision(),
        maxnreg=255 if limited else None,
        **tiles,
        **more,
    )


def _tiles(kernel: Any, layout: Layout, parts: int, channels: int) -> dict[str, int]:
    block_c = tile_side(channels)
    size = 0 if block_c <= 64 else 1 if block_c <= 128 else 2
    rows, side, *more, warps = TILES[kernel][layout.dtype == torch.float32][size]
    columns = parts * layout.heads * layout.head_stride
    tiles = {"BLOCK_R": rows, "BLOCK_N": side, "num_warps": warps}
    if more:
        tiles["TILES"] = min(more[0], -(-columns // side))
        if tiles["TILES"] == 1 < more[0]:  # the sums of one tile leave room for more programs
            tiles |= {"BLOCK_R": 32, "num_warps": 4}
    return {"BLOCK_C": block_c, **tuned(kernel, tiles, dtype=layout.dtype, channels=channels, columns=columns)}
