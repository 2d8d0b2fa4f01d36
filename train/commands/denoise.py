"""`masked-swin denoise`: denoise files and folders of images; names, formats, bit depth and metadata are kept.

`run` reads the arguments. `plan_files` lists what becomes of each file before anything is written. `denoise_files` does
it: one thread decodes ahead of the network, `denoise_pixels` runs it, another thread writes.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from masked_swin.denoiser import Denoiser
from masked_swin.inference import Progress, denoise_bands
from masked_swin.storage import remove_temporaries
from masked_swin.tiling import check_tiles, tile_for_memory
from masked_swin.train import distributed
from masked_swin.train.commands.denoise_options import DenoiseOptions, add_denoise_options
from masked_swin.train.data import LUMA, DecodedImage, NotAnImageError, image_paths
from masked_swin.train.image_pipeline import Job, Outcome, Writer, decoded_ahead, named
from masked_swin.train.journal import Journal
from masked_swin.train.messages import note_kernels, report, say
from masked_swin.train.parser import Parser
from masked_swin.train.progress import ProgressBar, progress_bar, with_progress
from masked_swin.train.weights import fingerprint, load_weights, weights_path

MAX_MEGAPIXELS = 250


def run(arguments: Sequence[str]) -> int:
    """Denoise as the arguments say; return the exit code."""
    parser = Parser(
        "denoise",
        "Denoise images. Names, formats, bit depth and metadata are kept; inputs are never overwritten. Started again, "
        "an interrupted run goes on where it stopped.",
    )
    parser.add_argument("input", type=Path, nargs="+", help="image files, and folders (with those below them)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; of one image also a file")
    parser.add_argument(
        "--model", type=str, required=True, help="checkpoint, .pth or .safetensors, or the folder of a training run"
    )
    add_denoise_options(parser, "average")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    parser.add_argument(
        "--max_megapixels", type=PositiveInt, default=MAX_MEGAPIXELS, help="refuse larger images (decompression bombs)"
    )
    options = parser.parse(arguments)

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    PIL.Image.MAX_IMAGE_PIXELS = options.max_megapixels * 10**6 // 2  # Pillow refuses twice as many...
    warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # ...and warns from here on
    device = distributed.device(options.device)
    denoising = DenoiseOptions.of(options, options.attention_mask, device)
    say(f"weights of {weights_path(options.model)}, on {device} in {denoising.precision}")
    note_kernels(device, denoising.precision)
    model = load_weights(options.model).to(device)
    try:
        outcome = denoise_files(model, options.input, options.output, denoising, overwrite=options.overwrite, say=say)
    except KeyboardInterrupt:
        say("finished results are kept; the same command goes on with the others")
        raise
    report(note=outcome.notes, skipped=outcome.skipped, failed=outcome.failures)
    done = f", {len(outcome.done)} were there" if outcome.done else ""
    skipped = f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
    print(f"{len(outcome.written)} images written to {options.output}{done}{skipped}, {len(outcome.failures)} failed")
    if outcome.not_tried:
        print(f"the disk is full: {outcome.not_tried} not tried; make room, the same command goes on", file=sys.stderr)
    return 1 if outcome.failures or not (outcome.written or outcome.done) else 0


@dataclass
class Plan:
    """The files of a run: `jobs` to denoise, results `done` before, and files `refused` with the reason."""

    jobs: list[Job] = field(default_factory=list)
    done: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def plan_files(sources: Sequence[Path], output: Path, journal: Journal, *, overwrite: bool) -> Plan:
    """List what becomes of the files `sources`, and of every file below the folders `sources`; write nothing.

    Raises:
        ValueError: no file, or a result would replace an input or, without `overwrite`, another file.
    """
    plan = Plan()
    for path, target in _targets(sources, output).items():
        if not path.exists():
            plan.refused.append(f"{path}: link to no file")
        elif target.exists() and target.samefile(path):
            plan.refused.append(f"{path}: the result would overwrite it through a link; choose another folder")
        elif not overwrite and journal.is_done(path, target):
            plan.done.append(target)
        elif target.exists() and not overwrite and not journal.is_begun(path, target):
            raise ValueError(
                f"{target} is there and not a result of this model, these options and {path}; choose another output "
                "folder, or give --overwrite"
            )
        else:
            plan.jobs.append(Job(path, target))
    return plan


def _targets(sources: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Return the result's path for each file."""
    if _is_file(output):
        source = sources[0]
        if len(sources) > 1 or source.is_dir():
            raise ValueError(f"output {output}: give the folder of the results, not a file, for several images")
        endings = PIL.Image.registered_extensions()
        if endings.get(source.suffix.lower()) != endings[output.suffix.lower()]:
            raise ValueError(f"output {output}: the format is kept; give a name that ends in {source.suffix}")
        if image_paths(source) and output.absolute() == source.absolute():
            raise ValueError(f"output {output}: the result would overwrite the inputs; choose another name")
        return {source: output}
    targets: dict[Path, Path] = {}
    origins: dict[Path, Path] = {}
    results = output.resolve()
    for source in sources:
        base = source if source.is_dir() else source.parent
        if results == base.resolve():
            raise ValueError(f"output {output}: the results would overwrite the inputs; choose another folder")
        # Results below the source folder must not feed the next run.
        paths = [path for path in image_paths(source) if source.is_file() or results not in path.resolve().parents]
        if not paths:
            raise ValueError(f"{source}: the folder holds no file")
        for path in paths:
            target = targets[path] = output / path.relative_to(base)
            other = origins.setdefault(target, path)
            if other != path:
                raise ValueError(f"{other} and {path}: both would become {target}; denoise them into two folders")
    return targets


def _is_file(output: Path) -> bool:
    return output.suffix.lower() in PIL.Image.registered_extensions() and not output.is_dir()


def denoise_files(
    model: Denoiser,
    sources: Sequence[Path],
    output: Path,
    options: DenoiseOptions | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], object] = lambda message: None,
) -> Outcome:
    """Denoise the files `sources`, and every image below the folders `sources`, into the folder `output`.

    A single file may also become the file `output`. Relative names, formats, bit depth and metadata are kept. A file
    that cannot be read or written is named in the outcome and the others are done; a full disk ends the run. Results
    that an earlier run made with the same settings are not made again; any other file in their place needs `overwrite`.
    A file has its name only when it is whole.

    Raises:
        ValueError: nothing to do, or a result would replace an input or another file.
        OSError: the output folder cannot be written.
    """
    options = options or DenoiseOptions()
    journal = Journal(None if _is_file(output) else output, _settings(model, options))
    plan = plan_files(sources, output, journal, overwrite=overwrite)
    tile = options.tile or tile_for_memory(model.config, next(model.parameters()).device)
    check_tiles(tile, options.overlap, model.config.window_size)
    try:
        journal.open()
    except OSError as error:
        raise OSError(f"output {output}: cannot be written ({error.strerror}); choose another folder") from error
    for folder in {job.target.parent for job in plan.jobs if job.target.parent.is_dir()}:
        remove_temporaries(folder)
    if plan.jobs:
        say(f"tiles of up to {tile} x {tile} pixels{'' if options.tile else ', for the memory that is free'}")

    outcome = Outcome(done=plan.done, failures=plan.refused)
    with contextlib.closing(decoded_ahead(plan.jobs)) as images, Writer(journal, outcome) as writer:
        for job, decoded in with_progress(images, total=len(plan.jobs), description="denoise", unit="image"):
            if writer.disk_full:
                outcome.not_tried += 1
                continue
            try:
                image = decoded.result()
                journal.begin(*job)
                bar = progress_bar(total=None, description=job.source.name, unit="pass", leave=False, delay=1)
                with bar:
                    restored = denoise_pixels(model, image, options, tile=tile, progress=_shown(bar))
            except NotAnImageError as error:
                lines = outcome.failures if job.source in sources else outcome.skipped
                lines.append(named(job.source, error))
            except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: torch out of memory
                writer.note_full_disk(error)
                outcome.failures.append(named(job.source, error))
            else:
                writer.submit(job, restored, image)
    return outcome


def denoise_pixels(
    model: Denoiser,
    image: DecodedImage,
    options: DenoiseOptions,
    *,
    tile: int,
    progress: Progress = lambda done, of: None,
) -> np.ndarray:
    """Return the denoised image, (H, W, 3) or (H, W, 1) of a grey one, rounded to the dtype of its pixels.

    Beside the two images, the memory holds one row of tiles.

    Raises:
        ValueError: the network gives NaN or infinity, or the image is too small for it.
    """
    height = len(image.pixels) // image.pages
    result = np.empty((*image.pixels.shape[:2], 1 if image.grey else 3), dtype=image.pixels.dtype)
    for top in range(0, len(result), height):
        page = image._replace(pixels=image.pixels[top : top + height])
        _denoise_page(model, page, options, tile, progress, result[top : top + height])
    return result


def _denoise_page(
    model: Denoiser, image: DecodedImage, options: DenoiseOptions, tile: int, progress: Progress, result: np.ndarray
) -> None:
    pixels, white, device = image.pixels, image.white, next(model.parameters()).device
    channels = model.config.in_channels
    if channels == 1 and not image.grey:
        raise ValueError("a colour image, and the network is for grey ones; convert the image, or use another network")

    def part(rows: slice, columns: slice) -> Tensor:
        values = pixels[rows, columns, :channels].astype(np.float32) / np.float32(white)
        return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous().to(device)

    bands = denoise_bands(
        model,
        part,
        (pixels.shape[0], pixels.shape[1]),
        attention_mask=options.attention_mask,
        average=options.average,
        seed=options.seed,
        tile=tile,
        overlap=options.overlap,
        progress=progress,
    )
    with options.autocast(device):
        for top, band in bands:
            if not band.isfinite().all():
                raise ValueError("the network's output is not finite; the checkpoint is damaged")
            values = band[0].permute(1, 2, 0).cpu().numpy()
            if image.grey and channels == 3:
                values = values @ LUMA.astype(np.float32)[:, None]
            values = values * np.float32(white)
            result[top : top + len(values)] = values if result.dtype == np.float32 else np.round(values)


def _settings(model: Denoiser, options: DenoiseOptions) -> dict[str, object]:
    """Name what determines the results."""
    return {
        "model": fingerprint(model),
        "attention_mask": options.attention_mask,
        "average": options.average if options.attention_mask == "average" else 1,
        "seed": options.seed,
        "tile": options.tile,
        "overlap": options.overlap,
    } | ({} if options.precision == "float32" else {"precision": options.precision})


def _shown(bar: ProgressBar) -> Progress:
    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

    return show
