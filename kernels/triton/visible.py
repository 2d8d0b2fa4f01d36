"""The compact list of visible tokens in Triton: one pass over the mask counts, a second one writes (visible.py).

A *segment* is a window, or with masks per head one head of a window. A program takes some segments, the same ones in
both passes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry import Windows
from . import launch
from .launch import arguments_of
from .position import image_tokens, shift_region, window_constants

TOKENS_EACH = 1024  # of a program
TOTALS_EACH = 1024  # totals, one a program, that are added up at a time


@triton.jit
def load_segments(
    keep_ptr, segments, height, width, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    SEGMENTS_EACH: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """This program's segments (SEGMENTS_EACH, 1); by position: the token of the batch, if it exists, if it is kept."""
    segment = tl.program_id(0) * SEGMENTS_EACH + tl.arange(0, SEGMENTS_EACH)[:, None]
    position = tl.arange(0, BLOCK_N)[None, :]
    windows = (height // WINDOW_H) * (width // WINDOW_W)
    image, head = (segment // HEADS // windows).to(tl.int64), segment % HEADS
    token = image_tokens(segment // HEADS % windows, position, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    valid = (segment < segments) & (position < WINDOW_H * WINDOW_W)
    in_mask = (image * HEADS + head) * (height * width) + token
    keep = tl.load(keep_ptr + in_mask, mask=valid, other=0).to(tl.int32)
    return segment, image * (height * width) + token, valid, keep


@triton.jit
def count_kernel(
    keep_ptr, totals_ptr, segments, height, width, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    SEGMENTS_EACH: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The number of visible tokens of a program."""
    _, _, _, keep = load_segments(
        keep_ptr, segments, height, width, HEADS, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, SEGMENTS_EACH, BLOCK_N
    )
    tl.store(totals_ptr + tl.program_id(0), tl.sum(tl.sum(keep, 1), 0))


@triton.jit
def store_from(base_ptr, slot, value, first, valid):
    """Store the value in the slots from `first` on. Threads store four at once where all four are stored."""
    together = slot // 4 * 4 >= first
    tl.store(base_ptr + slot, value, mask=valid & together)
    tl.store(base_ptr + slot, value, mask=valid & (slot >= first) & ~together)


@triton.jit
def list_kernel(
    keep_ptr, totals_ptr, token_index_ptr, position_ptr, offsets_ptr, window_keep_ptr, regions_ptr,
    programs, segments, height, width, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    SEGMENTS_EACH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TOTALS: tl.constexpr,
):  # fmt: skip
    """The visible tokens of a program, as the entries after those of the programs before it; and the shift regions."""
    before, total = 0, 0
    for start in range(0, programs, BLOCK_TOTALS):
        other = start + tl.arange(0, BLOCK_TOTALS)
        totals = tl.load(totals_ptr + other, mask=other < programs, other=0)
        before += tl.sum(tl.where(other < tl.program_id(0), totals, 0))
        total += tl.sum(totals)

    segment, token, valid, keep = load_segments(
        keep_ptr, segments, height, width, HEADS, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, SEGMENTS_EACH, BLOCK_N
    )
    count = tl.sum(keep, 1)
    end = (before + tl.cumsum(count, 0))[:, None]  # Triton 3.6 has no sums along columns of one element
    tl.store(offsets_ptr + segment + 1, end, mask=segment < segments)
    tl.store(offsets_ptr + segment, tl.zeros_like(end), mask=segment == 0)

    position = tl.zeros_like(keep) + tl.arange(0, BLOCK_N)[None, :]
    entry = end - count[:, None] + tl.cumsum(keep, 1) - keep
    tl.store(token_index_ptr + entry, token, mask=keep != 0)
    tl.store(position_ptr + entry, position, mask=keep != 0)
    # The list has room for every token. The entries that are left hold the first position of the first window.
    slot = segment.to(tl.int64) * (WINDOW_H * WINDOW_W) + position
    store_from(token_index_ptr, slot, SHIFT_H * width + SHIFT_W, total, valid)
    store_from(position_ptr, slot, 0, total, valid)
    tl.store(window_keep_ptr + slot, keep != 0, mask=valid)

    if regions_ptr is not None:
        window = segment // HEADS
        region = shift_region(window, position, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
        in_first_image = valid & (segment % HEADS == 0) & (window < (height // WINDOW_H) * (width // WINDOW_W))
        tl.store(regions_ptr + window * (WINDOW_H * WINDOW_W) + position, region, mask=in_first_image)


def visible_tokens(
    keep: Tensor, height: int, width: int, window_height: int, window_width: int, shift_height: int, shift_width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator visible_tokens_triton: token_index, position, offsets, keep and regions (empty without a shift)."""
    windows = Windows(height, width, (window_height, window_width), (shift_height, shift_width))
    keep = keep.contiguous()
    tokens = keep.numel()
    segments = tokens // windows.size
    shifted = windows.shift != (0, 0)

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=keep.device)

    token_index, position = new(tokens, dtype=torch.int64), new(tokens, dtype=torch.int32)
    offsets, window_keep = new(segments + 1, dtype=torch.int32), new(segments, windows.size, dtype=torch.bool)
    regions = new(windows.count if shifted else 0, windows.size, dtype=torch.int32)
    block = triton.next_power_of_2(windows.size)
    segments_each = max(1, TOKENS_EACH // block)
    programs = triton.cdiv(segments, segments_each)
    named = {
        "keep_ptr": keep,
        "totals_ptr": new(programs, dtype=torch.int32),
        "token_index_ptr": token_index,
        "position_ptr": position,
        "offsets_ptr": offsets,
        "window_keep_ptr": window_keep,
        "regions_ptr": regions if shifted else None,
        "programs": programs,
        "segments": segments,
        "height": height,
        "width": width,
    }
    constants = {
        "HEADS": keep.shape[1] if keep.dim() == 3 else 1,
        **window_constants(windows),
        "SEGMENTS_EACH": segments_each,
        "BLOCK_N": block,
        "num_warps": 4,
    }
    launch.launch(count_kernel, (programs,), *arguments_of(count_kernel, **named), **constants)
    arguments = arguments_of(list_kernel, **named)
    launch.launch(list_kernel, (programs,), *arguments, **constants, BLOCK_TOTALS=TOTALS_EACH)
    return token_index, position, offsets, window_keep, regions
