"""The linear layers of a Swin block as functions of tensors: buffers, tile sides and launches of linear_kernels.py."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import Windows
from . import launch
from .launch import arguments_of, exact_products, product_precision, tile_side
from .linear_kernels import (
    norm_backward_kernel,
    pack_kernel,
    projection_kernel,
    tokens_to_heads_kernel,
    weight_gradient_kernel,
)
from .position import window_constants
from .tuning import tuned

# Partial sums of weight gradients: the same number on every device, so that results do not depend on it.
WEIGHT_CHUNKS = 108


class Tile(NamedTuple):
    """What a program computes at a time."""

    rows: int
    columns: int
    num_warps: int
    side_by_side: int | None = None  # tiles of columns; for weight gradients
    max_registers: int | None = None


# By channels: up to 64, 128 and 256. Few instructions, and no spills on any target (docs/triton-tables.md).
TILES_16_BIT = {
    tokens_to_heads_kernel: (Tile(64, 32, 4), Tile(64, 64, 4), Tile(64, 64, 8)),
    projection_kernel: (Tile(64, 32, 4), Tile(64, 32, 8), Tile(64, 32, 8)),
    norm_backward_kernel: (Tile(64, 32, 4), Tile(64, 32, 8), Tile(32, 32, 8)),
    weight_gradient_kernel: (Tile(64, 128, 8, 3), Tile(64, 64, 8, 3), Tile(32, 128, 8, 1)),
}
# The same for float32: tf32 and, up to 64 channels, exact.
TILES_FLOAT32 = {
    # With tf32 at 30 channels ptxas would spill 8 bytes to have one more program run at once.
    tokens_to_heads_kernel: (Tile(64, 32, 4, max_registers=255), Tile(64, 32, 4), Tile(32, 32, 4)),
    projection_kernel: (Tile(64, 32, 4), Tile(64, 32, 8), Tile(32, 32, 8)),
    norm_backward_kernel: (Tile(64, 32, 4), Tile(64, 32, 8), Tile(32, 32, 8)),
    weight_gradient_kernel: (Tile(32, 64, 8, 1), Tile(32, 64, 4, 1), Tile(32, 32, 4, 1)),
}


class Layout(NamedTuple):
    """The geometry of windows and of heads. The dtype is that of heads, packed weights and products."""

    windows: Windows
    heads: int
    head_dim: int
    head_stride: int
    dtype: torch.dtype


class Packed(NamedTuple):
    """Weights of head columns. `transposed` holds them again where products are exact float32 (linear_kernels.py)."""

    weight: Tensor  # (parts, heads, head_stride, C)
    transposed: Tensor | None  # (C, parts, heads, head_stride)
    bias: Tensor | None = None  # (parts, heads, head_stride), float32

    def part(self, which: slice) -> "Packed":
        transposed = None if self.transposed is None else self.transposed[:, which]
        return Packed(self.weight[which], transposed, None if self.bias is None else self.bias[which])


class Tokens(NamedTuple):
    """The tokens that kernels work on: those of a compact list, or all, in window order."""

    capacity: int
    token_index: Tensor | None = None
    offsets: Tensor | None = None  # the last one is the number of tokens

    def arguments(self) -> dict[str, Any]:
        """The arguments of kernels, by name."""
        segments = 0 if self.offsets is None else len(self.offsets) - 1
        return {"token_index_ptr": self.token_index, "offsets_ptr": self.offsets, "segments": segments}


def pack_qkv(layout: Layout, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor]) -> Packed:
    """Weights of q, k, v, with LayerNorm's weight and bias folded in."""
    return _pack(layout, weight, 3, (weight.shape[1], 1), bias, *norm)


def pack_projection(layout: Layout, weight: Tensor) -> Packed:
    """Weights of the projection, transposed, and without a bias."""
    return _pack(layout, weight, 1, (1, weight.shape[1]))


def _pack(
    layout: Layout,
    weight: Tensor,
    parts: int,
    strides: tuple[int, int],
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
    column_stride, channel_stride = strides
    launch.launch(
        pack_kernel,
        (-(-columns // 16),),
        *(weight, bias, norm_weight, norm_bias),
        *(packed.weight, packed.transposed, packed.bias),
        COLUMNS=columns,
        CHANNELS=channels,
        HEAD_DIM=layout.head_dim,
        HEAD_STRIDE=layout.head_stride,
        COLUMN_STRIDE=column_stride,
        CHANNEL_STRIDE=channel_stride,
        BLOCK_N=16,
        BLOCK_C=tile_side(channels),
        num_warps=4,
    )
    return packed


def tokens_to_heads(layout: Layout, x: Tensor, tokens: Tokens, packed: Packed, scale: Tensor | None = None) -> Tensor:
    """(tokens, parts, heads, head_stride): with a bias from normalised tokens of x, else from scaled ones."""
    heads = x.new_empty(tokens.capacity, *packed.weight.shape[:3], dtype=layout.dtype)
    _run(
        tokens_to_heads_kernel,
        layout,
        x,
        tokens,
        heads,
        scale_ptr=scale,
        packed_ptr=packed.weight,
        transposed_ptr=packed.transposed,
        packed_bias_ptr=packed.bias,
        TRANSPOSED_STRIDE=0 if packed.transposed is None else packed.transposed.stride(0),
    )
    return heads


def project(
    layout: Layout, heads: Tensor, tokens: Tokens, packed: Packed, bias: Tensor, x: Tensor, scale: Tensor | None
) -> Tensor:
    """x + scale (heads W + bias); tokens that are not in the list stay as they are in x."""
    y = torch.empty_like(x) if tokens.token_index is None else x.clone()
    _run(
        projection_kernel,
        layout,
        x,
        tokens,
        heads,
        packed_ptr=packed.weight,
        bias_ptr=bias,
        scale_ptr=scale,
        out_ptr=y,
    )
    return y


def add_norm_gradient(layout: Layout, d_heads: Tensor, tokens: Tokens, packed: Packed, x: Tensor, dx: Tensor) -> None:
    """Add to the tokens of dx their gradient through `tokens_to_heads` with a bias."""
    _run(norm_backward_kernel, layout, x, tokens, d_heads, packed_ptr=packed.weight, dx_ptr=dx)


def weight_gradient(
    layout: Layout, heads: Tensor, tokens: Tokens, x: Tensor, scale: Tensor | None = None, *, norm: bool
) -> tuple[Tensor, Tensor]:
    """Float32 gradients of packed weights, (parts * heads * head_dim, C), and of a bias.

    With `norm`, where tokens of x are normalised, the bias is that of the heads, else that of the channels.
    """
    channels = x.shape[-1]
    block_rows = _tiles(weight_gradient_kernel, layout, heads, channels)["BLOCK_R"]
    chunks = max(1, min(WEIGHT_CHUNKS, -(-tokens.capacity // block_rows)))
    d_packed = x.new_empty(chunks, *heads.shape[1:], channels, dtype=torch.float32)
    d_bias = x.new_empty(chunks, *(heads.shape[1:] if norm else (channels,)), dtype=torch.float32)
    _run(
        weight_gradient_kernel,
        layout,
        x,
        tokens,
        heads,
        chunks,
        scale_ptr=scale,
        d_packed_ptr=d_packed,
        d_bias_ptr=d_bias,
        NORM=norm,
    )
    d_weight, d_bias = d_packed.sum(0), d_bias.sum(0)
    if norm:
        d_bias = d_bias[..., : layout.head_dim].flatten()
    return d_weight[:, :, : layout.head_dim].reshape(-1, channels), d_bias


def _run(
    kernel: Any, layout: Layout, x: Tensor, tokens: Tokens, heads: Tensor, chunks: int | None = None, **named: Any
) -> None:
    """Launch a kernel over the tokens, or over chunks of them and tiles of columns.

    Args:
        heads: (tokens, parts, heads, head_stride).
        named: more arguments and constants of the kernel, by name.
    """
    _, height, width, channels = x.shape
    columns = heads.shape[1:].numel()
    tiles = _tiles(kernel, layout, heads, channels)
    grid: tuple[int, ...] = (max(1, -(-tokens.capacity // tiles["BLOCK_R"])),)
    if chunks is not None:
        grid = (chunks, -(-columns // (tiles["TILES"] * tiles["BLOCK_N"])))
    named |= {"x_ptr": x, "heads_ptr": heads, "rows": tokens.capacity, "height": height, "width": width}
    launch.launch(
        kernel,
        grid,
        *arguments_of(kernel, **named, **tokens.arguments()),
        **{name: value for name, value in named.items() if name.isupper()},
        **window_constants(layout.windows),
        COLUMNS=columns,
        CHANNELS=channels,
        PRECISION=product_precision(),
        maxnreg=_tile(kernel, layout, channels).max_registers,
        **tiles,
    )


def _tile(kernel: Any, layout: Layout, channels: int) -> Tile:
    by_channels = (TILES_FLOAT32 if layout.dtype == torch.float32 else TILES_16_BIT)[kernel]
    return by_channels[0 if channels <= 64 else 1 if channels <= 128 else 2]


def _tiles(kernel: Any, layout: Layout, heads: Tensor, channels: int) -> dict[str, int]:
    """The constants that a program's size depends on."""
    tile = _tile(kernel, layout, channels)
    columns = heads.shape[1:].numel()
    rule = {"BLOCK_R": tile.rows, "BLOCK_N": tile.columns, "num_warps": tile.num_warps}
    if tile.side_by_side is not None:
        rule["TILES"] = min(tile.side_by_side, -(-columns // tile.columns))
        if rule["TILES"] == 1 < tile.side_by_side:  # the sums of one tile leave room for more programs
            rule |= {"BLOCK_R": 32, "num_warps": 4}
    return {
        "BLOCK_C": tile_side(channels),
        **tuned(kernel, rule, dtype=layout.dtype, channels=channels, columns=columns),
    }
