"""`masked-swin denoise`: files and folders of images, names and formats kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import PIL.Image
from tqdm import tqdm

from masked_swin import PRESETS, MaskedSwinIR, denoise, load_model
from masked_swin.storage import atomic_write
from masked_swin.train.data import image_paths, read_image, to_array, to_tensor
from masked_swin.train.metrics import to_uint8

AttentionMask = Literal["average", "random", "off"]

# Closest to lossless of the formats that lose by default.
_SAVE_OPTIONS: dict[str, dict[str, int | bool]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


@dataclass
class Outcome:
    """What became of the files: those written, what was changed on the way, and each failure with its reason."""

    written: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def load_weights(name: str) -> MaskedSwinIR:
    """The network of a checkpoint, ready to denoise.

    Raises:
        ValueError: a preset (it has no weights), no such file, or not a checkpoint.
    """
    if name in PRESETS:
        raise ValueError(
            f"model {name!r} is a preset, an architecture without weights; expected a checkpoint (.pth or "
            f".safetensors), such as weights.pth of a `masked-swin train --preset {name}` run"
        )
    if not Path(name).is_file():
        raise ValueError(f"model {name!r}: no such checkpoint file")
    model = load_model(name)
    if model.config.in_channels != 3:
        raise ValueError(f"model {name!r}: expected a network of 3 channels (RGB), got {model.config.in_channels}")
    return model


def denoise_files(
    model: MaskedSwinIR,
    source: Path,
    output: Path,
    *,
    attention_mask: AttentionMask = "average",
    average: int = 4,
    seed: int = 0,
) -> Outcome:
    """Denoise the file `source`, or every file below the folder `source`, into the folder `output`.

    Relative names and formats are kept. A file that is no image, or cannot be written, is named in the outcome and the
    rest is done. Greys stay grey; 16 bits become 8 and transparency is dropped, which the notes say.

    Raises:
        ValueError: nothing to do, or a result would take the place of an input.
    """
    if output.suffix.lower() in PIL.Image.registered_extensions():
        raise ValueError(f"output {output}: give the folder of the results, not a file; names are kept")
    output.mkdir(parents=True, exist_ok=True)
    base, target_folder = source if source.is_dir() else source.parent, output.resolve()
    if target_folder == base.resolve():
        raise ValueError(f"output {output}: the results would overwrite the inputs; choose another folder")
    # Results below the source folder must not feed the next run.
    paths = [path for path in image_paths(source) if source.is_file() or target_folder not in path.resolve().parents]
    if not paths:
        raise ValueError(f"{source}: the folder holds no file")
    device = next(model.parameters()).device
    outcome = Outcome()
    for path in tqdm(paths, desc="denoise", unit="image", dynamic_ncols=True):
        target = output / path.relative_to(base)
        try:
            if target.exists() and target.samefile(path):
                raise ValueError(f"{path}: the result would overwrite it through a link; choose another output folder")
            decoded = read_image(path)
            noisy = to_tensor(decoded.pixels).to(device)
            restored = denoise(model, noisy, attention_mask=attention_mask, average=average, seed=seed)
            if not restored.isfinite().all():
                raise ValueError("the network's output is not finite; the checkpoint is damaged")
            image = PIL.Image.fromarray(to_uint8(to_array(restored)))
            _save(image.convert("L") if decoded.grey else image, target, decoded.format)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: torch out of memory
            text = str(error)
            outcome.failures.append(text if str(path) in text else f"{path}: {text}")
            continue
        outcome.notes += decoded.notes
        if decoded.format == "GIF":
            outcome.notes.append(f"{target}: GIF keeps at most 256 colours and one frame here")
        outcome.written.append(target)
    return outcome


def _save(image: PIL.Image.Image, target: Path, file_format: str) -> None:
    if file_format not in PIL.Image.SAVE:
        raise ValueError(f"{target}: Pillow reads {file_format} but does not write it; convert the file to PNG first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        image.save(file, format=file_format, **_SAVE_OPTIONS.get(file_format, {}))
