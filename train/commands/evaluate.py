"""`masked-swin evaluate`: PSNR, SSIM and LPIPS of folders of results, or of what a network makes of noisy images."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt
from torch import Tensor

from masked_swin import denoise
from masked_swin.denoiser import Denoiser
from masked_swin.inference import AttentionMask
from masked_swin.tiling import tile_for_memory
from masked_swin.train import distributed
from masked_swin.train.commands.denoise import denoise_pixels
from masked_swin.train.commands.denoise_options import DenoiseOptions, add_denoise_options
from masked_swin.train.commands.noise import SPECS_HELP, Spec, named_images, noisy_copy, parse_specs
from masked_swin.train.commands.scores import Evaluation, Score, check_output, plain, table, write_evaluation
from masked_swin.train.data import DecodedImage, NotAnImageError, read_image
from masked_swin.train.messages import note_kernels, report, say
from masked_swin.train.metrics import psnr, ssim
from masked_swin.train.parser import Parser, UsageError
from masked_swin.train.perceptual import Lpips, load_lpips
from masked_swin.train.progress import progress_bar
from masked_swin.train.weights import fingerprint, load_weights

Protocol = Literal["default", "public"]


def run(arguments: Sequence[str]) -> int:
    """Print the scores, and write them; return the exit code."""
    parser = Parser(
        "evaluate", "Score images against clean ones: results, or noisy images and what a network makes of them."
    )
    parser.add_argument("clean", type=Path, help="folder of the clean images")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="folders of results with the same names")
    parser.add_argument("--noisy", type=Path, nargs="+", default=[], help="folders of noisy images with the same names")
    parser.add_argument("--noise", type=str | None, default=None, help=f"noise added to the clean images: {SPECS_HELP}")
    parser.add_argument("--noise_seed", type=NonNegativeInt, default=0, help="seed of that noise")
    parser.add_argument("--model", type=str | None, default=None, help="checkpoint, or the folder of a training run")
    parser.add_argument(
        "--protocol",
        type=Protocol,
        default="default",
        help='"default" denoises as `denoise` does; "public" as the test code of the paper: padded by its rule, in one '
        "piece, one random mask. Both measure 8-bit images less a border of 1 pixel, in RGB and in Y",
    )
    add_denoise_options(parser, None)
    parser.add_argument("--output", type=Path | None, default=None, help="folder for images.csv and summary.json")
    parser.add_argument("--overwrite", action="store_true", help="replace an evaluation in the output folder")
    parser.add_argument("--json", action="store_true", help="print the means as JSON")
    options = parser.parse(arguments)
    if not (options.results or options.noisy or options.noise):
        raise UsageError("nothing to score: give --results, --noisy or --noise")
    if options.results and (options.noisy or options.noise or options.model):
        raise UsageError("--results are finished images: leave out --noisy, --noise and --model")
    if options.output is not None:
        check_output(options.output, options.overwrite)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    mask: AttentionMask = options.attention_mask or ("random" if options.protocol == "public" else "average")
    device = distributed.device(options.device)
    denoising = DenoiseOptions.of(options, mask, device)
    lpips = load_lpips()
    if lpips.why_not is not None:
        say(f"note: no LPIPS: {lpips.why_not}")
    model, seed = None, int(options.noise_seed)
    if options.results:
        evaluation = evaluate_results(options.clean, options.results, protocol=options.protocol, lpips=lpips)
    else:
        note_kernels(device)
        model = load_weights(options.model).to(device) if options.model else None
        specs = parse_specs(options.noise) if options.noise else []
        evaluation = evaluate_network(
            *(model, options.clean, options.noisy, specs),
            seed=seed,
            options=denoising,
            protocol=options.protocol,
            lpips=lpips,
        )
    report(note=evaluation.notes, failed=evaluation.failures)
    if options.output is not None:
        settings = settings_of(model, denoising, options.protocol, seed)
        write_evaluation(evaluation, options.output, settings, overwrite=options.overwrite)
    if options.json:
        print(json.dumps({"means": plain(evaluation.means()), "failures": evaluation.failures}, indent=1))
    else:
        print(table(evaluation.means()))
    return 1 if evaluation.failures else 0


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
    model: Denoiser | None,
    clean: Path,
    noisy: Iterable[Path],
    specs: Iterable[Spec],
    *,
    seed: int,
    options: DenoiseOptions,
    protocol: Protocol,
    lpips: Lpips,
) -> Evaluation:
    """Score noisy images, and what the network makes of them (`model` None: the noisy images alone).

    The noisy images are those of the folders `noisy`, paired by name, and the clean ones with the noises `specs`, which
    equal those of `masked-swin noise` with this seed. The protocol "public" pads images as the public test code does
    and gives them to the network in one piece; "default" denoises as `masked-swin denoise` does.

    Raises:
        ValueError: a folder is missing or holds no file.
    """
    evaluation = Evaluation()
    targets = named_images(clean)
    specs = list(specs)
    total = len(targets) * (len(specs) + len(noisy := list(noisy)))
    with progress_bar(total=total, description="evaluate", unit="image") as bar:
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


def settings_of(model: Denoiser | None, options: DenoiseOptions, protocol: Protocol, seed: int) -> dict[str, Any]:
    """Return the settings that determine the scores, for the summary."""
    network = None if model is None else {"sha256": fingerprint(model), **asdict(options)}
    return {"protocol": protocol, "noise_seed": seed, "network": network}


def _pairs(
    targets: dict[str, Path], folder: Path, evaluation: Evaluation
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


def _denoised(model: Denoiser, image: DecodedImage, options: DenoiseOptions, protocol: Protocol) -> DecodedImage:
    if protocol == "default":
        tile = options.tile or tile_for_memory(model.config, next(model.parameters()).device)
        restored = denoise_pixels(model, image, options, tile=tile)
        return image._replace(pixels=np.ascontiguousarray(np.broadcast_to(restored, image.pixels.shape)))
    weight = next(model.parameters())
    if model.config.in_channels == 1 and not image.grey:
        raise ValueError("a colour image, and the network is for grey ones")
    pixels = image.eight_bit[..., : model.config.in_channels].astype(np.float32) / 255
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(weight.device)
    height, width = x.shape[-2:]
    with options.autocast(weight.device):
        y = denoise(
            model,
            public_padding(x, model.config.window_size),
            attention_mask=options.attention_mask,
            average=options.average,
            seed=options.seed,
        )
    restored = y[0, :, :height, :width].permute(1, 2, 0).cpu().numpy()
    result = np.round(restored * 255).astype(np.uint8)
    return image._replace(pixels=np.ascontiguousarray(np.broadcast_to(result, image.pixels.shape)))


def public_padding(image: Tensor, window: int) -> Tensor:
    """Mirror (B, C, H, W) at the bottom and right, edge included, up to (H // window + 1) * window.

    The public test code does it so: an image whose size is a multiple of the window gets a whole window more.
    """
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
            # The public code gives BGR, OpenCV's order, to a network for RGB; its published figures were made so.
            order = slice(None, None, -1 if protocol == "public" else 1)
            distance = lpips.distance(pixels[..., order], target[..., order])
        evaluation.scores.append(Score(*label, *rgb, *y, distance))
    except (ValueError, RuntimeError) as error:
        evaluation.failures.append(f"{label[1]}, {label[0]}: {error}")
