"""`masked-swin denoise`: files and folders of images, names, formats, bit depth and metadata kept."""

import contextlib
import errno
import hashlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm import tqdm

from masked_swin import PRESETS, MaskedSwinIR, load_model
from masked_swin.inference import AttentionMask, Progress, denoise_bands
from masked_swin.storage import remove_temporaries
from masked_swin.tiling import check_tiles, tile_for_memory
from masked_swin.train.data.images import DecodedImage, NotAnImageError, image_paths, read_image, write_image
from masked_swin.train.journal import Journal
from masked_swin.train.run_folder import BEST_FILE, WEIGHTS_FILE

RUN_WEIGHTS = (BEST_FILE, WEIGHTS_FILE)  # of a run's folder, the best first
IN_FLIGHT = 2  # files decoded ahead of the network, and as many being written behind it
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Outcome:
    """What became of the files.

    `written` now, `done` before by an interrupted run, `skipped` as no images, `notes` of what was changed on the way,
    `failures` with their reasons; `not_tried` counts the files left when a full disk stopped the run.
    """

    written: list[Path] = field(default_factory=list)
    done: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    not_tried: int = 0


@dataclass(frozen=True)
class DenoiseOptions:
    """How images are denoised, see `masked_swin.denoise`; `tile` None chooses one for the memory that is free."""

    attention_mask: AttentionMask = "average"
    average: int = 4
    seed: int = 0
    tile: int | None = None
    overlap: int | None = None


def weights_path(name: str) -> Path:
    """The checkpoint file that `name` means: itself, or the weights in the folder of a training run.

    Raises:
        ValueError: a preset (it has no weights), a folder without weights, or no such file.
    """
    path = Path(name)
    if path.is_dir():
        found = next((path / file for file in RUN_WEIGHTS if (path / file).is_file()), None)
        if found is None:
            others = sorted(file.name for file in path.iterdir() if file.suffix in (".pth", ".pt", ".safetensors"))
            hint = f"it holds {', '.join(others)}: give one of them" if others else "give a .pth or .safetensors file"
            raise ValueError(
                f"model {name!r}: the folder holds no {' or '.join(RUN_WEIGHTS)} of a finished run; {hint}"
            )
        return found
    if not path.is_file():
        if name in PRESETS:
            raise ValueError(
                f"model {name!r} is a preset, an architecture without weights; expected a checkpoint (.pth or "
                f".safetensors), such as weights.pth of a `masked-swin train --preset {name}` run"
            )
        raise ValueError(f"model {name!r}: no such checkpoint file")
    return path


def load_weights(name: str) -> MaskedSwinIR:
    """The network of a checkpoint, or of a run's folder, ready to denoise.

    Raises:
        ValueError: see `weights_path`; or not a checkpoint of a network for RGB images.
    """
    model = load_model(weights_path(name))
    if model.config.in_channels != 3:
        raise ValueError(f"model {name!r}: expected a network of 3 channels (RGB), got {model.config.in_channels}")
    return model


def fingerprint(model: MaskedSwinIR) -> str:
    """SHA-256 of the configuration and weights, which the name of a checkpoint file does not tell."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def denoise_pixels(
    model: MaskedSwinIR,
    image: DecodedImage,
    options: DenoiseOptions,
    *,
    tile: int,
    progress: Progress = lambda done, of: None,
) -> np.ndarray:
    """The denoised image, (H, W, 3) or (H, W, 1) of a grey one, in the dtype of its pixels, rounded.

    Beside the two images there is only what one row of tiles needs.

    Raises:
        ValueError: the network gives NaN or infinity, or the image is too small for it.
    """
    pixels, device = image.pixels, next(model.parameters()).device
    highest = float(np.iinfo(pixels.dtype).max)

    def part(rows: slice, columns: slice) -> Tensor:
        values = pixels[rows, columns].astype(np.float32) / np.float32(highest)
        return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous().to(device)

    result = np.empty((*pixels.shape[:2], 1 if image.grey else 3), dtype=pixels.dtype)
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
    for top, band in bands:
        if not band.isfinite().all():
            raise ValueError("the network's output is not finite; the checkpoint is damaged")
        values = band[0].permute(1, 2, 0).cpu().numpy()
        if image.grey:
            values = values @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
        result[top : top + len(values)] = np.round(values * highest).astype(pixels.dtype)
    return result


def denoise_files(
    model: MaskedSwinIR,
    source: Path,
    output: Path,
    options: DenoiseOptions | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], object] = lambda message: None,
) -> Outcome:
    """Denoise the file `source`, or every image below the folder `source`, into the folder `output`.

    Relative names, formats, bit depth and metadata are kept. A file that cannot be read or written is named in the
    outcome and the rest is done; a full disk ends the run. Results that an earlier run with the same settings made are
    not made again; any other file in their place needs `overwrite`. A file has its name only when it is whole.

    Raises:
        ValueError: nothing to do, or a result would take the place of an input or of another file.
        OSError: the output folder cannot be written.
    """
    options = options or DenoiseOptions()
    if output.suffix.lower() in PIL.Image.registered_extensions():
        raise ValueError(f"output {output}: give the folder of the results, not a file; names are kept")
    base, target_folder = source if source.is_dir() else source.parent, output.resolve()
    if target_folder == base.resolve():
        raise ValueError(f"output {output}: the results would overwrite the inputs; choose another folder")
    # Results below the source folder must not feed the next run.
    paths = [path for path in image_paths(source) if source.is_file() or target_folder not in path.resolve().parents]
    if not paths:
        raise ValueError(f"{source}: the folder holds no file")
    tile = options.tile or tile_for_memory(model.config, next(model.parameters()).device)
    check_tiles(tile, options.overlap, model.config.window_size)
    journal = _open_journal(output, model, options)
    outcome = Outcome()
    todo: list[tuple[Path, Path]] = []
    for path in paths:
        target = output / path.relative_to(base)
        if target.exists() and target.samefile(path):
            outcome.failures.append(f"{path}: the result would overwrite it through a link; choose another folder")
        elif not overwrite and journal.is_done(path, target):
            outcome.done.append(target)
        elif target.exists() and not overwrite and not journal.is_begun(path, target):
            raise ValueError(
                f"{target} is there and not a result of this model, these options and {path}; choose another output "
                "folder, or give --overwrite"
            )
        else:
            todo.append((path, target))
    for folder in {target.parent for _, target in todo if target.parent.is_dir()}:
        remove_temporaries(folder)
    if todo:
        say(f"tiles of up to {tile} x {tile} pixels{'' if options.tile else ', for the memory that is free'}")
    with contextlib.closing(_decoded(todo)) as images, _Writer(journal, outcome) as writer:
        bar = tqdm(images, total=len(todo), desc="denoise", unit="image", dynamic_ncols=True)
        for path, target, decoded in bar:
            if writer.disk_full:
                outcome.not_tried += 1
                continue
            try:
                image = decoded.result()
                journal.begin(path, target)
                with tqdm(desc=path.name, unit="pass", leave=False, delay=1, dynamic_ncols=True) as passes:
                    restored = denoise_pixels(model, image, options, tile=tile, progress=_shown(passes))
            except NotAnImageError as error:
                _fail(outcome.skipped if source.is_dir() else outcome.failures, path, error)
            except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: torch out of memory
                writer.note_full_disk(error)
                _fail(outcome.failures, path, error)
            else:
                writer.submit(path, target, restored, image)
    return outcome


def _open_journal(output: Path, model: MaskedSwinIR, options: DenoiseOptions) -> Journal:
    settings = {
        "model": fingerprint(model),
        "attention_mask": options.attention_mask,
        "average": options.average if options.attention_mask == "average" else 1,
        "seed": options.seed,
        "tile": options.tile,
        "overlap": options.overlap,
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        return Journal(output, settings)
    except OSError as error:
        raise OSError(f"output {output}: cannot be written ({error.strerror}); choose another folder") from error


def _decoded(todo: list[tuple[Path, Path]]) -> Generator[tuple[Path, Path, Future[DecodedImage]], None, None]:
    """Each file with its image to come; the next IN_FLIGHT are being decoded meanwhile."""
    ahead: deque[tuple[Path, Path, Future[DecodedImage]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        try:
            for path, target in todo:
                ahead.append((path, target, pool.submit(read_image, path, as_stored=True)))
                if len(ahead) > IN_FLIGHT:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


class _Writer:
    """Encodes and writes results in the background, at most IN_FLIGHT at a time; the end waits for all."""

    def __init__(self, journal: Journal, outcome: Outcome) -> None:
        self.disk_full = False
        self._journal = journal
        self._outcome = outcome
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._behind: deque[tuple[Path, Path, DecodedImage, Future[None]]] = deque()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._settle(0)
        self._pool.shutdown()

    def submit(self, path: Path, target: Path, pixels: np.ndarray, image: DecodedImage) -> None:
        self._behind.append((path, target, image, self._pool.submit(write_image, target, pixels, image)))
        self._settle(IN_FLIGHT)

    def note_full_disk(self, error: Exception) -> None:
        self.disk_full |= isinstance(error, OSError) and error.errno in _DISK_FULL

    def _settle(self, allowed: int) -> None:
        while len(self._behind) > allowed or (self._behind and self._behind[0][3].done()):
            path, target, image, writing = self._behind.popleft()
            try:
                writing.result()
                self._journal.done(path, target)
            except Exception as error:  # writers raise almost anything about metadata: struct.error, KeyError...
                self.note_full_disk(error)
                _fail(self._outcome.failures, path, error)
                continue
            self._outcome.notes += image.notes
            if image.format == "GIF":
                self._outcome.notes.append(f"{target}: GIF keeps at most 256 colours")
            self._outcome.written.append(target)


def _shown(bar: "tqdm[object]") -> Progress:
    def show(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)

    return show


def _fail(lines: list[str], path: Path, error: Exception) -> None:
    text = str(error)
    lines.append(text if str(path) in text else f"{path}: {text}")
