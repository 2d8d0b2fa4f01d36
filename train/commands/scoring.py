"""What `masked-swin evaluate` does with images: pairs them, adds noise, runs the network, and measures."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masked_swin.denoiser import Denoiser
from masked_swin.inference import denoise_bands
from masked_swin.tiling import tile_for_memory
from masked_swin.train.commands.denoise import denoise_pixels
from masked_swin.train.commands.denoise_options import DenoiseOptions
from masked_swin.train.commands.noise import eight_bit_notes, named_images
from masked_swin.train.commands.scores import Evaluation, Score
from masked_swin.train.data import DecodedImage, NotAnImageError, Spec, label, read_image
from masked_swin.train.metrics import SSIM_WINDOW, psnr, ssim
from masked_swin.train.perceptual import Lpips
from masked_swin.train.progress import progress_bar
from masked_swin.train.protocols import Protocol


def evaluate_results(
    targets: Mapping[str, Path], folders: Iterable[Path], *, protocol: Protocol, lpips: Lpips
) -> Evaluation:
    """Score the images of each folder against the clean ones, by name (their endings may differ).

    Raises:
        ValueError: a folder is missing or holds no file.
    """
    evaluation = Evaluation()
    for folder in folders:
        for name, target, image in _pairs(targets, folder, evaluation):
            _score(evaluation, Score("", str(folder), name, "result"), image, target, protocol, lpips)
    return evaluation


def evaluate_network(
    model: Denoiser | None,
    targets: Mapping[str, Mapping[str, Path]],
    noisy: Sequence[Path],
    specs: Sequence[Spec],
    *,
    seed: int,
    options: DenoiseOptions,
    protocol: Protocol,
    lpips: Lpips,
) -> Evaluation:
    """Score noisy images, and what the network makes of them (`model` None: the noisy images alone).

    `targets` are the clean images of each set by name. The noisy images are those of the folders `noisy`, paired by
    name, and the clean ones with the noises `specs`, which the protocol makes of this seed.

    Raises:
        ValueError: a folder is missing or holds no file.
    """
    evaluation = Evaluation()
    total = sum(map(len, targets.values())) * (len(specs) + len(noisy))
    with progress_bar(total=total, description="evaluate", unit="image") as bar:
        for key, target, image in _noisy_images(targets, noisy, specs, seed, protocol, evaluation):
            bar.update()
            _score(evaluation, key, image, target, protocol, lpips)
            if model is not None:
                key = key._replace(kind="denoised")
                try:
                    image = image._replace(pixels=_denoised(model, image, options, protocol))
                except (ValueError, RuntimeError) as error:  # RuntimeError: torch out of memory
                    evaluation.failures.append(f"{_named(key)}: {error}")
                    continue
                _score(evaluation, key, image, target, protocol, lpips)
    return evaluation


def _pairs(
    targets: Mapping[str, Path], folder: Path, evaluation: Evaluation
) -> Iterator[tuple[str, np.ndarray, DecodedImage]]:
    """Yield name, clean pixels and image of the folder; a missing image or one of another size is a failure."""
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
        if image.grey != target.grey:
            grey, colour = (path, images[name]) if target.grey else (images[name], path)
            evaluation.notes.append(f"{grey}: grey, compared with {colour} in colour")
        yield name, target.eight_bit, image


def _noisy_images(
    targets: Mapping[str, Mapping[str, Path]],
    folders: Sequence[Path],
    specs: Sequence[Spec],
    seed: int,
    protocol: Protocol,
    evaluation: Evaluation,
) -> Iterator[tuple[Score, np.ndarray, DecodedImage]]:
    """Yield a score to fill in, clean pixels and the noisy image."""
    for image_set, paths in targets.items():
        for folder in folders:
            for name, target, image in _pairs(paths, folder, evaluation):
                yield Score(image_set, str(folder), name, "noisy"), target, image
        for name, path in paths.items() if specs else ():
            decoded = _read(path, evaluation)
            if decoded is None:
                continue
            clean = decoded.eight_bit
            height, width, smallest = *clean.shape[:2], SSIM_WINDOW + 2 * protocol.border
            if min(height, width) < smallest:  # once, not for each noise
                evaluation.failures.append(f"{path}: {width} x {height} pixels; SSIM needs {smallest} x {smallest}")
                continue
            evaluation.notes += eight_bit_notes(decoded, path)
            if decoded.grey and protocol.reads_grey_as_colour:
                evaluation.notes.append(f"{path}: grey, read as three equal channels, with noise of their own")
                decoded = decoded._replace(grey=False)
            for spec in specs:
                noisy = protocol.noisy(clean[..., :1] if decoded.grey else clean, name, *spec, seed)
                pixels = np.ascontiguousarray(np.broadcast_to(noisy, clean.shape))
                image = decoded._replace(pixels=pixels)
                yield Score(image_set, label(spec), name, "noisy"), clean, image


def _read(path: Path, evaluation: Evaluation) -> DecodedImage | None:
    try:
        return read_image(path)
    except NotAnImageError as error:
        evaluation.notes.append(f"skipped {error}")
    except ValueError as error:
        evaluation.failures.append(str(error))
    return None


def _denoised(model: Denoiser, image: DecodedImage, options: DenoiseOptions, protocol: Protocol) -> np.ndarray:
    """Return the denoised pixels (H, W, 3): uint8, or float32 if the protocol does not round."""
    if protocol.padding is None:
        tile = options.tile or tile_for_memory(model.config, next(model.parameters()).device)
        restored = denoise_pixels(model, image, options, tile=tile)
        return np.ascontiguousarray(np.broadcast_to(restored, image.pixels.shape))
    device, channels = next(model.parameters()).device, model.config.in_channels
    if channels == 1 and not image.grey:
        raise ValueError("a colour image, and the network is for grey ones")
    pixels = image.eight_bit.astype(np.float32) / 255 if protocol.rounded else image.pixels
    padded = protocol.padding(pixels[..., :channels], model.config.window_size)
    x = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))[None].to(device)
    # `denoise` refuses values far outside [0, 1], which unclipped noise may have.
    bands = denoise_bands(
        model,
        lambda rows, columns: x[..., rows, columns],
        (x.shape[-2], x.shape[-1]),
        attention_mask=options.attention_mask,
        average=options.average,
        seed=options.seed,
        tile=None,
    )
    with options.autocast(device), torch.no_grad():
        ((_, y),) = bands
    if not y.isfinite().all():
        raise ValueError("the network's output is not finite; the checkpoint is damaged")
    height, width = image.pixels.shape[:2]
    restored = y[0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()
    if protocol.rounded:
        restored = np.round(restored * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(restored, image.pixels.shape))


def _score(
    evaluation: Evaluation,
    key: Score,
    image: DecodedImage,
    target: np.ndarray,
    protocol: Protocol,
    lpips: Lpips,
) -> None:
    """Measure an image and append `key` with its measures."""
    pixels = image.eight_bit if protocol.rounded else image.pixels
    measures: dict[str, Any] = {}
    try:
        for name in protocol.measures:
            if name == "lpips":
                if lpips.distance is not None:
                    # The public code gives BGR, OpenCV's order, to a network for RGB, as for its published figures.
                    order = slice(None, None, -1 if protocol.bgr else 1)
                    measures[name] = lpips.distance(pixels[..., order], target[..., order])
                continue
            measure = psnr if name.startswith("psnr") else ssim
            measures[name] = measure(
                *(pixels, target), border=protocol.border, luma=name.endswith("_y"), rounded=protocol.rounded
            )
        evaluation.scores.append(key._replace(**measures))
    except (ValueError, RuntimeError) as error:
        evaluation.failures.append(f"{_named(key)}: {error}")


def _named(key: Score) -> str:
    return f"{key.image_set}{'/' if key.image_set else ''}{key.image}, {key.noise}, {key.kind}"
