"""Sets of decoded images: those of files and folders, or the built-in photographs."""

import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from masked_swin.memory import available_memory
from masked_swin.train.data.arrays import to_grey
from masked_swin.train.data.decoded_image import DecodedImage
from masked_swin.train.data.images import image_paths, read_image
from masked_swin.train.data.pixel_store import GIB, PixelStore, open_map
from masked_swin.train.progress import progress_bar

# Colour photographs and micrographs inside the scikit-image wheel. The two motorcycle views show one scene, so both are
# for training.
BUILTIN_TRAIN = (
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "motorcycle_left",
    "motorcycle_right",
    "retina",
    "rocket",
)
BUILTIN_HELD_OUT = ("astronaut", "chelsea")

_READER = 2  # of the pixels in a mapped file; a change of what is read raises it


@dataclass
class ImageSet:
    """Decoded images, uint8, uint16 or float32 (H, W, channels), with their names.

    `skipped` names the files left out, `notes` the changes to others, each with the reason. `checksum` depends on the
    pixels alone, not on the paths. `storage` says in words where the pixels are kept.
    """

    names: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checksum: str = ""
    storage: str = ""


def load_images(
    sources: Iterable[str | Path],
    *,
    min_size: int = 1,
    channels: int = 3,
    map_folder: Path | None = None,
    memory: float | None = None,
) -> ImageSet:
    """Decode every image of the files and folders `sources`, in the order of their paths.

    Files that are not images, do not decode, or are smaller than `min_size` on a side are named in `skipped`. Pixels of
    more than `memory` GiB (None: half of the free memory) go to a file in `map_folder`. Another call with the same
    files maps that file and decodes nothing. `channels` 1 keeps the luma alone.

    Raises:
        ValueError: a source is missing, or no image is usable (the message lists all reasons).
        OSError: the file in `map_folder` cannot be written.
    """
    paths = [path for source in sources for path in image_paths(Path(source))]
    key = {"reader": _READER, "channels": channels, "min_size": min_size, "files": [_identity(path) for path in paths]}
    if map_folder is not None and (known := open_map(map_folder, key)):
        images, storage, about = known
        return ImageSet(images=images, storage=storage, **about)
    found = ImageSet()
    with PixelStore(map_folder, available_memory() / 2 if memory is None else memory * GIB) as store:
        checksum = 0
        for path, decoded in _decode(paths):
            if isinstance(decoded, ValueError):
                found.skipped.append(str(decoded))
                continue
            height, width = decoded.pixels.shape[:2]
            if min(height, width) < min_size:
                found.skipped.append(f"{path}: {width} x {height} pixels, smaller than {min_size} x {min_size}")
                continue
            found.notes += decoded.notes
            if decoded.alpha is not None:
                found.notes.append(f"{path}: transparency dropped")
            found.names.append(str(path))
            pixels = decoded.pixels if channels == 3 else to_grey(decoded.pixels)
            checksum = _checksum(pixels, checksum)
            store.add(pixels)
        if not found.names:
            reasons = "".join(f"\n  {line}" for line in found.skipped) or "\n  the folder holds no file"
            raise ValueError(f"no usable image in {', '.join(map(str, sources))}:{reasons}")
        found.checksum = f"{len(found.names)} images, crc32 {checksum:08x}"
        about = {name: getattr(found, name) for name in ("names", "skipped", "notes", "checksum")}
        found.images, found.storage = store.finish(key, about)
    return found


def _decode(paths: list[Path]) -> Iterator[tuple[Path, DecodedImage | ValueError]]:
    """Yield each path with its image or the reason why there is none, in order; several are decoded at once."""
    workers = min(8, os.cpu_count() or 1)
    rest = iter(paths)
    bar = progress_bar(total=len(paths), description="decode", unit="image", leave=False, delay=2.0)
    with bar, ThreadPoolExecutor(workers) as pool:
        while chunk := list(itertools.islice(rest, 2 * workers)):
            for path, decoded in zip(chunk, pool.map(_try_read, chunk), strict=True):
                yield path, decoded
                bar.update()


def _try_read(path: Path) -> DecodedImage | ValueError:
    try:
        return read_image(path)
    except ValueError as error:
        return error


def _identity(path: Path) -> list[str | int]:
    if not path.exists():  # a link to no file
        return [str(path)]
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _checksum(image: np.ndarray, checksum: int) -> int:
    checksum = zlib.crc32(repr(image.shape).encode(), checksum)
    return zlib.crc32(np.ascontiguousarray(image).data, checksum)


def builtin_images(names: Sequence[str], *, channels: int = 3) -> ImageSet:
    """Return images shipped inside scikit-image, by the names of BUILTIN_TRAIN and BUILTIN_HELD_OUT; no download."""
    import skimage.data

    found = ImageSet(names=list(names))
    for name in names:
        if name.startswith("motorcycle"):
            left, right, _ = skimage.data.stereo_motorcycle()
            found.images.append(left if name == "motorcycle_left" else right)
        else:
            found.images.append(getattr(skimage.data, name)())
    if channels == 1:
        found.images = [to_grey(image) for image in found.images]
    checksum = 0
    for image in found.images:
        checksum = _checksum(image, checksum)
    found.checksum, found.storage = f"{len(names)} images, crc32 {checksum:08x}", "built-in images"
    return found
