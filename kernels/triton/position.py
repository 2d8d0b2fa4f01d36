"""Kernels of window geometry alone: tokens, shift regions, the position bias and the gradient of its table.

The formulas are those of geometry.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry import Windows
from . import launch


@triton.jit
def image_tokens(
    window, position, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
):  # fmt: skip
    """Return the token of one image at a position of a window, as `geometry.token_order` does."""
    across = width // WINDOW_W
    y = window // across * WINDOW_H + position // WINDOW_W + SHIFT_H
    x = window % across * WINDOW_W + position % WINDOW_W + SHIFT_W
    return tl.where(y < height, y, y - height) * width + tl.where(x < width, x, x - width)


@triton.jit
def shift_region(
    window, position, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
):  # fmt: skip
    """Return the shift region of a position in a window of one image, as `geometry.shift_regions` does."""
    across, down = width // WINDOW_W, height // WINDOW_H
    # Only the last window of a row or column has several regions. Its first part lies at the image's end.
    y = tl.where(window // across == down - 1, 1 + (position // WINDOW_W >= WINDOW_H - SHIFT_H).to(tl.int32), 0)
    x = tl.where(window % across == across - 1, 1 + (position % WINDOW_W >= WINDOW_W - SHIFT_W).to(tl.int32), 0)
    return 3 * y + x


@triton.jit
def bias_kernel(
    table_ptr, bias_ptr, HEADS: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK: tl.constexpr
):
    """Write bias (heads, keys, queries) from the table ((2h-1)*(2w-1), heads)."""
    head = tl.program_id(0)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    SIZE: tl.constexpr = WINDOW_H * WINDOW_W
    key, query = pair // SIZE, pair % SIZE
    down = query // WINDOW_W - key // WINDOW_W + WINDOW_H - 1
    across = query % WINDOW_W - key % WINDOW_W + WINDOW_W - 1
    valid = pair < SIZE * SIZE
    value = tl.load(table_ptr + (down * (2 * WINDOW_W - 1) + across) * HEADS + head, mask=valid, other=0.0)
    tl.store(bias_ptr + head * (SIZE * SIZE) + pair, value.to(tl.float32), mask=valid)


@triton.jit
def table_gradient_kernel(
    d_bias_ptr, d_table_ptr, HEADS: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum the bias gradient over all pairs of one distance, for one head, in a fixed order: one entry of the table."""
    row, head = tl.program_id(0), tl.program_id(1)
    SIZE: tl.constexpr = WINDOW_H * WINDOW_W
    key = tl.arange(0, BLOCK)
    y = key // WINDOW_W + row // (2 * WINDOW_W - 1) - (WINDOW_H - 1)
    x = key % WINDOW_W + row % (2 * WINDOW_W - 1) - (WINDOW_W - 1)
    valid = (key < SIZE) & (y >= 0) & (y < WINDOW_H) & (x >= 0) & (x < WINDOW_W)
    pair = key * SIZE + y * WINDOW_W + x
    part = tl.load(d_bias_ptr + head * (SIZE * SIZE) + pair, mask=valid, other=0.0)
    tl.store(d_table_ptr + row * HEADS + head, tl.sum(part, 0).to(d_table_ptr.dtype.element_ty))


@triton.jit
def regions_kernel(
    regions_ptr, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the shift region of each position of a window."""
    window, position = tl.program_id(0), tl.arange(0, BLOCK)
    region = shift_region(window, position, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    tl.store(regions_ptr + window * (WINDOW_H * WINDOW_W) + position, region, mask=position < WINDOW_H * WINDOW_W)


def window_constants(windows: Windows) -> dict[str, int]:
    """The constants by which kernels know a geometry: WINDOW_H, WINDOW_W, SHIFT_H and SHIFT_W."""
    (window_h, window_w), (shift_h, shift_w) = windows.window, windows.shift
    return {"WINDOW_H": window_h, "WINDOW_W": window_w, "SHIFT_H": shift_h, "SHIFT_W": shift_w}


def position_bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the bias (heads, queries, keys), float32, of a table. Keys are the slower dimension in memory."""
    size, heads = window[0] * window[1], table.shape[1]
    bias = table.new_empty(heads, size, size, dtype=torch.float32)
    block = min(1024, triton.next_power_of_2(size * size))
    launch.launch(
        bias_kernel,
        (heads, triton.cdiv(size * size, block)),
        *(table.contiguous(), bias),
        HEADS=heads,
        WINDOW_H=window[0],
        WINDOW_W=window[1],
        BLOCK=block,
        num_warps=1,
    )
    return bias.transpose(1, 2)


def table_gradient(d_bias: Tensor, table: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the gradient of the table, given that of `position_bias`. Equal inputs give equal bits."""
    d_table = torch.empty_like(table, memory_format=torch.contiguous_format)
    launch.launch(
        table_gradient_kernel,
        tuple(table.shape),
        *(d_bias.float().transpose(1, 2).contiguous(), d_table),
        HEADS=table.shape[1],
        WINDOW_H=window[0],
        WINDOW_W=window[1],
        BLOCK=triton.next_power_of_2(window[0] * window[1]),
        num_warps=1,
    )
    return d_table


def shift_regions(windows: Windows, device: torch.device) -> Tensor | None:
    """Return the shift regions (windows of an image, positions), int32; None without a shift."""
    if windows.shift == (0, 0):
        return None
    regions = torch.empty(windows.count, windows.size, dtype=torch.int32, device=device)
    launch.launch(
        regions_kernel,
        (windows.count,),
        *(regions, windows.height, windows.width),
        **window_constants(windows),
        BLOCK=triton.next_power_of_2(windows.size),
        num_warps=1,
    )
    return regions
