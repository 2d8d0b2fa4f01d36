"""Image files: found in folders, read exactly or refused by name, and written with what they held beside the pixels.

Pillow decodes most kinds. libvips (vips.py) decodes what Pillow would change: 16-bit colour, floats, pages of a TIFF.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin

from masked_swin.storage import atomic_write
from masked_swin.train.data import png, ppm, tiff, vips
from masked_swin.train.data.arrays import to_uint8
from masked_swin.train.data.decoded_image import DecodedImage, NotAnImageError, RefusedError

# Kinds that are read, by Pillow's names. JPEG with further pictures is MPO.
_FORMATS = frozenset(
    ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "DIB", "PPM", "TGA", "JPEG2000", "PCX", "SGI", "PSD")
)
# Closest to lossless of the formats that lose by default.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
_LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
# Tags that tell of the picture; the others tell how the file stores it, which the writer decides anew. Document name,
# description, make, model, resolution (3), software, time, artist, host, XMP, copyright, IPTC, Photoshop, EXIF, GPS, XP
# title to subject. Without orientation: the pixels are upright.
_TIFF_TAGS = frozenset(
    {269, 270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34665, 34853}
    | set(range(40091, 40096))
)
_DESCRIPTION = 270
# Names of images that Pillow does not read, and what to do with them.
_RAW = "dng nef nrw cr2 cr3 crw arw sr2 srf orf pef raf rw2 rwl srw 3fr fff iiq kdc dcr mrw x3f erf mef mos"
_REMEDIES = {f".{ending}": tiff.RAW_FILE for ending in _RAW.split()}
_REMEDIES |= dict.fromkeys((".heic", ".heif", ".hif"), "HEIF image; convert it to PNG first, as with pillow-heif")
_REMEDIES |= {".jxl": "JPEG XL image; convert it to PNG first"}


def image_paths(source: Path) -> list[Path]:
    """Return the file itself, or every file below the folder, sorted; names with a leading dot are left out.

    Links are followed. A link to nothing is returned: reading it is an error that names it.

    Raises:
        ValueError: `source` does not exist.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder")
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.is_file() or path.is_symlink()]
    return sorted(found)


def is_image_name(path: Path) -> bool:
    """Tell whether the file is called an image, whatever it holds."""
    ending = path.suffix.lower()
    return ending in _REMEDIES or PIL.Image.registered_extensions().get(ending) in PIL.Image.OPEN


def read_image(path: Path, *, as_stored: bool = False) -> DecodedImage:
    """Decode an image of 8 or 16 bits, or a TIFF of 32-bit floats, as RGB; grey is expanded.

    Args:
        as_stored: leave the pixels in the file's orientation (but turn TIFF upright), read all pages of a TIFF and
            floats in their range, and take the metadata along. Otherwise turn the pixels upright as EXIF says, read the
            first page, and scale floats to 0..1.

    Raises:
        NotAnImageError: no image, and not named as one.
        ValueError: truncated, corrupt, larger than Pillow's limit, or of a kind that is not read exactly; the message
            names the file and the reason.
    """
    try:
        if (remedy := _REMEDIES.get(path.suffix.lower())) is not None:
            path.stat()
            raise RefusedError(remedy)
        # From an open file: Pillow maps a path into memory, where it mixes up the sides of a turned TIFF.
        with open(path, "rb") as file:
            image = _read(path, file, as_stored)
        return image._replace(notes=[f"{path}: {note}" for note in image.notes])
    except PIL.UnidentifiedImageError:
        kind = ValueError if is_image_name(path) else NotAnImageError
        empty = path.stat().st_size == 0
        raise kind(f"{path}: {'empty file' if empty else 'not an image in a format that Pillow reads'}") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: {'link to no file' if path.is_symlink() else 'no such file'}") from None
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {str(error).split(',')[0]}; `denoise --max-megapixels` raises it") from None
    except MemoryError:
        raise ValueError(f"{path}: not enough memory to decode it") from None
    except RefusedError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # decoders of corrupt files raise almost anything: OSError, SyntaxError, struct.error...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be decoded ({reason})") from error


def write_image(path: Path, pixels: np.ndarray, like: DecodedImage) -> None:
    """Write pixels (pages * H, W, 3), or with 1 channel of a grey image, with format, metadata and alpha of `like`.

    The file is whole or not there; missing folders are made.

    Raises:
        ValueError: the format cannot be written.
        OSError: the file cannot be written.
    """
    assert pixels.dtype == like.pixels.dtype
    assert pixels.shape == (*like.pixels.shape[:2], 1 if like.grey else 3)
    if like.format not in PIL.Image.SAVE:
        raise ValueError(f"{path}: Pillow reads {like.format} but does not write it; convert the file to PNG first")
    if like.alpha is not None:
        pixels = np.concatenate([pixels, like.alpha[..., None]], axis=2)
    data = _encoded(pixels, like)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data)


def write_side_by_side(path: Path, images: Sequence[np.ndarray]) -> None:
    """Write images (H, W, 1 or 3) of one height as an 8-bit PNG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    joined = np.concatenate([to_uint8(image) for image in images], axis=1)
    with atomic_write(path) as file:
        PIL.Image.fromarray(joined[..., 0] if joined.shape[2] == 1 else joined).save(file, format="PNG")


def _read(path: Path, file: IO[bytes], as_stored: bool) -> DecodedImage:
    start = file.read(4096)
    limit = None if PIL.Image.MAX_IMAGE_PIXELS is None else 2 * PIL.Image.MAX_IMAGE_PIXELS
    pages: list[tiff.Page] = []
    if tiff.is_tiff(start[:4]):
        pages = tiff.read_pages(file)
        for_pillow = tiff.is_for_pillow(pages if as_stored else pages[:1])
        if not for_pillow:
            image = vips.read(path, "TIFF", as_stored=as_stored, pages=len(pages) if as_stored else 1, limit=limit)
            return _with_tiff_metadata(file, image) if as_stored else _first_of(len(pages), image)
    elif start[:2] in (b"P5", b"P6") and ppm.is_16_bit(start):
        file.seek(0)
        values = ppm.decode(file.read())
        return DecodedImage(
            np.broadcast_to(values, (*values.shape[:2], 3)).copy(), start[:2] == b"P5", None, "PPM", {}, []
        )
    file.seek(0)
    with PIL.Image.open(file) as opened:
        file_format = "JPEG" if opened.format == "MPO" else opened.format or ""
        _check_format(opened, start, file)
        if file_format == "PNG" and png.bit_depth(file) == 16:
            image = vips.read(path, "PNG", as_stored=as_stored, pages=1, limit=limit)
            return image._replace(metadata={"chunks": png.read_chunks(file)} if as_stored else {})
        file.seek(0)
        opened.load()
        frames = getattr(opened, "n_frames", 1)
        metadata, notes = _metadata(opened, file_format, file) if as_stored else ({}, [])
        image = _converted(opened.copy() if as_stored else PIL.ImageOps.exif_transpose(opened), file_format, metadata)
        if pages and pages[0].get(tiff.EXTRA_SAMPLES) == (1,):
            notes.append("colours divided by the transparency that they were multiplied by")
        if as_stored and opened.mode == "1":
            notes.append("1 bit of black and white converted to 8 bits of grey")
        return _first_of(frames, image._replace(notes=notes + image.notes))


def _first_of(frames: int, image: DecodedImage) -> DecodedImage:
    note = [f"only the first of {frames} pictures in the file is read"] if frames > 1 else []
    return image._replace(notes=note + image.notes)


def _check_format(opened: PIL.Image.Image, start: bytes, file: IO[bytes]) -> None:
    """Raise RefusedError for a kind of file that Pillow would not keep."""
    name = opened.format or ""
    if name in ("ICO", "CUR", "ICNS"):
        raise RefusedError("icon with a picture in several sizes; convert the one you want to PNG first")
    if name not in _FORMATS:
        raise RefusedError(f"{name} file; convert it to PNG first")
    bits = 8
    if name == "SGI":
        bits = 8 * start[3]
    elif name in ("AVIF", "JPEG2000"):
        file.seek(0)
        head = file.read(65536)
        if name == "AVIF" and (box := head.find(b"av1C")) >= 0:
            bits = 8 if not head[box + 6] & 64 else 12 if head[box + 6] & 32 else 10
        elif name == "JPEG2000" and (marker := head.find(b"\xff\x4f\xff\x51")) >= 0:
            bits = (head[marker + 42] & 127) + 1
    if bits != 8:
        raise RefusedError(f"{bits} bits of {name}, of which Pillow reads 8; convert it to 16-bit PNG or TIFF first")


def _converted(image: PIL.Image.Image, file_format: str, metadata: dict[str, Any]) -> DecodedImage:
    mode = image.mode
    if mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        return DecodedImage(np.repeat(values[..., None], 3, axis=2), True, None, file_format, metadata, [])
    if mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise RefusedError(f"pixels of mode {mode!r}; expected grey or colour of 8 or 16 bits")
    alpha, notes = None, []
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"))
    if mode == "CMYK":
        notes.append("CMYK converted to RGB")
        metadata.pop("icc_profile", None)  # it is one for CMYK
    elif mode == "YCbCr":
        notes.append("YCbCr converted to RGB")
    elif mode in ("P", "PA"):
        notes.append("colours of a palette converted to RGB")
    pixels = np.array(image.convert("RGB"))  # a copy: Pillow's own buffer is read-only
    return DecodedImage(pixels, mode in ("1", "L", "LA"), alpha, file_format, metadata, notes)


def _metadata(opened: PIL.Image.Image, file_format: str, file: IO[bytes]) -> tuple[dict[str, Any], list[str]]:
    """Return what `_encoded` needs to keep what the file says of the picture, and notes of what is dropped."""
    if file_format == "PNG":
        return {"chunks": png.read_chunks(file)}, []
    names = ("exif", "icc_profile", "dpi", "xmp", "comment")
    kept: dict[str, Any] = {name: opened.info[name] for name in names if name in opened.info}
    notes = []
    if isinstance(opened, PIL.TiffImagePlugin.TiffImageFile):
        exif = opened.getexif()
        for tag in [tag for tag in exif if tag not in _TIFF_TAGS]:
            del exif[tag]
        if tiff.tells_layout(str(exif.get(_DESCRIPTION, ""))):
            del exif[_DESCRIPTION]
            notes.append("description dropped that tells pages and shape")
        compression = opened.info.get("compression")
        if 34665 in exif or 34853 in exif:
            compression = "raw"  # Pillow cannot write EXIF and GPS into a compressed TIFF
        kept |= {"exif": exif, "compression": compression if compression in _LOSSLESS_TIFF else "tiff_adobe_deflate"}
    return kept, notes


def _with_tiff_metadata(file: IO[bytes], image: DecodedImage) -> DecodedImage:
    if _is_for_pillow(image.pixels, 1 if image.grey and image.alpha is None else 3, image.pages):
        file.seek(0)
        with PIL.Image.open(file) as opened:
            metadata, notes = _metadata(opened, "TIFF", file)
        return image._replace(metadata=metadata, notes=image.notes + notes)
    fields = image.metadata["fields"]
    notes = ["only profile, XMP, IPTC, description and resolution are kept of such a TIFF"]
    if tiff.tells_layout(fields.get("image-description", (0, ""))[1]):
        del fields["image-description"]
        notes.append("description dropped that tells pages and shape")
    return image._replace(notes=image.notes + notes)


def _is_for_pillow(pixels: np.ndarray, channels: int, pages: int) -> bool:
    return pages == 1 and (pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and channels == 1))


def _encoded(pixels: np.ndarray, like: DecodedImage) -> bytes:
    if like.format == "PPM" and pixels.dtype == np.uint16:
        return ppm.encode(pixels)
    metadata = dict(like.metadata)
    chunks = metadata.pop("chunks", None)
    if _is_for_pillow(pixels, pixels.shape[2], like.pages):
        buffer = io.BytesIO()
        image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image.save(buffer, format=like.format, **{**_SAVE_OPTIONS.get(like.format, {}), **metadata})
        data = buffer.getvalue()
    else:
        data = vips.encode(pixels, like)
    return data if chunks is None else png.with_chunks(data, chunks)
