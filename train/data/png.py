"""PNG files: their bit depth, and the chunks beside the pixels, which are copied byte by byte."""

import struct
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that describe the picture, not its storage: colour, size in print, time, texts, EXIF.
KEPT = (
    b"cICP",
    b"iCCP",
    b"sRGB",
    b"gAMA",
    b"cHRM",
    b"mDCV",
    b"cLLI",
    b"pHYs",
    b"tIME",
    b"eXIf",
    b"tEXt",
    b"zTXt",
    b"iTXt",
)
_HEADER_END = 33  # signature and IHDR


def bit_depth(file: IO[bytes]) -> int:
    """Return the bits per channel in IHDR."""
    file.seek(0)
    return file.read(_HEADER_END)[24]


def read_chunks(file: IO[bytes]) -> list[bytes]:
    """Return the whole chunks of the types KEPT, in the order of the file."""
    file.seek(len(SIGNATURE))
    chunks = []
    while len(start := file.read(8)) == 8:
        (size,) = struct.unpack(">L", start[:4])
        if start[4:] in KEPT:
            chunks.append(start + file.read(size + 4))
        else:
            file.seek(size + 4, 1)
    return chunks


def with_chunks(data: bytes, chunks: list[bytes]) -> bytes:
    """Return the PNG file `data` with these chunks instead of its own ones of the types KEPT."""
    parts, offset = [data[:_HEADER_END], *chunks], _HEADER_END
    while offset < len(data):
        (size,) = struct.unpack_from(">L", data, offset)
        end = offset + size + 12
        if data[offset + 4 : offset + 8] not in KEPT:
            parts.append(data[offset:end])
        offset = end
    return b"".join(parts)
