"""Gaussian noise as a pure function of (seed, draw, sample, pixel, channel), as masks are: nothing is stored.

A counter of token_mask.py with the pixel as token and a head that no mask has, 2^32 - 2 - channel // 4, gives four
words, and these the normal numbers of four channels (Box and Muller, "A note on the generation of random normal
deviates", 1958): words a, b give r cos(t), r sin(t), where r = sqrt(-2 ln((a // 2^8 + 1) / 2^24)) and
t = 2 pi (b // 2^8) / 2^24.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import mask_ops  # noqa: F401  (registers the operators)
from .backends import TRITON_INSTALLED
from .cpu.library import CPU_LIBRARY
from .token_mask import RESERVED, random_words


class Noise(NamedTuple):
    """What `gaussian_noise` adds to an image."""

    sigma: float
    seed: Tensor
    draw: Tensor
    sample: Tensor


def gaussian_noise(image: Tensor, sigma: float, seed: Tensor, draw: Tensor, sample: Tensor) -> Tensor:
    """The image plus white Gaussian noise, clipped to [0, 1].

    Args:
        image: (B, C, H, W), floating point in [0, 1].
        sigma: standard deviation in the units of the image, 15 / 255 for the published training noise.
        seed, draw, sample: as of `token_mask`. The noise does not depend on how images are batched or distributed; up
            to rounding it is the same on every device.

    Raises:
        ValueError: for images of another shape or dtype, or another number of samples.
    """
    if image.dim() != 4 or not image.is_floating_point():
        raise ValueError(f"images must be (B, C, H, W) and floating point, got {image.dtype} {tuple(image.shape)}")
    if sample.shape != image.shape[:1]:
        raise ValueError(f"sample must name {image.shape[0]} images, got {tuple(sample.shape)} ids")
    channels, height, width = image.shape[1:]
    key, size = (seed, draw, sample), (channels, height * width)
    if image.device.type == "cpu" and CPU_LIBRARY.loaded and image.dtype != torch.float64:
        numbers = torch.ops.masked_swin.normal_cpu(*key, *size)
    elif image.device.type == "cuda" and TRITON_INSTALLED and image.dtype != torch.float64:
        numbers = torch.ops.masked_swin.normal_triton(*key, *size)
    else:
        numbers = _normal(*key, *size, torch.promote_types(image.dtype, torch.float32))
    return (image + sigma * numbers.view_as(image)).clamp(0, 1).to(image.dtype)


def _normal(seed: Tensor, draw: Tensor, sample: Tensor, channels: int, pixels: int, dtype: torch.dtype) -> Tensor:
    """The numbers, (B, channels, pixels)."""
    index = torch.arange(pixels, device=sample.device)
    numbers: list[Tensor] = []
    for group in range(-(-channels // 4)):
        head = torch.full((), RESERVED - 1 - group, dtype=torch.int64, device=sample.device)
        words = random_words(index, sample[:, None], draw, head, seed)
        for of_radius, of_turn in (words[:2], words[2:]):
            radius = (-2 * torch.log(((of_radius >> 8) + 1).to(dtype) / 2**24)).sqrt()
            turn = 2 * math.pi * ((of_turn >> 8).to(dtype) / 2**24)
            numbers += [radius * turn.cos(), radius * turn.sin()]
    return torch.stack(numbers[:channels], 1)
