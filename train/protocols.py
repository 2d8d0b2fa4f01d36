"""The protocols of `masked-swin evaluate`: PROTOCOLS is the table. docs/protocols.md is the page about it.

A protocol says which noises are added to which images, how the noisy image is given to a network, and what is measured.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import convolve

from masked_swin.inference import AttentionMask
from masked_swin.train.data import Level, Spec, label, noisy_copy, strength

ProtocolName = Literal["default", "public", "paper", "clip"]
Noisy = Callable[[np.ndarray, str, str, Level, int], np.ndarray]  # (pixels, image's name, noise, level, seed)

IMAGE_SETS = ("CBSD68", "McMaster", "Kodak24", "Urban100")
_OTHER_NAMES = {"mcm": "McMaster", "mcm18": "McMaster", "mcmaster18": "McMaster", "kodak": "Kodak24"}


@dataclass(frozen=True)
class Protocol:
    """What `evaluate` does by this name.

    `noises`: those of the protocol; empty if the user names them, or gives noisy images. `noisy` makes a noisy image of
    uint8 (H, W, C): uint8, or float32 that may lie outside [0, 1]. `image_sets`: names of its sets of clean images.
    `padding`: how the whole image is extended for the network, down and to the right; None: the image goes through
    `denoise`, in tiles if it is large. `attention_mask`: unless the user chooses one. `rounded`: images are rounded to
    8 bits before they are measured, else only clipped. `border`: pixels left out of the measures on each side.
    `measures`: columns of scores. `bgr`: LPIPS gets blue, green and red in this order. `reads_grey_as_colour`: a grey
    image is three equal channels, with noise of their own.
    """

    noises: tuple[Spec, ...] = ()
    noisy: Noisy = noisy_copy
    image_sets: tuple[str, ...] = ()
    padding: Callable[[np.ndarray, int], np.ndarray] | None = None
    attention_mask: AttentionMask = "average"
    rounded: bool = True
    border: int = 1
    measures: tuple[str, ...] = ("psnr", "ssim", "psnr_y", "ssim_y", "lpips")
    bgr: bool = False
    reads_grey_as_colour: bool = False


def public_padding(image: np.ndarray, window: int) -> np.ndarray:
    """Mirror (H, W, C) at the bottom and right, edge included, up to (H // window + 1) * window.

    The public test code does it so: an image whose size is a multiple of the window gets a whole window more.
    """
    height, width = image.shape[:2]
    image = np.concatenate([image, image[::-1]])[: (height // window + 1) * window]
    return np.concatenate([image, image[:, ::-1]], axis=1)[:, : (width // window + 1) * window]


def padding_to_32(image: np.ndarray, window: int) -> np.ndarray:
    """Mirror (H, W, C) at the bottom and right without the edge, up to multiples of 32 whatever the window."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % 32), (0, -width % 32), (0, 0)), mode="reflect")


def clip_noise(pixels: np.ndarray, name: str, noise: str, level: Level, seed: int) -> np.ndarray:
    """Make the noisy image of CLIPDenoising's test script from uint8 (H, W, 3): float32, bit by bit the script's.

    Every image starts from NumPy's legacy generator with this seed, whatever its name. Poisson noise is clipped to
    [0, 1], the others are not. The script computes Poisson in float32, which differs in the last bits from the same
    formula in `degradations`.
    """
    clean = pixels.astype(np.float32) / np.float32(255)
    random, value = np.random.RandomState(seed), strength(noise, level)
    if noise == "poisson":
        scale = 2.0 ** np.ceil(np.log2(np.unique(pixels).size))
        counts = random.poisson(clean.astype(np.float64) * scale)
        deviation = (counts / scale).astype(np.float32) - clean
        return np.clip(clean + deviation * np.float32(value), np.float32(0), np.float32(1))
    field = random.normal(0, value / 255, clean.shape)
    if noise == "correlated":
        mean = np.ones((3, 3)) / 9
        # SciPy's default border repeats the edge pixel.
        field = np.stack([convolve(field[..., channel], mean) for channel in range(field.shape[2])], axis=2)
    return (clean + field).astype(np.float32)


_PUBLIC = Protocol(padding=public_padding, attention_mask="random", bgr=True)

PROTOCOLS: dict[ProtocolName, Protocol] = {
    "default": Protocol(),
    "public": _PUBLIC,
    # The measures of the public code, on all noises that the article names; it gives neither levels nor a seed.
    "paper": replace(
        _PUBLIC,
        noises=(
            ("gaussian", 1),
            *(
                (noise, level)
                for noise in (
                    *("poisson", "speckle", "salt_pepper", "correlated", "mixture"),
                    *("monte_carlo", "camera"),
                )
                for level in (1, 2, 3, 4)
            ),
        ),
        image_sets=IMAGE_SETS,
    ),
    # The public test script of CLIPDenoising (CVPR 2024), Denoising/test_synthetic_denoising.py.
    "clip": Protocol(
        noises=(
            *(("gaussian", f"sigma={sigma}") for sigma in (15, 25, 50)),
            *(("correlated", f"sigma={sigma}") for sigma in (40, 45, 50, 55)),
            *(("poisson", f"alpha={alpha}") for alpha in (2, 2.5, 3, 3.5)),
        ),
        noisy=clip_noise,
        image_sets=IMAGE_SETS,
        padding=padding_to_32,
        attention_mask="random",
        rounded=False,
        border=0,
        measures=("psnr", "ssim"),
        reads_grey_as_colour=True,
    ),
}


def select_noises(name: ProtocolName, text: str | None) -> list[Spec]:
    """Return those noises of a protocol that `text` names, by noise or by noise and level; None: all.

    Raises:
        ValueError: the protocol has no such noise.
    """
    own = PROTOCOLS[name].noises
    found: list[Spec] = []
    for part in (text or "all").replace(" ", "").split(","):
        chosen = [spec for spec in own if part in ("all", spec[0], label(spec))]
        if not chosen:
            levels = {noise: "|".join(str(level) for other, level in own if other == noise) for noise, _ in own}
            known = ", ".join(f"{noise}:{text}" for noise, text in levels.items())
            raise ValueError(f"noise {part!r}: protocol {name} has {known}; name some of these, with or without level")
        found += chosen
    return list(dict.fromkeys(found))


def find_image_sets(name: ProtocolName, sources: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of clean images by their set's name, and the names of the protocol's sets that are not there.

    A source is the folder of a set, or holds such folders under the names of the protocol's sets. Capitals and
    punctuation in names do not matter. Any other folder is a set of its own, called as the user wrote it.

    Raises:
        ValueError: a source is missing, or a set is given twice.
    """
    own = PROTOCOLS[name].image_sets
    found: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise ValueError(f"{source}: no such file or folder; give folders of clean images, or one that holds them")
        inside = _named_sets(sorted(source.iterdir()), own) if source.is_dir() else []
        for set_name, folder in inside or _named_sets([source], own) or [(str(source), source)]:
            if set_name in found:
                raise ValueError(f"image set {set_name}: given twice, as {found[set_name]} and {folder}; give one")
            found[set_name] = folder
    return found, [set_name for set_name in own if set_name not in found]


def _named_sets(folders: Iterable[Path], own: Sequence[str]) -> list[tuple[str, Path]]:
    names = {set_name.lower(): set_name for set_name in own} | _OTHER_NAMES
    plain = ((folder, "".join(c for c in folder.resolve().name.lower() if c.isalnum())) for folder in folders)
    return [(names[text], folder) for folder, text in plain if text in names and folder.is_dir()]
