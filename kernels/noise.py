"""Gaussian noise as a pure function of (seed, draw, sample id, pixel, channel), as masks are: nothing is stored.

The words of a counter (philox.py) with the pixel as index and head 2^32 - 2 - channel // 4, which no mask uses, give
the normal numbers of four channels (Box and Muller, 1958). Words a, b give r cos(t) and r sin(t), where
r = sqrt(-2 ln((a // 2^8 + 1) / 2^24)) and t = 2 pi (b // 2^8) / 2^24.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import choose
from .checks import require_tensor


class Noise(NamedTuple):
    """What `gaussian_noise` adds to an image."""

    sigma: float
    seed: Tensor
    draw: Tensor
    sample: Tensor


class NormalInputs(NamedTuple):
    """The inputs of the operation `normal`: numbers (B, channels, pixels) in `dtype`."""

    seed: Tensor
    draw: Tensor
    sample: Tensor
    channels: int
    pixels: int
    dtype: torch.dtype

    def arguments(self) -> tuple[object, ...]:
        return (self.seed, self.draw, self.sample, self.channels, self.pixels)


def gaussian_noise(
    image: Tensor, sigma: float, seed: Tensor, draw: Tensor, sample: Tensor, *, backend: str | None = None
) -> Tensor:
    """Return the image plus white Gaussian noise, clipped to [0, 1].

    Args:
        image: (B, C, H, W), floating point in [0, 1].
        sigma: standard deviation in the units of the image, in [0, 1]; 15 / 255 is the published training noise.
        seed, draw, sample: as of `token_mask`. The noise does not depend on how images are batched or distributed. It
            is the same on every device, up to rounding.
        backend: a name, or None for the first that can run.

    Raises:
        ValueError: for images of another shape or dtype, another number of samples, a sigma outside [0, 1], or if the
            backend cannot run.
    """
    require_tensor("image", image, "(B, C, H, W)")
    if image.dim() != 4 or not image.is_floating_point():
        raise ValueError(f"images must be (B, C, H, W) and floating point, got {image.dtype} {tuple(image.shape)}")
    if sample.shape != image.shape[:1]:
        raise ValueError(f"sample must name {image.shape[0]} images, got {tuple(sample.shape)} ids")
    if not 0 <= sigma <= 1:
        raise ValueError(f"sigma must lie in [0, 1], got {sigma}; in units of 8 bits write {sigma:g} / 255")
    channels, height, width = image.shape[1:]
    dtype = torch.promote_types(image.dtype, torch.float32)
    inputs = NormalInputs(seed, draw, sample, channels, height * width, dtype)
    numbers: Tensor = choose("normal", inputs, backend).run(inputs)
    return (image + sigma * numbers.view_as(image)).clamp(0, 1).to(image.dtype)
