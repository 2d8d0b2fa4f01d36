"""PGM and PPM files of 16 bits, which Pillow cuts to 8 and not every libvips reads."""

import re

import numpy as np

from masked_swin.train.data.decoded_image import RefusedError

_HEADER = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s")


def is_16_bit(start: bytes) -> bool:
    """Tell it from the first bytes of a PGM or PPM file.

    Raises:
        RefusedError: neither 8 nor 16 bits.
    """
    header = _HEADER.match(start)
    if header is None:
        return False  # another kind, or one that Pillow will complain of
    highest = int(header[4])
    if highest not in (255, 65535):
        raise RefusedError(f"values up to {highest}; expected 255 or 65535")
    return highest == 65535


def decode(data: bytes) -> np.ndarray:
    """Return the uint16 pixels (H, W, C) of a whole file."""
    header = _HEADER.match(data)
    assert header is not None
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] == b"6" else 1
    values = np.frombuffer(data, ">u2", height * width * channels, header.end())
    return values.reshape(height, width, channels).astype(np.uint16)


def encode(pixels: np.ndarray) -> bytes:
    """Return the file of uint16 pixels (H, W, 1 or 3)."""
    height, width, channels = pixels.shape
    return f"P{6 if channels == 3 else 5}\n{width} {height}\n65535\n".encode() + pixels.astype(">u2").tobytes()
