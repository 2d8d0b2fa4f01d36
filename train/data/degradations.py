"""Synthetic noises on float images (H, W, C) in [0, 1]: seeded, vectorised, clipped to [0, 1].

Formulas of the public test scripts of masked image training: Gaussian; Poisson, its deviation scaled by `alpha`;
speckle and salt-and-pepper as MATLAB `imnoise`. Ours, as that code does not give them: the levels below, the spatially
correlated Gaussian, the mixture, and rendering and camera noise (`linear_noises`). CLIPDenoising's public test script
has our levels of Poisson and correlated noise, but another border and clipping of the latter: `protocols.clip_noise`.
The masked training paper's noises were not seeded; here the generator is an argument, so that one seed gives the same
bytes on every run.
"""

import hashlib
import re
from collections.abc import Callable

import numpy as np

from masked_swin.train.data.arrays import to_uint8
from masked_swin.train.data.linear_noises import camera, monte_carlo

Image = np.ndarray
Level = int | str  # 1..4, or a strength such as "sigma=25"
Spec = tuple[str, Level]  # noise and level

# The one table of levels 1..4. Gaussian and correlated: sigma of the field in 8-bit units (level 1 of Gaussian is the
# training noise); Poisson: alpha; speckle: variance; salt_pepper: density; mixture: composed from the four rows above;
# monte_carlo: light paths in a pixel, so fewer are noisier; camera: shot noise, within the range of real cameras.
LEVELS: dict[str, tuple[float, float, float, float]] = {
    "gaussian": (15.0, 25.0, 35.0, 50.0),
    "poisson": (2.0, 2.5, 3.0, 3.5),
    "speckle": (0.02, 0.024, 0.03, 0.04),
    "salt_pepper": (0.002, 0.004, 0.008, 0.012),
    "correlated": (40.0, 45.0, 50.0, 55.0),
    "monte_carlo": (32.0, 16.0, 8.0, 4.0),
    "camera": (0.003, 0.005, 0.008, 0.012),
}


def gaussian(image: Image, sigma: float, generator: np.random.Generator) -> Image:
    """White Gaussian noise, sigma in 8-bit units (public)."""
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return _clip(image + noise * np.float32(sigma / 255))


def poisson(image: Image, alpha: float, generator: np.random.Generator) -> Image:
    """Shot noise, its deviation from the image multiplied by alpha (public).

    The counts are scaled by v = 2 ** ceil(log2(number of distinct 8-bit levels)), which therefore depends on the image.
    """
    levels = np.unique(to_uint8(image)).size
    scale = 2.0 ** np.ceil(np.log2(levels))
    counts = generator.poisson(image.astype(np.float64) * scale)
    return _clip(image + alpha * (counts / scale - image))


def speckle(image: Image, variance: float, generator: np.random.Generator) -> Image:
    """Multiplicative uniform noise of the given variance, as MATLAB imnoise (public)."""
    uniform = generator.random(image.shape, dtype=np.float32) - np.float32(0.5)
    return _clip(image + np.float32(np.sqrt(12 * variance)) * uniform * image)


def salt_pepper(image: Image, density: float, generator: np.random.Generator) -> Image:
    """A share `density` of the values replaced, half by 0 and half by 1, each channel on its own (public, imnoise)."""
    uniform = generator.random(image.shape, dtype=np.float32)
    noisy = np.where(uniform < density / 2, 0.0, image)
    return _clip(np.where((uniform >= density / 2) & (uniform < density), 1.0, noisy))


def correlated(image: Image, sigma: float, generator: np.random.Generator) -> Image:
    """Gaussian field of `sigma` (8-bit units) through a 3x3 mean filter, mirrored at the border (ours).

    The mean filter leaves a standard deviation of sigma / 3 and a correlation over two pixels.
    """
    height, width = image.shape[:2]
    field = generator.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma / 255)
    padded = np.pad(field, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    rows = padded[:height] + padded[1 : height + 1] + padded[2:]
    mean = (rows[:, :width] + rows[:, 1 : width + 1] + rows[:, 2:]) / np.float32(9)
    return _clip(image + mean)


def mixture(image: Image, level: int, generator: np.random.Generator) -> Image:
    """Correlated (sigma / 4), speckle (variance / 4), Poisson (alpha / 2), salt-and-pepper, each at `level` (ours)."""
    image = correlated(image, strength("correlated", level) / 4, generator)
    image = speckle(image, strength("speckle", level) / 4, generator)
    image = poisson(image, strength("poisson", level) / 2, generator)
    return salt_pepper(image, strength("salt_pepper", level), generator)


_BY_STRENGTH: dict[str, Callable[[Image, float, np.random.Generator], Image]] = {
    "gaussian": gaussian,
    "poisson": poisson,
    "speckle": speckle,
    "salt_pepper": salt_pepper,
    "correlated": correlated,
    "monte_carlo": monte_carlo,
    "camera": camera,
}
NOISES: tuple[str, ...] = (
    *("gaussian", "poisson", "speckle", "salt_pepper", "correlated", "mixture"),
    *("monte_carlo", "camera"),
)


# The name of each strength, as in "gaussian:sigma=25".
STRENGTHS = {
    "gaussian": "sigma",
    "poisson": "alpha",
    "speckle": "variance",
    "salt_pepper": "density",
    "correlated": "sigma",
    "monte_carlo": "samples",
    "camera": "shot",
}


def add_noise(image: Image, noise: str, level: Level, generator: np.random.Generator) -> Image:
    """Add `noise` of NOISES to a float image (H, W, C) in [0, 1]; float32, clipped to [0, 1].

    `level` is 1..4, or a strength of one's own by its name in STRENGTHS, such as "sigma=25"; a mixture has none.

    Raises:
        ValueError: unknown noise or level, or an image of another shape, dtype or range.
    """
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}: expected one of {', '.join(NOISES)}")
    if image.ndim != 3 or not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"image: expected floats of shape (height, width, channels), got {image.dtype} of shape {image.shape}; "
            "divide 8-bit images by 255 and add a channel axis to grey ones"
        )
    if image.size == 0 or not (image.min() >= 0 and image.max() <= 1):  # a NaN fails the comparison too
        raise ValueError("image: expected at least one value, all in [0, 1]; divide 8-bit images by 255")
    if noise == "mixture":
        if isinstance(level, str):
            raise ValueError(f"noise level {level!r}: a mixture has the levels 1, 2, 3 and 4 only")
        return mixture(image, level, generator)
    return _clip(_BY_STRENGTH[noise](image, strength(noise, level), generator))


def label(spec: Spec) -> str:
    """Return how a noise and its level are written: "speckle:2", "gaussian:sigma=15"."""
    return f"{spec[0]}:{spec[1]}"


def noisy_copy(pixels: np.ndarray, name: str, noise: str, level: Level, seed: int) -> np.ndarray:
    """Add noise to uint8 (H, W, C), rounded to 8 bits: a function of seed, noise, level and the image's name."""
    digest = hashlib.sha256(f"{name}\n{noise}\n{level}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=[seed, int.from_bytes(digest[:8], "big")]))
    return to_uint8(add_noise(pixels.astype(np.float32) / 255, noise, level, generator))


def strength(noise: str, level: Level) -> float:
    """Return the strength of a noise other than the mixture at a level, or that of "sigma=25".

    Raises:
        ValueError: unknown level, another name, or not a positive number.
    """
    if isinstance(level, str):
        name, _, value = level.partition("=")
        number = float(value) if re.fullmatch(r"\d*\.?\d+", value) else 0.0
        if name != STRENGTHS[noise] or number <= 0:
            raise ValueError(f"noise {noise}:{level}: expected {noise}:{STRENGTHS[noise]}= and a number above 0")
        return number
    if level not in (1, 2, 3, 4):
        raise ValueError(f"noise level {level!r}: expected 1, 2, 3 or 4")
    return LEVELS[noise][level - 1]


def _clip(image: Image) -> Image:
    return np.clip(image, 0, 1).astype(np.float32, copy=False)
