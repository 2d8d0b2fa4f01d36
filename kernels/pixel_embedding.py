"""The embedding of pixels in one kernel: input mask, reflection to whole windows, 1x1 convolution and LayerNorm."""

import torch
from torch import Tensor

from .mask_ops import TRITON_INSTALLED

MAX_IMAGE_CHANNELS, MAX_CHANNELS = 4, 256


def fuses_pixel_embedding(image: Tensor, channels: int, backend: str | None) -> bool:
    """Whether `pixel_embedding` can run: on a device of the "triton" backend, unless another one is asked for."""
    return (
        backend in (None, "triton")
        and TRITON_INSTALLED
        and image.device.type == "cuda"
        and image.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and image.shape[1] <= MAX_IMAGE_CHANNELS
        and channels <= MAX_CHANNELS
    )


def pixel_embedding(
    image: Tensor,
    size: tuple[int, int],
    masked: Tensor | None,
    *,
    mean: Tensor,
    image_range: float,
    mask_value: float,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Tensor:
    """LayerNorm(conv(range * (pad(mask(image)) - mean))) of images (B, I, h, w), as (B, *size, C).

    Args:
        image: reflected at the right and bottom up to `size`; masked pixels are not read.
        size: (height, width) of the padded image, less than twice that of the image.
        masked: bool (B, *size), True = all channels are `mask_value`; read within the image only, and reflected with
            it. None = nothing is masked.
        mean: (I,), subtracted.
        image_range: factor of the difference.
        weights: of the convolution (C, I, 1, 1) and its bias (C,), of LayerNorm and its bias (C,).

    Returns:
        dtype of the weights; sums are float32. The convolution is not done in the autocast dtype.
    """
    return torch.ops.masked_swin.pixel_embedding_triton(
        image, masked, mean, *weights, *size, image_range, mask_value, image.requires_grad
    )
