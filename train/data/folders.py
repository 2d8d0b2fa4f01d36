"""The images of a run: what lies in folders, or the built-in ones, decoded."""

import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from masked_swin.memory import available_memory
from masked_swin.train.data.images import DecodedImage, image_paths, read_image
from masked_swin.train.data.store import GIB, PixelStore, open_map

# The built-in images, all colour photographs or micrographs shipped inside the scikit-image wheel. The two motorcycle
# views show one scene and stay on one side of the split.
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

TRAINING_STREAM, VALIDATION_STREAM = 0, 1


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Philox generator of sample `index` (0 .. 2**64 - 1); streams never overlap."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


@dataclass
class ImageSet:
    """Decoded images, uint8 or uint16 (H, W, 3), with their names.

    `skipped` and `notes` say what was left out or changed, `checksum` is of the pixels, wherever the files lie, `place`
    says where the pixels are kept.
    """

    names: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checksum: str = ""
    place: str = ""


def load_images(
    sources: Iterable[str | Path],
    *,
    min_size: int = 1,
    map_folder: Path | None = None,
    memory: float | None = None,
) -> ImageSet:
    """Decode every image below the files and folders `sources`, in the order of their paths.

    Files that are not images, do not decode, or are smaller than `min_size` on a side are named in `skipped`. More than
    `memory` GiB (None: half of what is free) go to a file in `map_folder`, where there is one; another call with the
    same files maps it instead of decoding them again.

    Raises:
        ValueError: a source is missing, or not one image is usable (all reasons listed).
        OSError: the file in `map_folder` cannot be written.
    """
    paths = [path for source in sources for path in image_paths(Path(source))]
    key = {"min_size": min_size, "files": [_identity(path) for path in paths]}
    if map_folder is not None and (known := open_map(map_folder, key)):
        images, place, about = known
        return ImageSet(images=images, place=place, **about)
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
            checksum = _checksum(decoded.pixels, checksum)
            store.add(decoded.pixels)
        if not found.names:
            reasons = "".join(f"\n  {line}" for line in found.skipped) or "\n  the folder holds no file"
            raise ValueError(f"no usable image in {', '.join(map(str, sources))}:{reasons}")
        found.checksum = f"{len(found.names)} images, crc32 {checksum:08x}"
        about = {name: getattr(found, name) for name in ("names", "skipped", "notes", "checksum")}
        found.images, found.place = store.finish(key, about)
    return found


def _decode(paths: list[Path]) -> Iterator[tuple[Path, DecodedImage | ValueError]]:
    """Each path with its image, or the reason why there is none, in order; a few are decoded at once."""
    workers = min(8, os.cpu_count() or 1)
    rest = iter(paths)
    bar = tqdm(total=len(paths), desc="decode", unit="image", dynamic_ncols=True, leave=False, delay=2.0)
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
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _checksum(image: np.ndarray, checksum: int) -> int:
    checksum = zlib.crc32(repr(image.shape).encode(), checksum)
    return zlib.crc32(np.ascontiguousarray(image).data, checksum)


def builtin_images(names: Sequence[str]) -> ImageSet:
    """Images shipped inside scikit-image (never downloaded), by the names of BUILTIN_TRAIN and BUILTIN_HELD_OUT."""
    import skimage.data

    found = ImageSet(names=list(names))
    for name in names:
        if name.startswith("motorcycle"):
            left, right, _ = skimage.data.stereo_motorcycle()
            found.images.append(left if name == "motorcycle_left" else right)
        else:
            found.images.append(getattr(skimage.data, name)())
    checksum = 0
    for image in found.images:
        checksum = _checksum(image, checksum)
    found.checksum, found.place = f"{len(names)} images, crc32 {checksum:08x}", "built-in images"
    return found


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central part of (H, W, C), at most `size` on a side."""
    height, width = image.shape[:2]
    top, left = max(0, height - size) // 2, max(0, width - size) // 2
    return image[top : top + size, left : left + size]


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8, uint16 or float to float32 in [0, 1]."""
    scaled = image.astype(np.float32)
    return scaled / np.float32(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else scaled


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8, uint16 or float (H, W, C) to float32 (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(to_float(image), "h w c -> c h w")))


def to_array(image: Tensor) -> np.ndarray:
    """(C, H, W) tensor to a float32 array (H, W, C)."""
    return np.ascontiguousarray(rearrange(image.detach().float().cpu().numpy(), "c h w -> h w c"))
