"""The embedding of pixels, image to features: noise, input mask, reflection to whole windows, convolution, norm."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import REGISTRY, Backend, choose, triton_cannot_take, triton_unavailable
from .convolution import convolution
from .noise import Noise, gaussian_noise

EPSILON = 1e-5
MAX_IMAGE_CHANNELS, MAX_CHANNELS = 4, 256  # of the Triton kernel


class EmbeddingWeights(NamedTuple):
    """Parameters in torch.nn's layouts; I image channels, C features."""

    weight: Tensor  # (C, I, k, k) of the convolution
    bias: Tensor  # (C,)
    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)


class EmbeddingInputs(NamedTuple):
    """What a backend is asked to compute."""

    image: Tensor
    size: tuple[int, int]
    noise: Noise | None
    masked: Tensor | None
    mean: Tensor
    image_range: float
    mask_value: float
    weights: EmbeddingWeights
    residuals: bool


class Embedding(NamedTuple):
    """The features, and what the global residuals of a network add to."""

    features: Tensor  # (B, H, W, C)
    image: Tensor | None = None  # (B, I, H, W) as the convolution gets it
    convolved: Tensor | None = None  # (B, H, W, C), before LayerNorm


def pixel_embedding(
    image: Tensor,
    size: tuple[int, int],
    *,
    noise: Noise | None = None,
    masked: Tensor | None = None,
    mean: Tensor,
    image_range: float,
    mask_value: float,
    weights: EmbeddingWeights,
    residuals: bool = False,
    backend: str | None = None,
) -> Embedding:
    """LayerNorm(conv(range * (pad(mask(noise(image))) - mean))) of images (B, I, h, w); the convolution pads with 0.

    Args:
        image: reflected at the right and bottom up to `size`; masked pixels are not read.
        size: (height, width) of the padded image, less than twice that of the image.
        noise: added to the image, which then is clipped, as by `gaussian_noise`.
        masked: bool (B, *size), True = all channels are `mask_value`; read within the image only, and reflected with
            it. None = nothing is masked.
        mean: (I,), subtracted.
        image_range: factor of the difference.
        weights: of the convolution and of LayerNorm (epsilon 1e-5).
        residuals: ask for the image and the convolution's output, too.
        backend: "triton" (features at once, of a 1x1 convolution; sums are float32, and its products under autocast,
            too), "reference" (PyTorch's operators), or None for the first that can run.

    Raises:
        ValueError: if the backend cannot run.
    """
    inputs = EmbeddingInputs(image, size, noise, masked, mean, image_range, mask_value, weights, residuals)
    embedding: Embedding = choose("pixel_embedding", inputs, backend).run(inputs)
    return embedding


def _reference(inputs: EmbeddingInputs) -> Embedding:
    image, (height, width), noise, masked, mean, image_range, mask_value, weights, residuals = inputs
    rows, columns = image.shape[-2:]
    if noise is not None:
        image = gaussian_noise(image, *noise)
    if masked is not None:
        # Cropped before the padding: a reflected copy of a masked pixel must not give it away.
        image = image.masked_fill(masked[:, None, :rows, :columns], mask_value)
    if (rows, columns) != (height, width):
        image = F.pad(image, (0, width - columns, 0, height - rows), mode="reflect")
    image = (image - mean.view(-1, 1, 1)) * image_range
    channels_last = image.permute(0, 2, 3, 1).contiguous()
    convolved = convolution(channels_last, weights.weight, weights.bias, backend="reference")
    features = F.layer_norm(convolved, convolved.shape[-1:], weights.norm_weight, weights.norm_bias, EPSILON)
    return Embedding(features, image, convolved) if residuals else Embedding(features)


def _triton_why_not(inputs: EmbeddingInputs) -> str | None:
    channels, image_channels, *kernel = inputs.weights.weight.shape
    if kernel != [1, 1]:
        return f"needs a 1x1 convolution, got {tuple(kernel)}"
    if inputs.residuals:
        return "residuals need the image and its convolution, and this kernel makes features only"
    if image_channels > MAX_IMAGE_CHANNELS or channels > MAX_CHANNELS:
        fit = f"at most {MAX_IMAGE_CHANNELS} and {MAX_CHANNELS} fit"
        return f"the convolution has {image_channels} and {channels} channels, {fit}"
    return triton_cannot_take(inputs.image)


def _run_triton(inputs: EmbeddingInputs) -> Embedding:
    image, size, noise, masked, mean, image_range, mask_value, weights, _ = inputs
    sigma, *key = (0.0, None, None, None) if noise is None else noise
    features: Tensor = torch.ops.masked_swin.pixel_embedding_triton(
        image, *key, masked, mean, *weights, *size, sigma, image_range, mask_value, image.requires_grad
    )
    return Embedding(features)


REGISTRY["pixel_embedding"] += [
    Backend("triton", _run_triton, _triton_why_not, triton_unavailable),
    Backend("reference", _reference, lambda inputs: None),
]
