"""The compact list of visible tokens in Triton: one pass over the mask counts, a second one writes (visible.py).

A *segment* is a window, or with masks per head one head of a window. A program takes some segments, in both passes the
same ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .position import image_tokens, shift_region

TOKENS_EACH = 1024  # of a program
TOTALS_EACH = 1024  # numbers of visible tokens, a program's each, that are added up at a time


@triton.jit
def load_segments(
    keep_ptr, segments, height, width, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    SEGMENTS_EACH: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """This program's segments (SEGMENTS_EACH, 1), the tokens of the batch at their places, which exist and are kept."""
    segment = tl.program_id(0) * SEGMENTS_EACH + tl.arange(0, SEGMENTS_EACH)[:, None]
    place = tl.arange(0, BLOCK_N)[None, :]
    windows = (height // WINDOW_H) * (width // WINDOW_W)
    image, head = (segment // HEADS // windows).to(tl.int64), segment % HEADS
    token = image_tokens(segment // HEADS % windows, place, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    valid = (segment < segments) & (place < WINDOW_H * WINDOW_W)
    in_mask = (image * HEADS + head) * (height * width) + token
    kept = tl.load(keep_ptr + in_mask, mask=valid, other=0).to(tl.int32)
    return segment, image * (height * width) + token, valid, kept


@triton.jit
def count_kernel(
    keep_ptr, totals_ptr, segments, height, width, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    SEGMENTS_EACH: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The number of visible tokens of a program."""
    _, _, _, kept = load_segments(
        keep_ptr, segments, height, width, HEADS, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, SEGMENTS_EACH, BLOCK_N
    )
    tl.store(totals_ptr + tl.program_id(0), tl.sum(tl.sum(kept, 1), 0))


@triton.jit
def store_from(base_ptr, slot, value, first, valid):
    """The value in the slots from `first` on. Where four go together threads store them at once."""
    together = slot // 4 * 4 >= first
    tl.store(base_ptr + slot, value, mask=valid & together)
    tl.store(base_ptr + slot, value, mask=valid & (slot >= first) & ~together)


@triton.jit
def list_kernel(
    keep_ptr, totals_ptr, index_ptr, position_ptr, offsets_ptr, window_keep_ptr, regions_ptr,
    programs, segments, height, width, HEADS: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    SEGMENTS_EACH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TOTALS: tl.constexpr,
):  # fmt: skip
    """The visible tokens of a program, in the rows behind those of the programs before it; and the shift regions."""
    before, total = 0, 0
    for start in range(0, programs, BLOCK_TOTALS):
        other = start + tl.arange(0, BLOCK_TOTALS)
        totals = tl.load(totals_ptr + other, mask=other < programs, other=0)
        before += tl.sum(tl.where(other < tl.program_id(0), totals, 0))
        total += tl.sum(totals)

    segment, token, valid, kept = load_segments(
        keep_ptr, segments, height, width, HEADS, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, SEGMENTS_EACH, BLOCK_N
    )
    count = tl.sum(kept, 1, keep_dims=True)
    end = before + tl.cumsum(count, 0)
    tl.store(offsets_ptr + segment + 1, end, mask=segment < segments)
    tl.store(offsets_ptr + segment, tl.zeros_like(end), mask=segment == 0)

    place = tl.zeros_like(kept) + tl.arange(0, BLOCK_N)[None, :]
    row = end - count + tl.cumsum(kept, 1) - kept
    tl.store(index_ptr + row, token, mask=kept != 0)
    tl.store(position_ptr + row, place, mask=kept != 0)
    # Of the rows, one for every token, those behind the list name the first place of the first window.
    slot = segment.to(tl.int64) * (WINDOW_H * WINDOW_W) + place
    store_from(index_ptr, slot, SHIFT_H * width + SHIFT_W, total, valid)
    store_from(position_ptr, slot, 0, total, valid)
    tl.store(window_keep_ptr + slot, kept != 0, mask=valid)

    if regions_ptr is not None:
        window = segment // HEADS
        region = shift_region(window, place, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
        of_first_image = valid & (segment % HEADS == 0) & (window < (height // WINDOW_H) * (width // WINDOW_W))
        tl.store(regions_ptr + window * (WINDOW_H * WINDOW_W) + place, region, mask=of_first_image)


def visible_tokens(
    keep: Tensor, height: int, width: int, window_height: int, window_width: int, shift_height: int, shift_width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator visible_tokens_triton: index, position, offsets, keep and regions (empty without a shift)."""
    keep = keep.contiguous()
    heads = keep.shape[1] if keep.dim() == 3 else 1
    size, rows = window_height * window_width, keep.numel()
    segments = rows // size

    def new(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=keep.device)

    index, position = new(rows, dtype=torch.int64), new(rows, dtype=torch.int32)
    offsets, window_keep = new(segments + 1, dtype=torch.int32), new(segments, size, dtype=torch.bool)
    shifted = shift_height > 0 or shift_width > 0
    regions = new(height * width // size if shifted else 0, size, dtype=torch.int32)
    block = triton.next_power_of_2(size)
    each = max(1, TOKENS_EACH // block)
    programs = triton.cdiv(segments, each)
    totals = new(programs, dtype=torch.int32)
    constants = {
        "HEADS": heads,
        "WINDOW_H": window_height,
        "WINDOW_W": window_width,
        "SHIFT_H": shift_height,
        "SHIFT_W": shift_width,
        "SEGMENTS_EACH": each,
        "BLOCK_N": block,
        "num_warps": 4,
    }
    launch.launch(count_kernel, (programs,), keep, totals, segments, height, width, **constants)
    outputs = (index, position, offsets, window_keep, regions if shifted else None)
    sizes = (programs, segments, height, width)
    launch.launch(list_kernel, (programs,), keep, totals, *outputs, *sizes, **constants, BLOCK_TOTALS=TOTALS_EACH)
    return index, position, offsets, window_keep, regions
