"""PSNR and SSIM as the public test code of SwinIR-type networks computes them: on 8-bit rounded images in 0..255.

Images are arrays (H, W) or (H, W, C), uint8 or floats in [0, 1]; floats are clipped and rounded to 8 bits first, or
with `rounded=False` only clipped. `border` pixels are cropped on every side (in the public protocol as many as the
scale, 1 for denoising). `luma=True` compares the unrounded Y channel of BT.601, as MATLAB's rgb2ycbcr computes it.
"""

import numpy as np

from masked_swin.train.data.arrays import to_uint8

_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SSIM_WINDOW = 11  # pixels on a side


def psnr(image: np.ndarray, target: np.ndarray, *, border: int = 1, luma: bool = False, rounded: bool = True) -> float:
    """Return the peak signal-to-noise ratio in dB over all values; infinite for equal images."""
    a, b = _prepare(image, target, border, luma, rounded)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(20 * np.log10(255 / np.sqrt(error)))


def ssim(image: np.ndarray, target: np.ndarray, *, border: int = 1, luma: bool = False, rounded: bool = True) -> float:
    """Return the structural similarity: 11x11 Gaussian window of sigma 1.5, valid region, mean over the channels."""
    a, b = _prepare(image, target, border, luma, rounded)
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels inside the border, "
            f"got {a.shape[0]} x {a.shape[1]}"
        )
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return float(np.mean(luminance * structure))


def _prepare(
    image: np.ndarray, target: np.ndarray, border: int, luma: bool, rounded: bool
) -> tuple[np.ndarray, np.ndarray]:
    if image.shape != target.shape or image.ndim not in (2, 3):
        raise ValueError(f"expected two images of one shape (H, W) or (H, W, C), got {image.shape} and {target.shape}")
    height, width = image.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"border {border} leaves nothing of a {height} x {width} image")
    pair = []
    for array in (image, target):
        if rounded or array.dtype == np.uint8:
            values = to_uint8(array).astype(np.float64)
        else:
            values = np.clip(array, 0, 1).astype(np.float64) * 255
        values = values[border : height - border, border : width - border]
        if luma and values.ndim == 3 and values.shape[2] == 3:
            values = values @ _LUMA + 16
        pair.append(values)
    return pair[0], pair[1]


def _blur(image: np.ndarray) -> np.ndarray:
    """Apply the separable Gaussian window over the first two axes, valid region."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    height, width = image.shape[0] - SSIM_WINDOW + 1, image.shape[1] - SSIM_WINDOW + 1
    rows = sum(weight * image[k : k + height] for k, weight in enumerate(weights))
    return np.asarray(sum(weight * rows[:, k : k + width] for k, weight in enumerate(weights)))
