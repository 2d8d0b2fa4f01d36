"""Normal numbers in Triton: those of kernels/noise.py up to rounding, from a seed and a draw number on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .token_mask import counter_words

PIXELS_EACH = 1024  # of one image, drawn by a program


# Minimax polynomials as in csrc/cpu/kernels/normal.cpp, with errors of 3e-8 and less. The compiler's cosine needs the
# stack, and the logarithm of AMD's instruction is inexact near 1.


@triton.jit
def radius(word):
    """(-2 ln(uniform))^0.5, uniform = ((word >> 8) + 1) / 2^24."""
    bits = ((word >> 8) + 1).to(tl.int32).to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # uniform = m * 2^(exponent - 24), m from 0.5^0.5 to 2^0.5
    z = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = 8.91786938e-02 * z - 1.43502014e-01
    p = p * z + 1.48769612e-01
    p = p * z - 1.65656345e-01
    p = p * z + 1.99653981e-01
    p = p * z - 2.50017469e-01
    p = p * z + 3.33338581e-01
    logarithm = (exponent - 24).to(tl.float32) * 0.693147182 + (z + z * z * (p * z - 0.5))
    return tl.sqrt(-2.0 * logarithm)


@triton.jit
def sincos(word):
    """Sine and cosine of (word >> 8) / 2^24 turns."""
    turn = (word >> 8).to(tl.int32)
    quarter = (turn + (1 << 21)) >> 22
    t = (turn - (quarter << 22)).to(tl.float32) * (1.0 / 16777216.0)  # from -1/8 to 1/8
    t2 = t * t
    s = -7.54020679e01 * t2 + 8.15925535e01
    s = s * t2 - 4.13416626e01
    s = (s * t2 + 6.28318529e00) * t
    c = 5.92204066e01 * t2 - 8.54428521e01
    c = c * t2 + 6.49393162e01
    c = c * t2 - 1.97392087e01
    c = c * t2 + 1.0
    odd = (quarter & 1) != 0
    x, y = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where((quarter & 2) != 0, -y, y), tl.where(((quarter + 1) & 2) != 0, -x, x)


@triton.jit
def normal_numbers(pixel, sample, draw, group, seed):
    """The numbers of the four channels of a group, for each pixel."""
    head = tl.full((), -2, tl.int32) - group  # 2^32 - 2 - group
    a, b, c, d = counter_words(pixel, sample, draw, head, seed)
    first, second = radius(a), radius(c)
    first_sine, first_cosine = sincos(b)
    second_sine, second_cosine = sincos(d)
    return first * first_cosine, first * first_sine, second * second_cosine, second * second_sine


@triton.jit
def normal_kernel(seed_ptr, draw_ptr, sample_ptr, out_ptr, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Some pixels of one image and group of channels."""
    image, group = tl.program_id(1), tl.program_id(2)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    numbers = normal_numbers(pixel, tl.load(sample_ptr + image), tl.load(draw_ptr), group, tl.load(seed_ptr))
    for number in tl.static_range(4):
        channel = 4 * group + number
        plane = (image.to(tl.int64) * CHANNELS + channel) * pixels
        tl.store(out_ptr + plane + pixel, numbers[number], mask=(pixel < pixels) & (channel < CHANNELS))


def normal(seed: Tensor, draw: Tensor, sample: Tensor, channels: int, pixels: int) -> Tensor:
    """The operator normal_triton."""
    out = torch.empty(len(sample), channels, pixels, dtype=torch.float32, device=sample.device)
    if out.numel():
        launch.launch(
            normal_kernel,
            (triton.cdiv(pixels, PIXELS_EACH), len(sample), triton.cdiv(channels, 4)),
            *(seed, draw, sample.contiguous(), out, pixels),
            CHANNELS=channels,
            BLOCK=PIXELS_EACH,
            num_warps=4,
        )
    return out
