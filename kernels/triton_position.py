"""What depends on places in a window alone: position bias, its gradient, and shift regions, as geometry.py has them."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_launch
from .geometry import Windows


@triton.jit
def bias_kernel(
    table_ptr, bias_ptr, HEADS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """(heads, keys, queries) from the table ((2h-1)*(2w-1), heads)."""
    head = tl.program_id(0)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    PLACES: tl.constexpr = HEIGHT * WIDTH
    key, query = pair // PLACES, pair % PLACES
    down = query // WIDTH - key // WIDTH + HEIGHT - 1
    across = query % WIDTH - key % WIDTH + WIDTH - 1
    valid = pair < PLACES * PLACES
    value = tl.load(table_ptr + (down * (2 * WIDTH - 1) + across) * HEADS + head, mask=valid, other=0.0)
    tl.store(bias_ptr + head * (PLACES * PLACES) + pair, value.to(tl.float32), mask=valid)


@triton.jit
def table_gradient_kernel(
    d_bias_ptr, d_table_ptr, HEADS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """A row of the table, and a head: the sum over all pairs that lie this far apart, in a fixed order."""
    row, head = tl.program_id(0), tl.program_id(1)
    PLACES: tl.constexpr = HEIGHT * WIDTH
    key = tl.arange(0, BLOCK)
    y = key // WIDTH + row // (2 * WIDTH - 1) - (HEIGHT - 1)
    x = key % WIDTH + row % (2 * WIDTH - 1) - (WIDTH - 1)
    valid = (key < PLACES) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    pair = key * PLACES + y * WIDTH + x
    part = tl.load(d_bias_ptr + head * (PLACES * PLACES) + pair, mask=valid, other=0.0)
    tl.store(d_table_ptr + row * HEADS + head, tl.sum(part, 0).to(d_table_ptr.dtype.element_ty))


@triton.jit
def regions_kernel(
    regions_ptr, height, width,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shift region of each place of a window."""
    place = tl.arange(0, BLOCK)
    across = width // WIDTH
    y = tl.program_id(0) // across * HEIGHT + place // WIDTH
    x = tl.program_id(0) % across * WIDTH + place % WIDTH
    down_region, across_region = (y >= height - HEIGHT).to(tl.int32), (x >= width - WIDTH).to(tl.int32)
    if SHIFT_H > 0:
        down_region += (y >= height - SHIFT_H).to(tl.int32)
    if SHIFT_W > 0:
        across_region += (x >= width - SHIFT_W).to(tl.int32)
    tl.store(
        regions_ptr + tl.program_id(0) * (HEIGHT * WIDTH) + place,
        down_region * 3 + across_region,
        mask=place < HEIGHT * WIDTH,
    )


def position_bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """(heads, queries, keys) float32 from the table; keys are the slower dimension in memory."""
    places, heads = window[0] * window[1], table.shape[1]
    bias = table.new_empty(heads, places, places, dtype=torch.float32)
    block = min(1024, triton.next_power_of_2(places * places))
    grid = heads, triton.cdiv(places * places, block)
    _launch(bias_kernel, grid, window, table.contiguous(), bias, HEADS=heads, BLOCK=block)
    return bias.transpose(1, 2)


def table_gradient(d_bias: Tensor, table: Tensor, window: tuple[int, int]) -> Tensor:
    """The gradient of the table from that of `position_bias`, the same bits every time."""
    d_table = torch.empty_like(table, memory_format=torch.contiguous_format)
    block = triton.next_power_of_2(window[0] * window[1])
    arguments = d_bias.float().transpose(1, 2).contiguous(), d_table
    _launch(table_gradient_kernel, tuple(table.shape), window, *arguments, HEADS=table.shape[1], BLOCK=block)
    return d_table


def shift_regions(windows: Windows, device: torch.device) -> Tensor | None:
    """(windows of an image, places) int32, or None without a shift."""
    if windows.shift == (0, 0):
        return None
    regions = torch.empty(windows.count, windows.size, dtype=torch.int32, device=device)
    constants = {"SHIFT_H": windows.shift[0], "SHIFT_W": windows.shift[1]}
    block = triton.next_power_of_2(windows.size)
    arguments = regions, windows.height, windows.width
    _launch(regions_kernel, (windows.count,), windows.window, *arguments, BLOCK=block, **constants)
    return regions


def _launch(kernel: Any, grid: tuple[int, ...], window: tuple[int, int], *arguments: Any, **constants: int) -> None:
    triton_launch.launch(kernel, grid, *arguments, HEIGHT=window[0], WIDTH=window[1], num_warps=1, **constants)
