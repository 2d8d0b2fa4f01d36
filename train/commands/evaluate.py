"""`masked-swin evaluate`: PSNR, SSIM and LPIPS of folders of results, or of what a network makes of noisy images."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from masked_swin import MaskedSwinIR, denoise
from masked_swin.storage import atomic_write
from masked_swin.tiling import tile_for_memory
from masked_swin.train.commands.denoise import DenoiseOptions, denoise_pixels, fingerprint
from masked_swin.train.commands.noise import Spec, named_images, noisy_copy
from masked_swin.train.data.images import DecodedImage, NotAnImageError, read_image
from masked_swin.train.metrics import psnr, ssim
from masked_swin.train.perceptual import Lpips

Protocol = Literal["default", "public"]
SCORES_FILE, SUMMARY_FILE = "images.csv", "summary.json"
MEASURES = ("psnr", "ssim", "psnr_y", "ssim_y", "lpips")


class Score(NamedTuple):
    """One image under one noise; `kind` is "noisy", "denoised" or, of a folder of results, "result"."""

    noise: str
    image: str
    kind: str
    psnr: float
    ssim: float
    psnr_y: float
    ssim_y: float
    lpips: float | None


@dataclass
class Evaluation:
    """The scores, images of which there is no score with the reason, and what else should be known."""

    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def means(self) -> list[dict[str, Any]]:
        """The mean of each measure over the images, for each noise and kind, in the order of their appearance."""
        rows = []
        for noise, kind in dict.fromkeys((score.noise, score.kind) for score in self.scores):
            group = [score for score in self.scores if (score.noise, score.kind) == (noise, kind)]
            columns = {name: [getattr(score, name) for score in group] for name in MEASURES}
            means = {
                name: None if None in values else float(np.mean([value for value in values if value is not None]))
                for name, values in columns.items()
            }
            rows.append({"noise": noise, "kind": kind, "images": len(group), **means})
        return rows


def evaluate_results(clean: Path, folders: Iterable[Path], *, protocol: Protocol, lpips: Lpips) -> Evaluation:
    """Score the images of each folder against the clean ones of the same name (their endings may differ).

    Raises:
        ValueError: a folder is missing or holds no file.
    """
    evaluation = Evaluation()
    targets = named_images(clean)
    for folder in folders:
        for name, target, image in _pairs(targets, folder, evaluation):
            _score(evaluation, (str(folder), name, "result"), image, target, protocol, lpips)
    return evaluation


def evaluate_network(
    model: MaskedSwinIR | None,
    clean: Path,
    noisy: Iterable[Path],
    specs: Iterable[Spec],
    *,
    seed: int,
    options: DenoiseOptions,
    protocol: Protocol,
    lpips: Lpips,
) -> Evaluation:
    """Score noisy images, and what the network (None: nothing) makes of them.

    They are those of the folders `noisy`, paired by name, and of the noises `specs`, the same pixels as from
    `masked-swin noise` with this seed. With the protocol "public" images are padded as the public test code does it and
    seen by the network in one piece; else as `masked-swin denoise` does it.

    Raises:
        ValueError: a folder is missing or holds no file.
    """
    evaluation = Evaluation()
    targets = named_images(clean)
    specs = list(specs)
    total = len(targets) * (len(specs) + len(noisy := list(noisy)))
    with tqdm(total=total, desc="evaluate", unit="image", dynamic_ncols=True) as bar:
        for noise, name, target, image in _noisy_images(targets, noisy, specs, seed, evaluation):
            bar.update()
            _score(evaluation, (noise, name, "noisy"), image, target, protocol, lpips)
            if model is not None:
                try:
                    pixels = _denoised(model, image, options, protocol)
                except (ValueError, RuntimeError) as error:  # RuntimeError: torch out of memory
                    evaluation.failures.append(f"{name}, {noise}: {error}")
                    continue
                _score(evaluation, (noise, name, "denoised"), pixels, target, protocol, lpips)
    return evaluation


def write_evaluation(evaluation: Evaluation, folder: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Write images.csv, a line for each score, and summary.json, the means and the settings.

    Raises:
        ValueError: the folder holds an evaluation already, and not `overwrite`.
    """
    check_output(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Score._fields)
    writer.writerows(evaluation.scores)
    with atomic_write(folder / SCORES_FILE) as file:
        file.write(table.getvalue().encode())
    summary = {
        "settings": {**settings, "versions": {name: version(name) for name in ("masked-swin", "torch", "numpy")}},
        "means": [{name: _json(value) for name, value in row.items()} for row in evaluation.means()],
        "failures": evaluation.failures,
    }
    with atomic_write(folder / SUMMARY_FILE) as file:
        file.write((json.dumps(summary, indent=1) + "\n").encode())


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where an evaluation would be overwritten that should not be."""
    if not overwrite and (folder / SCORES_FILE).exists():
        raise ValueError(f"{folder / SCORES_FILE} is there; choose another output folder, or give --overwrite")


def settings_of(model: MaskedSwinIR | None, options: DenoiseOptions, protocol: Protocol, seed: int) -> dict[str, Any]:
    """What a summary says of how its numbers came about."""
    network = None if model is None else {"sha256": fingerprint(model), **asdict(options)}
    return {"protocol": protocol, "noise_seed": seed, "network": network}


def table(rows: list[dict[str, Any]]) -> str:
    """The means as aligned text; LPIPS only where there is one."""
    measured = [name for name in MEASURES if any(row[name] is not None for row in rows)]
    digits = {"psnr": 2, "psnr_y": 2}
    lines = [["noise", "", "images", *measured]]
    for row in rows:
        values = [f"{row[name]:.{digits.get(name, 4)}f}" for name in measured]
        lines.append([row["noise"], row["kind"], str(row["images"]), *values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = (
        [*(c.ljust(w) for c, w in zip(line[:2], widths, strict=False)), *map(str.rjust, line[2:], widths[2:])]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _json(value: Any) -> Any:
    """JSON has no infinity, which the PSNR of equal images is."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _pairs(
    targets: dict[str, Path], folder: Path, evaluation: Evaluation
) -> Iterator[tuple[str, np.ndarray, DecodedImage]]:
    """Name, clean pixels, image of the folder; what is missing or of another size is a failure."""
    images = named_images(folder)
    strangers = [str(path) for name, path in images.items() if name not in targets and path.name != "manifest.json"]
    if strangers:
        evaluation.notes.append(f"no clean image for {', '.join(strangers[:5])}{', ...' if len(strangers) > 5 else ''}")
    for name, path in targets.items():
        target = _read(path, evaluation)
        if target is None:
            continue
        if name not in images:
            evaluation.failures.append(f"{path}: no image {name} in {folder}")
            continue
        image = _read(images[name], evaluation)
        if image is None:
            continue
        if image.pixels.shape != target.pixels.shape:
            sizes = (f"{one.pixels.shape[1]} x {one.pixels.shape[0]}" for one in (image, target))
            evaluation.failures.append(f"{images[name]}: of another size than {path} ({' and '.join(sizes)})")
            continue
        yield name, target.eight_bit, image


def _noisy_images(
    targets: dict[str, Path], folders: list[Path], specs: list[Spec], seed: int, evaluation: Evaluation
) -> Iterator[tuple[str, str, np.ndarray, DecodedImage]]:
    for folder in folders:
        for name, target, image in _pairs(targets, folder, evaluation):
            yield str(folder), name, target, image
    for name, path in targets.items() if specs else ():
        decoded = _read(path, evaluation)
        if decoded is None:
            continue
        clean = decoded.eight_bit
        for noise, level in specs:
            noisy = noisy_copy(clean[..., :1] if decoded.grey else clean, name, noise, level, seed)
            pixels = np.ascontiguousarray(np.broadcast_to(noisy, clean.shape))
            yield f"{noise}:{level}", name, clean, decoded._replace(pixels=pixels)


def _read(path: Path, evaluation: Evaluation) -> DecodedImage | None:
    try:
        return read_image(path)
    except NotAnImageError as error:
        evaluation.notes.append(f"skipped {error}")
    except ValueError as error:
        evaluation.failures.append(str(error))
    return None


def _denoised(model: MaskedSwinIR, image: DecodedImage, options: DenoiseOptions, protocol: Protocol) -> DecodedImage:
    if protocol == "default":
        tile = options.tile or tile_for_memory(model.config, next(model.parameters()).device)
        restored = denoise_pixels(model, image, options, tile=tile)
        return image._replace(pixels=np.ascontiguousarray(np.broadcast_to(restored, image.pixels.shape)))
    weight = next(model.parameters())
    x = torch.from_numpy(image.eight_bit.astype(np.float32) / 255).permute(2, 0, 1)[None].to(weight.device)
    height, width = x.shape[-2:]
    y = denoise(
        model,
        public_padding(x, model.config.window_size),
        attention_mask=options.attention_mask,
        average=options.average,
        seed=options.seed,
    )
    restored = y[0, :, :height, :width].permute(1, 2, 0).cpu().numpy()
    return image._replace(pixels=np.round(restored * 255).astype(np.uint8))


def public_padding(image: Tensor, window: int) -> Tensor:
    """(B, C, H, W) mirrored at the bottom and right, the edge included, up to (H // window + 1) * window: as the public
    test code does it, a whole window more where the image fits already."""
    height, width = image.shape[-2:]
    image = torch.cat([image, image.flip(2)], 2)[:, :, : (height // window + 1) * window]
    return torch.cat([image, image.flip(3)], 3)[..., : (width // window + 1) * window]


def _score(
    evaluation: Evaluation,
    label: tuple[str, str, str],
    image: DecodedImage,
    target: np.ndarray,
    protocol: Protocol,
    lpips: Lpips,
) -> None:
    pixels = image.eight_bit
    try:
        rgb, y = ((psnr(pixels, target, luma=luma), ssim(pixels, target, luma=luma)) for luma in (False, True))
        distance = None
        if lpips.distance is not None:
            # The public code gives OpenCV's order, BGR, to a network for RGB, so its published figures are of that.
            order = slice(None, None, -1 if protocol == "public" else 1)
            distance = lpips.distance(pixels[..., order], target[..., order])
        evaluation.scores.append(Score(*label, *rgb, *y, distance))
    except (ValueError, RuntimeError) as error:
        evaluation.failures.append(f"{label[1]}, {label[0]}: {error}")
