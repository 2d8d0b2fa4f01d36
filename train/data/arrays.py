"""Conversions of images between arrays (H, W, C) and tensors (C, H, W), 8 or 16 bits and floats in [0, 1]."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

LUMA = np.array([0.299, 0.587, 0.114])  # weights of R, G and B (BT.601)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Return uint8 as it is; clip floats to [0, 1], scale and round them (halves to even)."""
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"image: expected uint8 or floats in [0, 1], got {image.dtype}")
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
    """Convert uint8, uint16 or float to float32 in [0, 1]."""
    scaled = image.astype(np.float32)
    return scaled / np.float32(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else scaled


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert uint8, uint16 or float (H, W, C) to float32 (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(to_float(image), "h w c -> c h w")))


def to_array(image: Tensor) -> np.ndarray:
    """Convert a tensor (C, H, W) to a float32 array (H, W, C)."""
    return np.ascontiguousarray(rearrange(image.detach().float().cpu().numpy(), "c h w -> h w c"))


def to_grey(image: np.ndarray) -> np.ndarray:
    """Convert RGB (H, W, 3) to its luma (BT.601), (H, W, 1) of the same dtype; equal channels stay exact."""
    if (image == image[..., :1]).all():
        return np.ascontiguousarray(image[..., :1])
    luma = image.astype(np.float64) @ LUMA[:, None]
    return (luma if np.issubdtype(image.dtype, np.floating) else np.round(luma)).astype(image.dtype)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Return the central part of (H, W, C), at most `size` on a side."""
    height, width = image.shape[:2]
    top, left = max(0, height - size) // 2, max(0, width - size) // 2
    return image[top : top + size, left : left + size]
