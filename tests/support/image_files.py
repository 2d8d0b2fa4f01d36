"""Image files of every kind that a folder may hold, good and bad."""

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import tifffile

BAD = ("corrupt.png", "empty.png", "float.tif", "huge.png", "pretender.jpg", "torn.jpg", "truncated.png")
NO_IMAGES = ("empty.txt", "notes.txt")


def picture(height: int = 24, width: int = 32, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """Random (height, width, 3) over the whole range of the dtype."""
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, 3))
    return values.astype(dtype)


def write_pair(folder: Path) -> Path:
    """The folder, made with the pictures a.png and b.png."""
    folder.mkdir()
    for seed, name in enumerate("ab"):
        PIL.Image.fromarray(picture(seed=seed)).save(folder / f"{name}.png")
    return folder


def write_photos(folder: Path) -> Path:
    """The folder, made with colour.png, grey.tif and trip/photo.JPG."""
    (folder / "trip").mkdir(parents=True)
    colour = PIL.Image.fromarray(picture(21, 30))
    colour.save(folder / "colour.png")
    colour.save(folder / "trip" / "photo.JPG", format="JPEG")
    colour.convert("L").save(folder / "grey.tif")
    return folder


def write_bad_files(folder: Path) -> None:
    """The files BAD and NO_IMAGES."""
    image = PIL.Image.fromarray(picture())
    image.save(folder / "truncated.png")
    whole = (folder / "truncated.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[:300])
    corrupt = bytearray(whole)
    corrupt[len(corrupt) // 2] ^= 0xFF
    (folder / "corrupt.png").write_bytes(corrupt)
    image.save(folder / "torn.jpg")
    (folder / "torn.jpg").write_bytes((folder / "torn.jpg").read_bytes()[:700])
    PIL.Image.fromarray(np.full((24, 32), np.nan, dtype=np.float32)).save(folder / "float.tif")
    (folder / "pretender.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "empty.txt").touch()
    write_bomb(folder / "huge.png", 100_000, 100_000)


def write_bomb(path: Path, width: int, height: int) -> None:
    """A PNG of a few bytes that says it is this large."""
    _write_png(path, struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"\0" * 100)


def write_deep(path: Path, pixels: np.ndarray) -> None:
    """uint16 (H, W, C) as 16 bits per channel, without the library that the package uses for it."""
    height, width, channels = pixels.shape
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if channels >= 3 else "minisblack")
        return
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    _write_png(path, struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0), rows)


def _write_png(path: Path, header: bytes, rows: bytes) -> None:
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
