"""Denoising of whole images with a trained network."""

from typing import Literal

import torch
from torch import Tensor

from masked_swin.masking import MaskKey
from masked_swin.model import MaskedSwinIR


@torch.no_grad()
def denoise(
    model: MaskedSwinIR,
    image: Tensor,
    *,
    attention_mask: Literal["average", "random", "off"] = "average",
    average: int = 4,
    seed: int = 0,
    sample: Tensor | None = None,
) -> Tensor:
    """Denoise one image (C, H, W) or several (B, C, H, W), floating point in [0, 1].

    Args:
        attention_mask: "average": the mean over `average` draws of the attention mask (about +0.3 dB over one, says the
            method's author); "random": one draw, as published; "off": no mask. All the same if the network has none.
        average: number of draws.
        seed: of the masks, in [0, 2^63); the same seed gives the same image.
        sample: (B,) int64 ids that name the masks of each image; by default its place in the batch. With the same id an
            image gets the same masks whatever it is batched with.

    Returns:
        The shape of `image`, clipped to [0, 1]. The input is never masked, and the model's mode is left as it was.

    Raises:
        ValueError: for another shape, dtype or device than the model takes, or an unknown option.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"image must be a torch tensor, got {type(image).__name__}; use torch.from_numpy")
    if attention_mask not in ("average", "random", "off"):
        raise ValueError(f"attention_mask must be 'average', 'random' or 'off', got {attention_mask!r}")
    if not isinstance(average, int) or average < 1:
        raise ValueError(f"average must be a number of draws, at least 1, got {average!r}")
    if image.dim() not in (3, 4):
        raise ValueError(f"image must be (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
    batch = image if image.dim() == 4 else image[None]
    masked = attention_mask != "off" and model.config.attention_mask is not None
    draws = average if masked and attention_mask == "average" else 1
    samples = len(batch) if sample is None else sample
    was_training = model.training
    model.eval()
    try:
        total = torch.zeros_like(batch)
        for draw in range(draws):
            key = MaskKey.make(seed, draw, samples, batch.device)
            total += model(batch, key=key, attention_mask=masked)
    finally:
        model.train(was_training)
    return (total / draws).clamp_(0, 1).view_as(image)
