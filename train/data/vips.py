"""Images that Pillow does not keep: colour of 16 bits, floats, and pages; libvips reads and writes them."""

from pathlib import Path
from typing import Any

import numpy as np

from masked_swin.train.data.decoded_image import DecodedImage, RefusedError

_TIFF_FIELDS = ("icc-profile-data", "xmp-data", "iptc-data", "photoshop-data", "resolution-unit", "image-description")
_FORMATS = {"uchar": 255.0, "ushort": 65535.0, "float": 1.0}


def read(path: Path, file_format: str, *, as_stored: bool, pages: int, limit: int | None) -> DecodedImage:
    """Decode a PNG or a TIFF file; a TIFF is turned upright, and gives all its pages or the first one.

    Raises:
        RefusedError: pixels of another kind, or more than `limit` of them.
    """
    pyvips = _pyvips()
    options = {"n": pages} if file_format == "TIFF" else {}
    source = pyvips.Image.new_from_file(str(path), fail_on="error", revalidate=True, **options)
    if limit is not None and source.width * source.height > limit:
        raise RefusedError(
            f"Image size ({source.width * source.height} pixels) exceeds limit of {limit} pixels; "
            "`denoise --max-megapixels` raises it"
        )
    metadata: dict[str, Any] = {}
    if as_stored and file_format == "TIFF":
        names = [name for name in source.get_fields() if name in _TIFF_FIELDS]
        fields = {name: (source.get_typeof(name), source.get(name)) for name in names}
        metadata = {"fields": fields, "resolution": {"xres": source.xres, "yres": source.yres}}
    if pages == 1 and (file_format == "TIFF" or not as_stored):
        source = source.autorot()
    if source.format not in _FORMATS or not 1 <= source.bands <= 4:
        raise RefusedError(f"{source.interpretation} pixels of type {source.format}; expected grey or RGB")
    values = source.numpy().reshape(source.height, source.width, source.bands)
    grey = source.bands < 3
    alpha = np.ascontiguousarray(values[..., -1]) if source.bands in (2, 4) else None
    pixels = np.repeat(values[..., :1], 3, axis=2) if grey else np.ascontiguousarray(values[..., :3])
    white, notes = (1.0, []) if source.format != "float" else _white(pixels)
    if not as_stored and source.format == "float":
        pixels, white = pixels / np.float32(white), 1.0
    return DecodedImage(pixels, grey, alpha, file_format, metadata, notes, pages, white)


def encode(pixels: np.ndarray, like: DecodedImage) -> bytes:
    """Return a PNG or TIFF file of pixels (pages * H, W, C).

    Raises:
        ValueError: libvips cannot make it.
    """
    pyvips = _pyvips()
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    try:
        if like.format == "PNG":
            image = image.copy(interpretation="grey16" if like.grey else "rgb16")
            return bytes(image.write_to_buffer(".png"))
        names = {"uint8": ("b-w", "srgb"), "uint16": ("grey16", "rgb16"), "float32": ("b-w", "scrgb")}
        interpretation = names[pixels.dtype.name][0 if like.grey else 1]
        image = image.copy(interpretation=interpretation, **like.metadata.get("resolution", {}))
        for name, (kind, value) in like.metadata.get("fields", {}).items():
            image.set_type(kind, name, value)
        if like.pages > 1:
            image.set_type(pyvips.GValue.gint_type, "page-height", len(pixels) // like.pages)
        predictor = "none" if pixels.dtype == np.float32 else "horizontal"  # few programs read predicted floats
        return bytes(image.write_to_buffer(".tif", compression="deflate", predictor=predictor))
    except pyvips.Error as error:
        raise ValueError(f"libvips cannot encode it ({error.detail.strip()})") from error


def _pyvips() -> Any:
    """Import the library now: it takes a while to load, and few files need it."""
    try:
        import pyvips
    except (ImportError, OSError) as error:  # OSError: the binding without libvips
        raise RefusedError(f"needs libvips ({error}); install 'masked-swin[train]'") from error
    return pyvips


def _white(pixels: np.ndarray) -> tuple[float, list[str]]:
    """Guess the value of white in float pixels: 1, or 65535 if values are above 255."""
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return 1.0, ["float values read as 0 to 1"]
    if low >= 0 and 255 < high <= 65535:
        return 65535.0, ["float values read as 0 to 65535"]
    raise RefusedError(f"float values from {low:g} to {high:g}; expected 0 to 1, or 0 to 65535")
