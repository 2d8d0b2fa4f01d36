"""TIFF files: which are read exactly, how, and which descriptions tell their layout.

Tags and values: TIFF 6.0, and DNG 1.7 for DNGVersion.
"""

import struct
from typing import IO

from masked_swin.train.data.decoded_image import RefusedError

Page = dict[int, tuple[int, ...]]  # the integer tags of one picture in the file

SUBFILE_TYPE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES = 254, 256, 257, 258, 262, 274, 277
EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 338, 339, 50706
RAW_FILE = "raw file of a camera; develop it first, to a 16-bit TIFF for example"
_MAX_PAGES = 10_000
_TYPES = {1: "B", 3: "H", 4: "L", 16: "Q"}  # bytes and unsigned integers
_COLOURS = {0: "grey (white is 0)", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_COLOURS |= {9: "ICCLAB", 10: "ITULAB", 32803: "sensor mosaic", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"}
# By photometric interpretation: bits of unsigned samples that Pillow reads exactly; bits and SampleFormat that libvips
# does.
_BY_PILLOW = {0: (1, 2, 4, 8), 1: (1, 2, 4, 8), 2: (8,), 3: (1, 2, 4, 8), 5: (8,), 6: (8,)}
_BY_VIPS = {0: [(16, 1)], 1: [(16, 1), (32, 3)], 2: [(16, 1), (32, 3)]}


def is_tiff(start: bytes) -> bool:
    """Tell it from the first 4 bytes of a file."""
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(file: IO[bytes]) -> list[Page]:
    """Read the integer tags of each page of a classic or a big TIFF.

    Raises:
        RefusedError: a raw file.
        struct.error: torn.
    """
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    if start[8:10] == b"CR":
        raise RefusedError(RAW_FILE)
    (offset,) = struct.unpack(order + ("Q" if big else "L"), start[8:16] if big else start[4:8])
    pages: list[Page] = []
    seen: set[int] = set()
    while offset and offset not in seen and len(pages) < _MAX_PAGES:
        seen.add(offset)
        page, offset = _read_page(file, offset, order, big)
        pages.append(page)
    if not pages:
        raise struct.error("no picture in it")
    if DNG_VERSION in pages[0]:
        raise RefusedError(RAW_FILE)
    return pages


def is_for_pillow(pages: list[Page]) -> bool:
    """Check a file that is read as stored; tell whether Pillow is to decode it, else libvips.

    Raises:
        RefusedError: outside of what is read exactly.
    """
    first = pages[0]
    bits, sample_format = first.get(BITS, (1,)), first.get(SAMPLE_FORMAT, (1,))
    photometric, samples = _one(first, PHOTOMETRIC, 1), _one(first, SAMPLES, 1)
    if _one(first, SUBFILE_TYPE, 0) & 1 or photometric in (32803, 34892):
        raise RefusedError(RAW_FILE)  # the first picture is a preview, or the sensor's values
    colours = _COLOURS.get(photometric, f"photometric interpretation {photometric}")
    if len(set(bits)) > 1 or len(set(sample_format)) > 1:
        raise RefusedError(f"channels of different types, {bits} bits; expected one type")
    decodes = sample_format[0] == 1 and bits[0] in _BY_PILLOW.get(photometric, ())
    if not decodes and (bits[0], sample_format[0]) not in _BY_VIPS.get(photometric, ()):
        types = {1: "unsigned", 2: "signed", 3: "float"}.get(sample_format[0], "unknown")
        raise RefusedError(
            f"{colours} of {bits[0]} {types} bits; expected grey or RGB of 8 or 16 unsigned or 32 float bits"
        )
    colour_samples = {2: 3, 5: 4, 6: 3}.get(photometric, 1)
    if samples - colour_samples > 1 or samples < colour_samples:
        raise RefusedError(f"{samples} channels of {colours}; expected {colour_samples}, or one more for transparency")
    if samples > colour_samples:
        kind = _one(first, EXTRA_SAMPLES, 0)
        if kind != 2 and not (kind == 1 and photometric == 2 and decodes):
            kinds = {0: "a channel of unknown meaning", 1: "transparency that its colours are multiplied by"}
            raise RefusedError(
                f"{colours} and {kinds.get(kind, 'a channel of unknown meaning')}; expected transparency"
            )
    if len(pages) == 1:
        return decodes
    if photometric not in (0, 1, 2) or bits[0] < 8:
        raise RefusedError(f"{len(pages)} pages of {colours}, {bits[0]} bits; split it into single files")
    layout = [(WIDTH, (0,)), (HEIGHT, (0,)), (BITS, (1,)), (PHOTOMETRIC, (1,)), (SAMPLES, (1,)), (SAMPLE_FORMAT, (1,))]
    for number, page in enumerate(pages[1:], start=2):
        if any(page.get(tag, default) != first.get(tag, default) for tag, default in layout):
            raise RefusedError(f"page {number} of {len(pages)} is of another size or type; split it into single files")
    if any(_one(page, ORIENTATION, 1) != 1 for page in pages):
        raise RefusedError(f"{len(pages)} pages with an orientation; split it into single files")
    return False


def tells_layout(description: str) -> bool:
    """Tell whether an ImageDescription is a program's note of pages and shape, wrong for any other file."""
    start = description.lstrip("\ufeff \n\r\t")
    return start.startswith(("ImageJ=", '{"shape":', '{"axes":')) or "<OME" in start[:2000]


def _one(page: Page, tag: int, default: int) -> int:
    return page.get(tag, (default,))[0]


def _read_page(file: IO[bytes], offset: int, order: str, big: bool) -> tuple[Page, int]:
    count_format, entry, field = ("Q", 20, 8) if big else ("H", 12, 4)
    file.seek(offset)
    (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
    if count > 4096:
        raise struct.error(f"{count} tags")
    entries = file.read(count * entry)
    (following,) = struct.unpack(order + ("Q" if big else "L"), file.read(field))
    page: Page = {}
    for start in range(0, count * entry, entry):
        tag, kind = struct.unpack_from(order + "HH", entries, start)
        (number,) = struct.unpack_from(order + ("Q" if big else "L"), entries, start + 4)
        code = _TYPES.get(kind)
        if code is None or number > 64:
            if tag == DNG_VERSION:
                page[tag] = ()
            continue
        size = struct.calcsize(order + code) * number
        value = entries[start + entry - field : start + entry]
        if size > field:
            (where,) = struct.unpack(order + ("Q" if big else "L"), value)
            file.seek(where)
            value = file.read(size)
        page[tag] = struct.unpack(f"{order}{number}{code}", value[:size])
    return page, following
