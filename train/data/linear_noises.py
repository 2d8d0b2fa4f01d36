"""Noises that arise in linear light, before an image gets its sRGB curve: Monte Carlo rendering and a camera.

Formulas and levels are ours, after ideas of the literature that each function names. The masked training paper shows
such noises, but neither its formulas nor its images are published: these match no published set.
Images are floats (H, W, C) in [0, 1], sRGB values; C is 3, or 1 for grey.
"""

import numpy as np

Image = np.ndarray

# Monte Carlo: the share of the light that rare paths carry, and how often a path is a rare one.
RARE_LIGHT, RARE_PATHS = 0.1, 0.001
_TAIL = 2.5  # exponent of the Pareto law of what a rare path carries: its mean is finite, its tail heavy

# Camera: gains of the white balance for red, green and blue, the middles of the ranges of Brooks et al.
GAINS = (2.15, 1.0, 1.7)


def monte_carlo(image: Image, samples: float, generator: np.random.Generator) -> Image:
    """Noise of a renderer that averages `samples` light paths in each pixel (ours).

    The estimate of a pixel is its linear light, times a factor with mean 1 that its channels share:
    (1 - r) * G + r * F. G is the mean of `samples` exponential variables, a Gamma variable of variance 1 / samples. F
    are fireflies: a path is a rare one with probability q, and carries r / q of the light, times a Pareto variable of
    mean 1. With fewer samples they are fewer and brighter. r is RARE_LIGHT, q is RARE_PATHS.

    Ideas: Monte Carlo estimates are unbiased and their variance falls as 1 / samples (Kajiya 1986; Pharr et al.,
    "Physically Based Rendering"); rare bright paths leave outliers (Zwicker et al. 2015). Left out: depth of field,
    motion blur, colour noise of indirect light, and noise that follows geometry, which no photograph tells.
    """
    size = (*image.shape[:2], 1)
    common = generator.standard_gamma(samples, size) / samples
    rare = generator.poisson(samples * RARE_PATHS, size) / (samples * RARE_PATHS)
    weight = (generator.pareto(_TAIL, size) + 1) * (1 - 1 / _TAIL)
    factor = (1 - RARE_LIGHT) * common + RARE_LIGHT * rare * weight
    return from_linear(to_linear(image) * factor)


def camera(image: Image, shot: float, generator: np.random.Generator) -> Image:
    """Noise of a sensor after demosaicing, white balance and the sRGB curve (ours).

    1. The sRGB curve is undone, and red and blue are divided by GAINS: the light that the sensor sees.
    2. Each pixel of an RGGB mosaic gets Gaussian noise of variance shot * light + read, with
       log(read) = 2.18 * log(shot) + 1.20. The relation and the range of `shot`, 0.0001 to 0.012, are those that
       Brooks et al. 2019 ("Unprocessing Images for Learned Raw Denoising") fitted to photographs.
    3. The mosaic of the noise is demosaiced bilinearly, times GAINS, and added in linear light. So the noise is
       correlated between pixels and channels as in a photograph, and the image keeps its detail.
    4. The sRGB curve, and clipping.

    A grey image is that of a sensor without mosaic and gains. Left out: a camera's colour matrix, tone curve,
    sharpening, its own denoising and JPEG (CycleISP, Zamir et al. 2020, models some of them).
    """
    linear = to_linear(image)
    read = np.exp(2.18 * np.log(shot) + 1.20)
    gains = np.array(GAINS if image.shape[2] == 3 else (1.0,))
    light = linear / gains
    if image.shape[2] == 3:
        light = mosaic(light)[..., None]
    noise = generator.standard_normal(light.shape) * np.sqrt(shot * light + read)
    if image.shape[2] == 3:
        noise = demosaic(noise[..., 0])
    return from_linear(linear + noise * gains)


def mosaic(light: Image) -> np.ndarray:
    """Return the channel of (H, W, 3) that each pixel of an RGGB sensor sees, (H, W)."""
    seen = light[..., 1].copy()
    seen[::2, ::2] = light[::2, ::2, 0]
    seen[1::2, 1::2] = light[1::2, 1::2, 2]
    return seen


def demosaic(seen: np.ndarray) -> Image:
    """Interpolate an RGGB mosaic (H, W) to (H, W, 3): each missing value is the mean of its nearest neighbours.

    The border is mirrored without its edge, which continues the mosaic. A single row or column is repeated.
    """
    height, width = seen.shape
    padded = np.pad(seen, 1, mode="reflect" if min(height, width) > 1 else "edge")
    rows, columns = np.indices(padded.shape) - 1
    even_rows, even_columns = rows % 2 == 0, columns % 2 == 0
    channels = []
    for where in (even_rows & even_columns, even_rows ^ even_columns, ~even_rows & ~even_columns):
        known = where.astype(np.float64)
        total, weight = (_tent(values) for values in (padded * known, known))
        channels.append(np.where(where[1:-1, 1:-1], seen, total / weight))
    return np.stack(channels, axis=2)


def _tent(values: np.ndarray) -> np.ndarray:
    """Sum each 3x3 neighbourhood of (H + 2, W + 2) with the weights 1, 2, 1 of both directions: (H, W)."""
    rows = values[:-2] + 2 * values[1:-1] + values[2:]
    return np.asarray(rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:])


def to_linear(image: Image) -> Image:
    """Undo the sRGB curve (IEC 61966-2-1); float64."""
    values = image.astype(np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_linear(light: Image) -> Image:
    """Clip linear light to [0, 1] and apply the sRGB curve; float64."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
