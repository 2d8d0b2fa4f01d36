"""What depends on places in a window alone: position bias, its gradient, and shift regions, as geometry.py has them."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry import Windows
from . import launch


@triton.jit
def image_tokens(
    window, place, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
):  # fmt: skip
    """`geometry.token_order`: the token of one image at a place of a window."""
    across = width // WINDOW_W
    y = window // across * WINDOW_H + place // WINDOW_W + SHIFT_H
    x = window % across * WINDOW_W + place % WINDOW_W + SHIFT_W
    return tl.where(y < height, y, y - height) * width + tl.where(x < width, x, x - width)


@triton.jit
def shift_region(
    window, place, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
):  # fmt: skip
    """`geometry.shift_regions`: the region of a place of a window of one image."""
    across, down = width // WINDOW_W, height // WINDOW_H
    # Regions differ in the last window of a row or column only: its first part lies at the image's end.
    y = tl.where(window // across == down - 1, 1 + (place // WINDOW_W >= WINDOW_H - SHIFT_H).to(tl.int32), 0)
    x = tl.where(window % across == across - 1, 1 + (place % WINDOW_W >= WINDOW_W - SHIFT_W).to(tl.int32), 0)
    return 3 * y + x


@triton.jit
def bias_kernel(
    table_ptr, bias_ptr, HEADS: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK: tl.constexpr
):
    """(heads, keys, queries) from the table ((2h-1)*(2w-1), heads)."""
    head = tl.program_id(0)
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    PLACES: tl.constexpr = WINDOW_H * WINDOW_W
    key, query = pair // PLACES, pair % PLACES
    down = query // WINDOW_W - key // WINDOW_W + WINDOW_H - 1
    across = query % WINDOW_W - key % WINDOW_W + WINDOW_W - 1
    valid = pair < PLACES * PLACES
    value = tl.load(table_ptr + (down * (2 * WINDOW_W - 1) + across) * HEADS + head, mask=valid, other=0.0)
    tl.store(bias_ptr + head * (PLACES * PLACES) + pair, value.to(tl.float32), mask=valid)


@triton.jit
def table_gradient_kernel(
    d_bias_ptr, d_table_ptr, HEADS: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK: tl.constexpr
):
    """A row of the table, and a head: the sum over all pairs that lie this far apart, in a fixed order."""
    row, head = tl.program_id(0), tl.program_id(1)
    PLACES: tl.constexpr = WINDOW_H * WINDOW_W
    key = tl.arange(0, BLOCK)
    y = key // WINDOW_W + row // (2 * WINDOW_W - 1) - (WINDOW_H - 1)
    x = key % WINDOW_W + row % (2 * WINDOW_W - 1) - (WINDOW_W - 1)
    valid = (key < PLACES) & (y >= 0) & (y < WINDOW_H) & (x >= 0) & (x < WINDOW_W)
    pair = key * PLACES + y * WINDOW_W + x
    part = tl.load(d_bias_ptr + head * (PLACES * PLACES) + pair, mask=valid, other=0.0)
    tl.store(d_table_ptr + row * HEADS + head, tl.sum(part, 0).to(d_table_ptr.dtype.element_ty))


@triton.jit
def regions_kernel(
    regions_ptr, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shift region of each place of a window."""
    window, place = tl.program_id(0), tl.arange(0, BLOCK)
    region = shift_region(window, place, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    tl.store(regions_ptr + window * (WINDOW_H * WINDOW_W) + place, region, mask=place < WINDOW_H * WINDOW_W)


def window_constants(windows: Windows) -> dict[str, int]:
    """The constants by which kernels know a geometry: WINDOW_H, WINDOW_W, SHIFT_H and SHIFT_W."""
    (window_h, window_w), (shift_h, shift_w) = windows.window, windows.shift
    return {"WINDOW_H": window_h, "WINDOW_W": window_w, "SHIFT_H": shift_h, "SHIFT_W": shift_w}


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
    launch.launch(kernel, grid, *arguments, WINDOW_H=window[0], WINDOW_W=window[1], num_warps=1, **constants)
