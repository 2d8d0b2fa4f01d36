"""The operation `pixel_embedding`, image to features: noise, input mask, reflection, convolution and LayerNorm."""

from typing import NamedTuple

from torch import Tensor

from .backends import choose, run_empty
from .checks import require_tensor
from .noise import Noise


class EmbeddingWeights(NamedTuple):
    """Parameters in torch.nn's layouts; I image channels, C features."""

    weight: Tensor  # (C, I, k, k) of the convolution
    bias: Tensor  # (C,)
    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)


class EmbeddingInputs(NamedTuple):
    """The inputs of the operation."""

    image: Tensor
    size: tuple[int, int]
    noise: Noise | None
    input_mask: Tensor | None
    mean: Tensor
    image_range: float
    mask_value: float
    weights: EmbeddingWeights
    residuals: bool

    def arguments(self) -> tuple[object, ...]:
        sigma, *key = (0.0, None, None, None) if self.noise is None else self.noise
        numbers = (sigma, self.image_range, self.mask_value)
        image_gradient = self.image.requires_grad
        return (self.image, *key, self.input_mask, self.mean, *self.weights, *self.size, *numbers, image_gradient)


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
    input_mask: Tensor | None = None,
    mean: Tensor,
    image_range: float,
    mask_value: float,
    weights: EmbeddingWeights,
    residuals: bool = False,
    backend: str | None = None,
) -> Embedding:
    """LayerNorm(conv(range * (pad(mask(noise(image))) - mean))) of images (B, I, h, w); the convolution pads with 0.

    Args:
        image: reflected at the right and bottom up to `size`. Masked pixels are not read.
        size: (height, width) of the padded image, less than twice that of the image.
        noise: added to the image, which is then clipped, as by `gaussian_noise`.
        input_mask: bool (B, *size), True = all channels are `mask_value`. Read within the image only, and reflected
            with it. None masks nothing.
        mean: (I,), subtracted.
        image_range: factor of the difference.
        weights: of the convolution and of LayerNorm.
        residuals: also return the image and the output of the convolution.
        backend: a name, or None for the first that can run.

    Raises:
        ValueError: if the backend cannot run.
    """
    require_tensor("image", image, "(B, I, h, w)")
    inputs = EmbeddingInputs(image, size, noise, input_mask, mean, image_range, mask_value, weights, residuals)
    run = choose("pixel_embedding", inputs, backend).run
    embedding: Embedding = run(inputs) if len(image) else run_empty("pixel_embedding", inputs)
    return embedding
