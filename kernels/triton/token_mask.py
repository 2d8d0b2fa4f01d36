"""Random masks in Triton: the words of token_mask.py, bit for bit, from a seed and a draw number read on the device."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .position import image_tokens

RESERVED = tl.constexpr(0xFFFFFFFF)  # as in token_mask.py
TOKENS_EACH = 1024  # of one image, drawn by a program


@triton.jit
def counter_words(token, sample, draw, head, seed):
    """The four words of Philox-4x32-10 for each token, uint32; sample, draw and head count modulo 2^32."""
    token = token.to(tl.uint32)
    zero = tl.zeros_like(token)
    sample, draw, head = zero + sample.to(tl.uint32), zero + draw.to(tl.uint32), zero + head.to(tl.uint32)
    return tl.philox(seed, token, sample, draw, head)


@triton.jit
def random_words(token, sample, draw, head, seed):
    """The first of them."""
    return counter_words(token, sample, draw, head, seed)[0]


@triton.jit
def masked_percent(
    sample, draw, head, seed, LOW: tl.constexpr, HIGH: tl.constexpr, RATIO_PER_SAMPLE: tl.constexpr
):  # fmt: skip
    """The percentage of a call, or of an image, int64."""
    percent = tl.full((), LOW, tl.int64)
    if HIGH > LOW:
        reserved = tl.full((1,), RESERVED, tl.uint32)
        word = random_words(reserved, sample if RATIO_PER_SAMPLE else reserved, draw, head, seed)
        percent += tl.sum((word.to(tl.int64) * (HIGH - LOW + 1)) >> 32)
    return percent


@triton.jit
def mask_kernel(
    seed_ptr, draw_ptr, sample_ptr, mask_ptr, tokens,
    HEADS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, RATIO_PER_SAMPLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some tokens of one image and head: masked where the word is below floor(percent * 2^32 / 100)."""
    row = tl.program_id(0)
    head = row % HEADS
    seed, draw, sample = tl.load(seed_ptr), tl.load(draw_ptr), tl.load(sample_ptr + row // HEADS)
    percent = masked_percent(sample, draw, head, seed, LOW, HIGH, RATIO_PER_SAMPLE)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    masked = random_words(token, sample, draw, head, seed).to(tl.int64) < (percent << 32) // 100
    tl.store(mask_ptr + row.to(tl.int64) * tokens + token, masked, mask=token < tokens)


@triton.jit
def exact_mask_kernel(
    seed_ptr, draw_ptr, sample_ptr, mask_ptr, windows, height, width,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT_H: tl.constexpr, SHIFT_W: tl.constexpr,
    HEADS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, RATIO_PER_SAMPLE: tl.constexpr,
    WINDOWS_EACH: tl.constexpr, BLOCK_N: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Some windows of one image and head: of each the tokens with the smallest words, equal ones by place.

    Word and place make a key of BITS - 1 bits. The bound that just the masked keys lie below is found bit by bit.
    """
    SIZE: tl.constexpr = WINDOW_H * WINDOW_W
    row = tl.program_id(1)
    head = row % HEADS
    seed, draw, sample = tl.load(seed_ptr), tl.load(draw_ptr), tl.load(sample_ptr + row // HEADS)
    percent = masked_percent(sample, draw, head, seed, LOW, HIGH, RATIO_PER_SAMPLE)
    masked = ((percent * SIZE + 50) // 100).to(tl.int32)
    window = tl.program_id(0) * WINDOWS_EACH + tl.arange(0, WINDOWS_EACH)[:, None]
    place = tl.arange(0, BLOCK_N)[None, :]
    valid = (window < windows) & (place < SIZE)
    token = image_tokens(window, place, height, width, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W)
    key = random_words(token, sample, draw, head, seed).to(tl.int64) * BLOCK_N + place
    bound = tl.zeros((WINDOWS_EACH,), tl.int64)
    for bit in range(BITS):
        raised = bound + (tl.full((), 1, tl.int64) << (BITS - 1 - bit))
        below = tl.sum((valid & (key < raised[:, None])).to(tl.int32), 1)
        bound = tl.where(below <= masked, raised, bound)
    tl.store(mask_ptr + row.to(tl.int64) * (height * width) + token, key < bound[:, None], mask=valid)


def token_mask(
    seed: Tensor, draw: Tensor, sample: Tensor, tokens: int, heads: int, low: int, high: int, ratio_per_sample: bool
) -> Tensor:
    """The operator token_mask_triton."""
    mask = torch.empty(len(sample), heads, tokens, dtype=torch.bool, device=sample.device)
    if mask.numel():
        launch.launch(
            mask_kernel,
            (len(sample) * heads, triton.cdiv(tokens, TOKENS_EACH)),
            *(seed, draw, sample.contiguous(), mask, tokens),
            **_drawing(heads, low, high, ratio_per_sample),
            BLOCK=TOKENS_EACH,
            num_warps=4,
        )
    return mask


def exact_token_mask(
    seed: Tensor,
    draw: Tensor,
    sample: Tensor,
    height: int,
    width: int,
    window_height: int,
    window_width: int,
    shift_height: int,
    shift_width: int,
    heads: int,
    low: int,
    high: int,
    ratio_per_sample: bool,
) -> Tensor:
    """The operator exact_token_mask_triton."""
    mask = torch.empty(len(sample), heads, height * width, dtype=torch.bool, device=sample.device)
    size = window_height * window_width
    if mask.numel():
        windows, block = height * width // size, triton.next_power_of_2(size)
        each = max(1, TOKENS_EACH // block)
        launch.launch(
            exact_mask_kernel,
            (triton.cdiv(windows, each), len(sample) * heads),
            *(seed, draw, sample.contiguous(), mask, windows, height, width),
            WINDOW_H=window_height,
            WINDOW_W=window_width,
            SHIFT_H=shift_height,
            SHIFT_W=shift_width,
            **_drawing(heads, low, high, ratio_per_sample),
            WINDOWS_EACH=each,
            BLOCK_N=block,
            BITS=32 + block.bit_length(),
            num_warps=4,
        )
    return mask


def _drawing(heads: int, low: int, high: int, ratio_per_sample: bool) -> dict[str, Any]:
    return {"HEADS": heads, "LOW": low, "HIGH": high, "RATIO_PER_SAMPLE": ratio_per_sample}
