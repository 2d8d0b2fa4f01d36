"""Random masks and words in Triton: the bits of philox.py, from a seed and a draw number read on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry import Windows
from . import launch
from .launch import arguments_of
from .position import image_tokens, window_constants

TOKENS_EACH = 1024  # of one image, drawn by a program


@triton.jit
def counter_words(index, sample, draw, head, seed):
    """The four words of Philox-4x32-10 for each index, uint32; sample, draw and head count modulo 2^32."""
    index = index.to(tl.uint32)
    zero = tl.zeros_like(index)
    sample, draw, head = zero + sample.to(tl.uint32), zero + draw.to(tl.uint32), zero + head.to(tl.uint32)
    return tl.philox(seed, index, sample, draw, head)


@triton.jit
def first_word(index, sample, draw, head, seed):
    return counter_words(index, sample, draw, head, seed)[0]


@triton.jit
def load_percent(percent_ptr, image, head, sample_stride, head_stride):
    """The percentage of an image and head, int64, clamped to [0, 100]."""
    percent = tl.load(percent_ptr + image * sample_stride + head * head_stride)
    return tl.minimum(tl.maximum(percent, 0), 100)


@triton.jit
def words_kernel(
    seed_ptr, draw_ptr, sample_ptr, words_ptr, first, count, first_head, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """The words of some indices, from `first` on, for one image and head."""
    row = tl.program_id(0)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample, head = tl.load(sample_ptr + row // HEADS), first_head + row % HEADS
    word = first_word(first + number, sample, tl.load(draw_ptr), head, tl.load(seed_ptr))
    tl.store(words_ptr + row.to(tl.int64) * count + number, word.to(tl.int64), mask=number < count)


@triton.jit
def mask_kernel(
    seed_ptr, draw_ptr, sample_ptr, percent_ptr, mask_ptr, sample_stride, head_stride, tokens,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some tokens of one image and head: masked where the word is below floor(percent * 2^32 / 100)."""
    row = tl.program_id(0)
    image, head = row // HEADS, row % HEADS
    seed, draw, sample = tl.load(seed_ptr), tl.load(draw_ptr), tl.load(sample_ptr + image)
    percent = load_percent(percent_ptr, image, head, sample_stride, head_stride)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    masked = first_word(token, sample, draw, head, seed).to(tl.int64) < (percent << 32) // 100
    tl.store(mask_ptr + row.to(tl.int64) * tokens + token, masked, mask=token < tokens)


@triton.jit
def exact_mask_kernel(
    seed_ptr, draw_ptr, sample_ptr, percent_ptr, mask_ptr, sample_stride, head_stride, windows, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    HEADS: tl.constexpr, WINDOWS_EACH: tl.constexpr, BLOCK_N: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Some windows of one image and head: masked are the tokens with the smallest words, ties by position.

    Word and position make a key of BITS - 1 bits. The kernel finds the upper bound of the masked keys bit by bit.
    """
    SIZE: tl.constexpr = WINDOW_H * WINDOW_W
    row = tl.program_id(1)
    image, head = row // HEADS, row % HEADS
    seed, draw, sample = tl.load(seed_ptr), tl.load(draw_ptr), tl.load(sample_ptr + image)
    percent = load_percent(percent_ptr, image, head, sample_stride, head_stride)
    masked_count = ((percent * SIZE + 50) // 100).to(tl.int32)
    window = tl.program_id(0) * WINDOWS_EACH + tl.arange(0, WINDOWS_EACH)[:, None]
    position = tl.arange(0, BLOCK_N)[None, :]
    valid = (window < windows) & (position < SIZE)
    token = image_tokens(window, position, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    key = first_word(token, sample, draw, head, seed).to(tl.int64) * BLOCK_N + position
    bound = tl.zeros((WINDOWS_EACH,), tl.int64)
    for bit in range(BITS):
        raised = bound + (tl.full((), 1, tl.int64) << (BITS - 1 - bit))
        below = tl.sum((valid & (key < raised[:, None])).to(tl.int32), 1)
        bound = tl.where(below <= masked_count, raised, bound)
    tl.store(mask_ptr + row.to(tl.int64) * (height * width) + token, key < bound[:, None], mask=valid)


def _signed(word: int) -> int:
    """A number modulo 2^32, as the int32 of the same bits: Triton would compile larger ones as int64."""
    return (word + 2**31) % 2**32 - 2**31


def random_words(
    seed: Tensor, draw: Tensor, sample: Tensor, first: int, count: int, first_head: int, heads: int
) -> Tensor:
    """The operator random_words_triton."""
    words = torch.empty(len(sample), heads, count, dtype=torch.int64, device=sample.device)
    if words.numel():
        launch.launch(
            words_kernel,
            (len(sample) * heads, triton.cdiv(count, TOKENS_EACH)),
            *(seed, draw, sample.contiguous(), words, _signed(first), count, _signed(first_head)),
            HEADS=heads,
            BLOCK=TOKENS_EACH,
            num_warps=4,
        )
    return words


def token_mask(
    seed: Tensor,
    draw: Tensor,
    sample: Tensor,
    percent: Tensor,
    height: int,
    width: int,
    window_height: int,
    window_width: int,
    shift_height: int,
    shift_width: int,
    heads: int,
    exact: bool,
) -> Tensor:
    """The operator token_mask_triton; percent is int64 (1 or B, 1 or heads)."""
    images = len(sample)
    windows = Windows(height, width, (window_height, window_width), (shift_height, shift_width))
    mask = torch.empty(images, heads, windows.tokens, dtype=torch.bool, device=sample.device)
    if not mask.numel():
        return mask
    sample_stride, head_stride = percent.expand(images, heads).stride()
    named = {
        "seed_ptr": seed,
        "draw_ptr": draw,
        "sample_ptr": sample.contiguous(),
        "percent_ptr": percent,
        "mask_ptr": mask,
        "sample_stride": sample_stride,
        "head_stride": head_stride,
        "tokens": windows.tokens,
        "windows": windows.count,
        "height": height,
        "width": width,
    }
    if not exact:
        grid = images * heads, triton.cdiv(windows.tokens, TOKENS_EACH)
        arguments = arguments_of(mask_kernel, **named)
        launch.launch(mask_kernel, grid, *arguments, HEADS=heads, BLOCK=TOKENS_EACH, num_warps=4)
        return mask
    block = triton.next_power_of_2(windows.size)
    windows_each = max(1, TOKENS_EACH // block)
    launch.launch(
        exact_mask_kernel,
        (triton.cdiv(windows.count, windows_each), images * heads),
        *arguments_of(exact_mask_kernel, **named),
        **window_constants(windows),
        HEADS=heads,
        WINDOWS_EACH=windows_each,
        BLOCK_N=block,
        BITS=32 + block.bit_length(),
        num_warps=4,
    )
    return mask
