"""Pairs of a noisy and a clean image, of folders with the same names."""

import math
from collections.abc import Sequence
from pathlib import Path

from masked_swin.train.data.image_set import ImageSet, load_images
from masked_swin.train.data.images import image_paths, is_image_name


def load_pairs(
    clean: Sequence[str | Path],
    noisy: Sequence[str | Path],
    *,
    min_size: int = 1,
    channels: int = 3,
    map_folder: Path | None = None,
    memory: float | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Load the images of the folders `clean`, and those of `noisy` with the same names below them.

    The endings of the names may differ. The first folder of one belongs to the first of the other, and so on. Pairs
    smaller than `min_size` are named in `skipped`. The other arguments are those of `load_images`; half of `memory` is
    for each.

    Raises:
        ValueError: an image without its pair, a pair of two sizes, or one that does not decode.
    """
    if len(clean) != len(noisy):
        raise ValueError(
            f"expected one folder of noisy images for each of clean ones, got {len(noisy)} and {len(clean)}: "
            "the images of each pair have the same name"
        )
    matched: list[tuple[Path, Path]] = []
    for clean_source, noisy_source in zip(map(Path, clean), map(Path, noisy), strict=True):
        matched += _matched(clean_source, noisy_source)
    limit = None if memory is None else memory / 2
    sets = []
    for which, paths in (("clean", [pair[0] for pair in matched]), ("noisy", [pair[1] for pair in matched])):
        folder = None if map_folder is None else map_folder / f"{which}-pairs"
        if folder is not None and limit != math.inf:  # the others of several processes write nothing
            folder.mkdir(parents=True, exist_ok=True)
        found = load_images(paths, channels=channels, map_folder=folder, memory=limit)
        if folder is not None and limit != math.inf and not any(folder.iterdir()):
            folder.rmdir()
        if found.skipped:
            more = f" and {len(found.skipped) - 5} more" if len(found.skipped) > 5 else ""
            raise ValueError(
                f"images of pairs that cannot be used: {'; '.join(found.skipped[:5])}{more}; remove both of each pair"
            )
        sets.append(found)
    return _checked(sets[0], sets[1], min_size)


def _matched(clean: Path, noisy: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of files with one name."""
    named: list[dict[str, Path]] = []
    for source in (clean, noisy):
        root = source if source.is_dir() else source.parent
        paths = [path for path in image_paths(source) if is_image_name(path)]
        names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
        if not source.is_dir():
            names = ["" for _ in names]  # two files are a pair whatever their names
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"{source}: several images named {doubled[0]}; a pair needs one name for one image")
        named.append(dict(zip(names, paths, strict=True)))
    clean_names, noisy_names = named
    for here, there, where in ((clean_names, noisy_names, noisy), (noisy_names, clean_names, clean)):
        missing = [str(path) for name, path in here.items() if name not in there]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(
                f"no image of the same name in {where} for {', '.join(missing[:5])}{more}; "
                "the images of a pair have the same name, and may differ in its ending"
            )
    return [(path, noisy_names[name]) for name, path in clean_names.items()]


def _checked(clean: ImageSet, noisy: ImageSet, min_size: int) -> tuple[ImageSet, ImageSet]:
    kept = []
    for index, (a, b) in enumerate(zip(clean.images, noisy.images, strict=True)):
        if a.shape != b.shape:
            sizes = " and ".join(f"{image.shape[1]} x {image.shape[0]}" for image in (a, b))
            raise ValueError(
                f"{clean.names[index]} and {noisy.names[index]}: {sizes} pixels; expected the same size of both"
            )
        if min(a.shape[:2]) < min_size:
            size = f"{a.shape[1]} x {a.shape[0]} pixels, smaller than {min_size} x {min_size}"
            clean.skipped.append(f"{clean.names[index]} and its pair: {size}")
        else:
            kept.append(index)
    if not kept:
        raise ValueError(f"no usable pair: {'; '.join(clean.skipped[:5]) or 'the folders hold no image'}")
    for found in (clean, noisy):
        found.names = [found.names[index] for index in kept]
        found.images = [found.images[index] for index in kept]
    return clean, noisy
