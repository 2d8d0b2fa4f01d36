"""Image files: pixels of 8 or 16 bits, and what the file holds beside them, read and written back.

Pillow does it, but for one thing that it cannot: PNG and TIFF colour of 16 bits, which libvips does.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import PIL.TiffImagePlugin

from masked_swin.storage import atomic_write

# Closest to lossless of the formats that lose by default.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
_LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
# Tags that say what a picture is; the others say how the file stores it, which the writer decides anew. Document name,
# description, make, model, orientation, resolution (3), software, time, artist, host, XMP, copyright, IPTC, Photoshop,
# EXIF, GPS, XP title to subject.
_TIFF_TAGS = frozenset(
    {269, 270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34665, 34853}
    | set(range(40091, 40096))
)
_VIPS_FIELDS = ("icc-profile-data", "exif-data", "xmp-data", "iptc-data", "orientation", "resolution-unit")


class NotAnImageError(ValueError):
    """A file that neither is an image nor is called one."""


class DecodedImage(NamedTuple):
    pixels: np.ndarray  # (H, W, 3) uint8 or uint16
    grey: bool
    alpha: np.ndarray | None  # (H, W), dtype of the pixels
    format: str  # Pillow's name
    metadata: dict[str, Any]  # for write_image; empty unless read as stored
    notes: list[str]  # what was left out or changed; each names the file

    @property
    def eight_bit(self) -> np.ndarray:
        """The pixels as uint8, 16 bits rounded."""
        if self.pixels.dtype == np.uint8:
            return self.pixels
        return np.round(self.pixels.astype(np.float32) / 257).astype(np.uint8)


def image_paths(source: Path) -> list[Path]:
    """The file itself, or every file below the folder, sorted; names with a leading dot are left out.

    Raises:
        ValueError: `source` does not exist.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder")
    files = (path for path in source.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts))


def is_image_name(path: Path) -> bool:
    """Whether the file is called an image, whatever it holds."""
    return PIL.Image.registered_extensions().get(path.suffix.lower()) in PIL.Image.OPEN


def read_image(path: Path, *, as_stored: bool = False) -> DecodedImage:
    """Decode an image of 8 or 16 bits as RGB; grey is expanded. 16 bits are kept of any grey, and of PNG and TIFF.

    Args:
        as_stored: leave the pixels in the file's orientation (but for TIFF, which Pillow turns), and take its metadata
            along; else turn them upright as EXIF says.

    Raises:
        NotAnImageError: not an image, nor named as one.
        ValueError: truncated, corrupt, larger than Pillow's limit, or of other pixels; the message names the file.
    """
    notes: list[str] = []
    try:
        with PIL.Image.open(path) as opened:
            file_format = "JPEG" if opened.format == "MPO" else opened.format or ""  # JPEG with further pictures
            if _is_deep_colour(path, opened):
                return _read_deep(path, file_format, as_stored)
            opened.load()
            if getattr(opened, "n_frames", 1) > 1:
                notes.append(f"{path}: only the first of {getattr(opened, 'n_frames', 1)} pictures in the file is read")
            metadata = _metadata(opened, file_format) if as_stored else {}
            image = opened.copy() if as_stored else PIL.ImageOps.exif_transpose(opened)
            if as_stored and opened.mode == "1":
                notes.append(f"{path}: 1 bit of black and white converted to 8 bits of grey")
            decoded = _converted(image, file_format, metadata)
            return decoded._replace(notes=notes + [f"{path}: {change}" for change in decoded.notes])
    except PIL.UnidentifiedImageError:
        kind = ValueError if is_image_name(path) else NotAnImageError
        empty = path.stat().st_size == 0
        raise kind(f"{path}: {'empty file' if empty else 'not an image in a format that Pillow reads'}") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {str(error).split(',')[0]}; `denoise --max-megapixels` raises it") from None
    except MemoryError:
        raise ValueError(f"{path}: not enough memory to decode it") from None
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders of corrupt files raise almost anything: OSError, SyntaxError, struct.error...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be decoded ({reason})") from error


def write_image(path: Path, pixels: np.ndarray, like: DecodedImage) -> None:
    """Write pixels (H, W, 3), or (H, W, 1) of a grey image, with the format, metadata and alpha of `like`.

    The file is whole or not there; missing folders are made. Raises ValueError where Pillow cannot write the format,
    OSError where the disk cannot take it.
    """
    assert pixels.dtype == like.pixels.dtype
    assert pixels.shape == (*like.pixels.shape[:2], 1 if like.grey else 3)
    if like.format not in PIL.Image.SAVE:
        raise ValueError(f"{path}: Pillow reads {like.format} but does not write it; convert the file to PNG first")
    if like.alpha is not None:
        pixels = np.concatenate([pixels, like.alpha[..., None]], axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16 and pixels.shape[2] > 1:
        data = _encode_deep(pixels, like)
        with atomic_write(path) as file:
            file.write(data)
        return
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    options = {**_SAVE_OPTIONS.get(like.format, {}), **like.metadata}
    with atomic_write(path) as file:
        image.save(file, format=like.format, **options)


class _RefusedError(Exception):
    """An image that decodes, but that is not for us."""


def _converted(image: PIL.Image.Image, file_format: str, metadata: dict[str, Any]) -> DecodedImage:
    mode = image.mode
    if mode in ("I", "F"):
        raise _RefusedError(f"pixels of mode {mode!r}; expected 8 or 16 bits per channel")
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        return DecodedImage(np.repeat(values[..., None], 3, axis=2), True, None, file_format, metadata, [])
    alpha, notes = None, []
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"))
    if mode == "CMYK":
        notes.append("CMYK converted to RGB")
        metadata.pop("icc_profile", None)  # it is one for CMYK
    elif mode in ("P", "PA"):
        notes.append("colours of a palette converted to RGB")
    pixels = np.array(image.convert("RGB"))  # a copy: Pillow's own buffer is read-only
    return DecodedImage(pixels, mode in ("1", "L", "LA"), alpha, file_format, metadata, notes)


def _metadata(opened: PIL.Image.Image, file_format: str) -> dict[str, Any]:
    """Options for Pillow's writer of `file_format` that keep what the file says about the picture."""
    names = ("exif", "icc_profile", "dpi", "xmp", "comment")
    kept: dict[str, Any] = {name: opened.info[name] for name in names if name in opened.info}
    if isinstance(opened, PIL.PngImagePlugin.PngImageFile):
        text = PIL.PngImagePlugin.PngInfo()
        for name, value in opened.text.items():
            if isinstance(value, PIL.PngImagePlugin.iTXt):
                text.add_itxt(name, value, value.lang or "", value.tkey or "")
            else:
                text.add_text(name, value, zip=len(value) > 1000)
        kept["pnginfo"] = text
    if isinstance(opened, PIL.TiffImagePlugin.TiffImageFile):
        exif = opened.getexif()
        for tag in [tag for tag in exif if tag not in _TIFF_TAGS]:
            del exif[tag]
        compression = opened.info.get("compression")
        if 34665 in exif or 34853 in exif:
            compression = "raw"  # Pillow cannot write EXIF and GPS into a compressed TIFF
        kept |= {"exif": exif, "compression": compression if compression in _LOSSLESS_TIFF else "tiff_adobe_deflate"}
    return kept


def _is_deep_colour(path: Path, opened: PIL.Image.Image) -> bool:
    """Whether the file has several channels of 16 bits, which Pillow would cut down to 8."""
    if opened.mode.startswith("I;16"):
        return False
    if isinstance(opened, PIL.TiffImagePlugin.TiffImageFile):
        return 16 in opened.tag_v2.get(PIL.TiffImagePlugin.BITSPERSAMPLE, ())
    if opened.format == "PNG":
        with open(path, "rb") as file:
            return file.read(25)[24:] == b"\x10"  # the bit depth in IHDR
    return False


def _read_deep(path: Path, file_format: str, as_stored: bool) -> DecodedImage:
    import pyvips  # here: the library takes a while to load, and few files need it

    source = pyvips.Image.new_from_file(str(path), fail_on="error", revalidate=True)
    metadata: dict[str, Any] = {}
    notes: list[str] = []
    if as_stored:
        fields = [name for name in source.get_fields() if name in _VIPS_FIELDS or name.startswith("png-comment-")]
        metadata = {name: (source.get_typeof(name), source.get(name)) for name in fields}
        metadata["resolution"] = {"xres": source.xres, "yres": source.yres}
        if file_format == "TIFF":
            notes.append(f"{path}: of a TIFF with 16-bit colour, only profile, XMP, IPTC, resolution and turn are kept")
    else:
        source = source.autorot()
    if source.format != "ushort" or source.interpretation not in ("rgb16", "grey16", "srgb", "rgb", "b-w"):
        raise _RefusedError(f"{source.interpretation} pixels of type {source.format}; expected grey or RGB of 16 bits")
    values = source.numpy().reshape(source.height, source.width, source.bands)
    grey = source.bands < 3
    alpha = np.ascontiguousarray(values[..., -1]) if source.bands in (2, 4) else None
    pixels = np.repeat(values[..., :1], 3, axis=2) if grey else np.ascontiguousarray(values[..., :3])
    return DecodedImage(pixels, grey, alpha, file_format, metadata, notes)


def _encode_deep(pixels: np.ndarray, like: DecodedImage) -> bytes:
    import pyvips

    metadata = dict(like.metadata)
    resolution = metadata.pop("resolution", {})
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    image = image.copy(interpretation="grey16" if like.grey else "rgb16", **resolution)
    for name, (kind, value) in metadata.items():
        image.set_type(kind, name, value)
    try:
        if like.format == "PNG":
            return bytes(image.write_to_buffer(".png"))
        return bytes(image.write_to_buffer(".tif", compression="deflate", predictor="horizontal"))
    except pyvips.Error as error:
        raise ValueError(f"libvips cannot encode it ({error.detail.strip()})") from error
