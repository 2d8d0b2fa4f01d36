"""Is a folder of noisy images the Poisson noise of the public formula, x + alpha * (poisson(v x) / v - x), in 8 bits?

    python -m benchmarks.tools.poisson_check CLEAN NOISY [--alpha 2]

Images are paired by name. What the formula gives is computed from the Poisson law, with clipping and rounding to 8
bits, and not drawn. For each image a line compares:

- lattice: the share of noisy values that the formula can give for their clean value. The part in brackets is the share
  for values drawn uniformly. Values 0 and 255 do not count.
- PSNR, and the expected one. z is the difference of the squared errors in standard deviations.
- neighbours, channels: the correlation between adjacent pixels, and between channels of a pixel, after the noise is
  divided by its expected deviation. The standard error is about 0.001.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import poisson

from masked_swin.train.commands.noise import named_images
from masked_swin.train.data import read_image

BINS = 8  # of intensity, in the last table


class Law(NamedTuple):
    """What the formula gives for each of 256 clean values, in 8-bit units of the difference to it.

    `possible`: (256, 256) which noisy values it can give; `mean`, `square`, `fourth`: (256,) moments.
    """

    possible: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    fourth: np.ndarray


def law_of(alpha: float, scale: float) -> Law:
    """Compute the law of a clean value's noisy values; `scale` is v."""
    clean = np.arange(256.0)[:, None]
    counts = np.arange(int(3 * scale) + 64)
    exact = np.clip(255 * (clean / 255 + alpha * (counts / scale - clean / 255)), 0, 255)
    probability = poisson.pmf(counts, clean / 255 * scale)
    possible = np.zeros((256, 256), dtype=bool)
    rows = np.broadcast_to(clean.astype(int), exact.shape)
    for tie in (-1e-6, 1e-6):  # the last bits of the arithmetic decide where halves go
        possible[rows, np.round(exact + tie).astype(int)] = True
    difference = np.round(exact) - clean
    return Law(possible, *((probability * difference**power).sum(axis=1) for power in (1, 2, 4)))


class Check(NamedTuple):
    """The figures of one image; `squares` are sums of measured and of expected squares by intensity, and counts."""

    levels: int
    lattice: float
    chance: float
    psnr: float
    expected_psnr: float
    z: float
    neighbours: float
    channels: float
    squares: np.ndarray


def check(clean: np.ndarray, noisy: np.ndarray, alpha: float) -> Check:
    """Compare uint8 images (H, W, 3)."""
    levels = np.unique(clean).size
    law = law_of(alpha, 2.0 ** np.ceil(np.log2(levels)))
    inner = (noisy > 0) & (noisy < 255)
    noise = noisy.astype(np.float64) - clean
    measured, expected = noise**2, law.square[clean]
    error = np.sqrt((law.fourth - law.square**2)[clean].sum())
    deviation = np.sqrt(law.square - law.mean**2)[clean]
    unit = np.divide(noise - law.mean[clean], deviation, out=np.zeros_like(noise), where=deviation > 0.1)
    adjacent = np.concatenate([(unit[:, :-1] * unit[:, 1:]).ravel(), (unit[:-1] * unit[1:]).ravel()])
    colours = [unit[..., i] * unit[..., j] for i, j in ((0, 1), (0, 2), (1, 2))]
    where = (clean.astype(int) * BINS // 256).ravel()
    squares = [np.bincount(where, values.ravel(), BINS) for values in (measured, expected, np.ones_like(noise))]
    psnr, expected_psnr = (10 * np.log10(255**2 / values.mean()) for values in (measured, expected))
    return Check(
        *(levels, float(law.possible[clean, noisy][inner].mean()), float(law.possible[clean][inner].mean())),
        *(float(psnr), float(expected_psnr), float((measured.sum() - expected.sum()) / error)),
        *(float(adjacent.mean()), float(np.mean(colours)), np.array(squares)),
    )


def main() -> None:
    """Print a line for each image, and the squared errors by intensity over all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clean", type=Path, help="folder of the clean images")
    parser.add_argument("noisy", type=Path, help="folder of the noisy images, with the same names")
    parser.add_argument("--alpha", type=float, default=2.0, help="of the formula")
    options = parser.parse_args()
    clean, noisy = named_images(options.clean), named_images(options.noisy)
    if clean.keys() != noisy.keys():
        parser.error(f"images without a partner: {', '.join(sorted(clean.keys() ^ noisy.keys()))}")
    print(f"{'image':10}  levels  lattice (by chance)   PSNR  expected     z  neighbours  channels")
    results = []
    for name in clean:
        one = check(*(read_image(paths[name]).eight_bit for paths in (clean, noisy)), options.alpha)
        results.append(one)
        print(
            f"{name:10}  {one.levels:>6}   {one.lattice:.5f}  ({one.chance:.4f})  {one.psnr:.2f}  "
            f"{one.expected_psnr:>8.2f}  {one.z:>+4.1f}  {one.neighbours:>+10.4f}  {one.channels:>+8.4f}",
            flush=True,
        )
    print("\nclean value  values   squared error  expected  ratio")
    for index, (measured, expected, count) in enumerate(np.sum([one.squares for one in results], axis=0).T):
        if count:
            low, high = index * 256 // BINS, (index + 1) * 256 // BINS - 1
            figures = f"{measured / count:>14.1f}  {expected / count:>8.1f}  {measured / expected:.4f}"
            print(f"{low:>4} to {high:<4}{count:>9.0f}  {figures}")
    zs = np.array([one.z for one in results])
    print(f"\nz over {len(zs)} images: mean {zs.mean():+.2f}, root mean square {np.sqrt(np.mean(zs**2)):.2f}")


if __name__ == "__main__":
    main()
