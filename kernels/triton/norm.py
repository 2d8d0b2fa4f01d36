"""LayerNorm of a tile of rows, in registers, for the kernels that normalise what they multiply.

A tile is (rows, BLOCK_C) in float32. BLOCK_C is a power of two >= CHANNELS; the padding columns are 0 and stay 0. A row
is read and written in one piece, so that neighbouring rows share the sectors between them. LayerNorm's weight and bias
are left to the caller, who folds them into the next product's weights: the kernel pays nothing for them.
"""

import triton
import triton.language as tl

from ..geometry import NORM_EPSILON

EPSILON = tl.constexpr(NORM_EPSILON)


@triton.jit
def row_pointers(base_ptr, row, valid, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Addresses of the rows with the given indices, (rows, BLOCK_C), and a mask of those that exist."""
    channel = tl.arange(0, BLOCK_C)
    mask = valid[:, None] & (channel < CHANNELS)[None, :]
    return base_ptr + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask


@triton.jit
def load_rows(base_ptr, row, valid, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows of a contiguous (any, CHANNELS) tensor, in float32, 0 outside."""
    pointers, mask = row_pointers(base_ptr, row, valid, CHANNELS, BLOCK_C)
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(base_ptr, row, valid, tile, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    pointers, mask = row_pointers(base_ptr, row, valid, CHANNELS, BLOCK_C)
    tl.store(pointers, tile.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def normalise(x, CHANNELS: tl.constexpr):
    """(x - mean) / deviation of each row, and 1 / deviation. Rows of zeros, as outside the tensor, stay zeros."""
    in_row = (tl.arange(0, x.shape[1]) < CHANNELS)[None, :]
    centred = tl.where(in_row, x - (tl.sum(x, 1) / CHANNELS)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / CHANNELS + EPSILON)
    return centred * scale[:, None], scale


@triton.jit
def normalise_backward(d_normed, normed, scale, CHANNELS: tl.constexpr):
    """The gradient of x from that of `normed`, given both results of `normalise`."""
    in_row = (tl.arange(0, normed.shape[1]) < CHANNELS)[None, :]
    mean = tl.sum(d_normed, 1) / CHANNELS
    along = tl.sum(d_normed * normed, 1) / CHANNELS
    return tl.where(in_row, (d_normed - mean[:, None] - normed * along[:, None]) * scale[:, None], 0.0)
