"""Images in memory, and training batches that are a pure function of (seed, step).

Every training sample has a global id, step * batch_size + its place in the batch, and is drawn from a counter-based
generator keyed (seed, id): resuming needs the step only, and neither batching nor splitting a batch over processes
changes a sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from einops import rearrange
from torch import Tensor

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

TRAINING_STREAM, VALIDATION_STREAM, DROP_PATH_STREAM = 0, 1, 2


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """Philox generator of sample `index` (0 .. 2**64 - 1); streams never overlap."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


@dataclass
class ImageSet:
    """Decoded images, uint8 (H, W, 3), with their names; `skipped` and `notes` say what was left out or changed."""

    names: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class DecodedImage(NamedTuple):
    pixels: np.ndarray  # uint8 (H, W, 3)
    grey: bool
    format: str
    notes: list[str]


def read_image(path: Path) -> DecodedImage:
    """Any Pillow format as 8-bit RGB, upright as EXIF says; grey is expanded, alpha dropped, 16 bits rounded (noted).

    Raises:
        ValueError: not an image, truncated or corrupt, or of float or 32-bit pixels; the message names the file.
    """
    notes = []
    try:
        with PIL.Image.open(path) as opened:
            file_format = opened.format or ""
            opened.load()
            image = PIL.ImageOps.exif_transpose(opened)
    except PIL.UnidentifiedImageError:
        reason = "empty file" if path.stat().st_size == 0 else "not an image in a format that Pillow reads"
        raise ValueError(f"{path}: {reason}") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # decoders of corrupt files raise almost anything: OSError, SyntaxError, struct.error...
        raise ValueError(f"{path}: cannot be decoded ({error})") from error
    if image.mode in ("I", "F"):
        raise ValueError(f"{path}: pixels of mode {image.mode!r}; expected 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        notes.append(f"{path}: 16 bits per channel rounded to 8")
        values = np.asarray(image, dtype=np.float64)
        image = PIL.Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        notes.append(f"{path}: transparency dropped")
        image = image.convert("RGBA")
    grey = image.mode in ("1", "L", "LA")
    pixels = np.array(image.convert("RGB"))  # a copy: Pillow's own buffer is read-only
    return DecodedImage(pixels, grey, file_format, notes)


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


def load_images(sources: Iterable[str | Path], *, min_size: int = 1) -> ImageSet:
    """Decode every image below the files and folders `sources`.

    Files that are not images, do not decode, or are smaller than `min_size` on a side are named in `skipped`.

    Raises:
        ValueError: a source is missing, or not one image is usable (all reasons listed).
    """
    found = ImageSet()
    for path in (path for source in sources for path in image_paths(Path(source))):
        try:
            decoded = read_image(path)
        except ValueError as error:
            found.skipped.append(str(error))
            continue
        height, width = decoded.pixels.shape[:2]
        if min(height, width) < min_size:
            found.skipped.append(f"{path}: {width} x {height} pixels, smaller than {min_size} x {min_size}")
            continue
        found.notes += decoded.notes
        found.names.append(str(path))
        found.images.append(decoded.pixels)
    if not found.images:
        reasons = "".join(f"\n  {line}" for line in found.skipped) or "\n  the folder holds no file"
        raise ValueError(f"no usable image in {', '.join(map(str, sources))}:{reasons}")
    return found


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
    return found


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central part of (H, W, C), at most `size` on a side."""
    height, width = image.shape[:2]
    top, left = max(0, height - size) // 2, max(0, width - size) // 2
    return image[top : top + size, left : left + size]


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 or float (H, W, C) to float32 (C, H, W) in [0, 1]."""
    scaled = image.astype(np.float32) / 255 if image.dtype == np.uint8 else image.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(rearrange(scaled, "h w c -> c h w")))


def to_array(image: Tensor) -> np.ndarray:
    """(C, H, W) tensor to a float32 array (H, W, C)."""
    return np.ascontiguousarray(rearrange(image.detach().float().cpu().numpy(), "c h w -> h w c"))


class Batch(NamedTuple):
    clean: Tensor  # (B, C, P, P) float32 in [0, 1]
    noisy: Tensor  # the same plus Gaussian noise, clipped
    sample: Tensor  # (B,) int64 global sample ids


class PatchSampler:
    """Random crops, one of 8 flips and rotations each, with Gaussian noise of `sigma` (8-bit units)."""

    def __init__(
        self, images: Sequence[np.ndarray], *, patch_size: int, batch_size: int, sigma: float, seed: int
    ) -> None:
        small = [index for index, image in enumerate(images) if min(image.shape[:2]) < patch_size]
        if small or not images:
            raise ValueError(
                f"patch size {patch_size}: expected at least one image and none smaller, images {small} are smaller; "
                "leave them out or choose a smaller patch"
            )
        self.images = images
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.sigma = sigma
        self.seed = seed

    def batch(self, step: int) -> Batch:
        """The batch of `step`, always the same for the same seed, images and sizes."""
        first = step * self.batch_size
        samples = range(first, first + self.batch_size)
        pairs = [self._sample(index) for index in samples]
        clean, noisy = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
        return Batch(clean, noisy, torch.tensor(samples, dtype=torch.int64))

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        random = generator(self.seed, index, TRAINING_STREAM)
        image = self.images[int(random.integers(len(self.images)))]
        size = self.patch_size
        top = random.integers(image.shape[0] - size + 1)
        left = random.integers(image.shape[1] - size + 1)
        patch = image[top : top + size, left : left + size]
        quarter_turns, mirrored = divmod(int(random.integers(8)), 2)
        patch = np.rot90(patch[:, ::-1] if mirrored else patch, quarter_turns)
        clean = np.ascontiguousarray(patch.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
        noise = random.standard_normal(clean.shape, dtype=np.float32) * np.float32(self.sigma / 255)
        return clean, np.clip(clean + noise, 0, 1)
