"""A decoded image, and the reasons why a file is not one."""

from typing import Any, NamedTuple

import numpy as np


class NotAnImageError(ValueError):
    """The file is no image, and its name does not say that it is one."""


class RefusedError(Exception):
    """The file is an image of a kind that would not be read or written exactly; the message says which."""


class DecodedImage(NamedTuple):
    """Pixels, and what the file holds beside them; pages of one size lie one below the other."""

    pixels: np.ndarray  # (pages * H, W, 3) uint8, uint16 or float32
    grey: bool
    alpha: np.ndarray | None  # (pages * H, W), dtype of the pixels
    format: str  # Pillow's name
    metadata: dict[str, Any]  # for write_image; empty unless read as stored
    notes: list[str]  # what was left out or changed; each names the file
    pages: int = 1
    float_white: float = 1.0  # the value of white in float pixels

    @property
    def white(self) -> float:
        """The value of white."""
        kind = self.pixels.dtype
        return float(np.iinfo(kind).max) if np.issubdtype(kind, np.integer) else self.float_white

    @property
    def eight_bit(self) -> np.ndarray:
        """The pixels as uint8, others rounded."""
        if self.pixels.dtype == np.uint8:
            return self.pixels
        return np.round(self.pixels.astype(np.float32) * np.float32(255 / self.white)).astype(np.uint8)
