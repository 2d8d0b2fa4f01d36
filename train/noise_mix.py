"""Noises of which every image gets one at random: those of training, and those of validation.

Written as "gaussian:1,speckle:2" (noises and levels), "gaussian:sigma=25" (a strength) or "gaussian:sigma=5-50" (a
strength drawn evenly between two). A name alone is its levels 1 to 4, and "all" every noise at its levels.
"""

import re
from typing import NamedTuple

import numpy as np

from masked_swin.train.data.degradations import NOISES, STRENGTHS, Level, add_noise


class NoiseRange(NamedTuple):
    """A noise at a level, or with a strength drawn from `low` to `high`; `text` is how users write it."""

    text: str
    noise: str
    level: Level | None
    low: float = 0.0
    high: float = 0.0

    def add(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Add it to a float image (H, W, C) in [0, 1]; the generator draws the strength first."""
        level = self.level
        if level is None:
            level = f"{STRENGTHS[self.noise]}={generator.uniform(self.low, self.high):.6f}"
        return add_noise(image, self.noise, level, generator)


class NoiseMix(NamedTuple):
    """Noises of which every image gets one, all with the same probability."""

    noises: tuple[NoiseRange, ...]

    def add(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Add one of the noises to a float image (H, W, C) in [0, 1]; float32, clipped to [0, 1]."""
        chosen = int(generator.integers(len(self.noises))) if len(self.noises) > 1 else 0
        return self.noises[chosen].add(image, generator)


def parse_noises(text: str) -> NoiseMix:
    """Parse noises as they are written above.

    Raises:
        ValueError: unknown noise, level or strength; the message says what was expected.
    """
    found: list[NoiseRange] = []
    for part in text.replace(" ", "").split(","):
        name, colon, level = part.partition(":")
        if name not in (*NOISES, "all"):
            raise ValueError(
                f"noise {part!r}: expected all, or any of {', '.join(NOISES)}, each alone, with :1 to :4, or with a "
                "strength such as gaussian:sigma=25 or gaussian:sigma=5-50"
            )
        if not colon:
            names = NOISES if name == "all" else (name,)
            found += [NoiseRange(f"{noise}:{number}", noise, number) for noise in names for number in (1, 2, 3, 4)]
        else:
            found.append(_with_level(part, name, level))
    for noise in found:
        noise.add(np.full((16, 16, 3), 0.5, np.float32), np.random.default_rng(0))  # raises for a wrong level
    return NoiseMix(tuple(dict.fromkeys(found)))


def _with_level(part: str, name: str, level: str) -> NoiseRange:
    if level in ("1", "2", "3", "4"):
        return NoiseRange(part, name, int(level))
    if name not in STRENGTHS or "=" not in level:
        more = f", or a strength, {name}:{STRENGTHS[name]}=" if name in STRENGTHS else ""
        raise ValueError(f"noise {part!r}: expected a level from 1 to 4 after the colon{more}")
    bounds = re.fullmatch(r"(\w+)=(\d*\.?\d+)-(\d*\.?\d+)", level)
    if bounds is None:
        return NoiseRange(part, name, level)
    low, high = float(bounds[2]), float(bounds[3])
    if bounds[1] != STRENGTHS[name] or not 0 < low < high:
        raise ValueError(
            f"noise {part!r}: expected {name}:{STRENGTHS[name]}= and two rising numbers above 0, such as 5-50"
        )
    return NoiseRange(part, name, None, low, high)
