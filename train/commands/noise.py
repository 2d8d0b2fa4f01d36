"""`masked-swin noise`: seeded noisy copies of a folder of images, and a manifest with the checksum of each.

The noise of a copy is a function of seed, noise, level, and the image's name below the folder (without its ending). It
does not depend on the order of the files or the number of workers: two runs give the same bytes.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jsonargparse.typing import NonNegativeInt, PositiveInt

from masked_swin.storage import atomic_write
from masked_swin.train.data import (
    NOISES,
    STRENGTHS,
    DecodedImage,
    Level,
    NotAnImageError,
    Spec,
    image_paths,
    is_image_name,
    label,
    noisy_copy,
    read_image,
    strength,
)
from masked_swin.train.messages import report
from masked_swin.train.parser import Parser, UsageError
from masked_swin.train.progress import with_progress

MANIFEST = "manifest.json"
FORMAT = 1

SPECS_HELP = "noises and levels, as gaussian:1,mixture:4,gaussian:sigma=25; a name alone is levels 1 to 4; all"


def run(arguments: Sequence[str]) -> int:
    """Write noisy copies, or check them; return the exit code."""
    parser = Parser(
        "noise",
        "Write noisy copies of images as 8-bit PNG, and a manifest. The same seed gives the same bytes; nothing is "
        "overwritten.",
    )
    parser.add_argument("input", type=Path, help="a folder of clean images, or one; with --check: of noisy copies")
    parser.add_argument("--output", type=Path | None, default=None, help="folder of the copies")
    parser.add_argument("--noise", type=str, default="all", help=SPECS_HELP)
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of the noise")
    parser.add_argument("--workers", type=PositiveInt | None, default=None, help="threads; none: one for each core")
    parser.add_argument("--check", action="store_true", help="compare the folder `input` with its manifest instead")
    options = parser.parse(arguments)
    if options.check:
        right, problems = check_noisy(options.input)
        report(wrong=problems)
        print(f"{right} copies as the manifest says, {len(problems)} wrong")
        return 1 if problems else 0
    if options.output is None:
        raise UsageError("missing: --output, the folder of the copies")
    specs = parse_specs(options.noise)
    outcome = write_noisy(options.input, options.output, specs, seed=int(options.seed), workers=options.workers)
    report(note=outcome.notes, skipped=outcome.skipped, failed=outcome.failures)
    print(f"{len(outcome.entries)} copies in {options.output}, {len(outcome.failures)} failed")
    return 1 if outcome.failures else 0


@dataclass
class NoiseOutcome:
    """The files after a run.

    `entries`: manifest entries of the copies, written now or before; `skipped`: files that are no images; `notes`:
    changes on the way; `failures`: with their reasons.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def parse_specs(text: str) -> list[Spec]:
    """Parse noises and levels such as "gaussian:1,mixture:4,gaussian:sigma=25"; a name alone is all its levels.

    "all" is every noise.

    Raises:
        ValueError: unknown noise or level, or none at all.
    """
    specs: list[Spec] = []
    for part in text.replace(" ", "").split(","):
        name, colon, level = part.partition(":")
        if name not in (*NOISES, "all"):
            raise ValueError(
                f"noise {part!r}: expected all, or any of {', '.join(NOISES)}, each with :1 to :4 or without"
            )
        if "=" in level and name in STRENGTHS:
            strength(name, level)
            specs.append((name, level))
            continue
        if colon and level not in ("1", "2", "3", "4"):
            raise ValueError(f"noise {part!r}: expected a level from 1 to 4 after the colon")
        levels: tuple[Level, ...] = (int(level),) if colon else (1, 2, 3, 4)
        specs += [(noise, one) for noise in (NOISES if name == "all" else (name,)) for one in levels]
    return list(dict.fromkeys(specs))


def image_name(path: Path, source: Path) -> str:
    """Return the name of an image below the folder `source`, or of the file `source`: "below/picture", no ending."""
    relative = path.relative_to(source if source.is_dir() else source.parent)
    return relative.with_suffix("").as_posix()


def named_images(source: Path, below: Path | None = None) -> dict[str, Path]:
    """Return the files of `source` by `image_name`, without those below the folder `below`.

    Raises:
        ValueError: no file, or two that differ only in their ending.
    """
    found: dict[str, Path] = {}
    for path in sorted(image_paths(source), key=is_image_name, reverse=True):
        if below is not None and below.resolve() in path.resolve().parents:
            continue
        other = found.setdefault(image_name(path, source), path)
        if other != path and is_image_name(path):  # but a text beside a picture may have its name
            raise ValueError(f"{other} and {path}: files that differ only in their ending; move one of them")
    if not found:
        raise ValueError(f"{source}: the folder holds no file")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def write_noisy(
    source: Path, output: Path, specs: Iterable[Spec], *, seed: int = 0, workers: int | None = None
) -> NoiseOutcome:
    """Write `output/<noise>_<level>/<name>.png` for every image of `source`, and `output/manifest.json`.

    Images are read as 8 bits, upright. Grey stays grey; alpha is dropped and noted. Nothing is overwritten: an equal
    copy is kept, a different file in its place is a failure.

    Raises:
        ValueError: nothing to do, or `output` holds copies of another seed or other noises.
        OSError: `output` cannot be written.
    """
    specs = sorted(specs, key=lambda spec: (spec[0], str(spec[1])))
    named = named_images(source, below=output)
    if output.resolve() == source.resolve():
        raise ValueError(f"output {output}: choose another folder than that of the images")
    header = {
        "format": FORMAT,
        "seed": seed,
        "noises": [label(spec) for spec in specs],
        "versions": {name: version(name) for name in ("masked-swin", "numpy", "pillow")},
    }
    if (output / MANIFEST).exists():
        before = read_manifest(output)
        if any(before.get(key) != header[key] for key in ("seed", "noises")):
            raise ValueError(
                f"{output / MANIFEST}: the folder holds noises {', '.join(before['noises'])} of seed {before['seed']}; "
                "choose another one"
            )
    output.mkdir(parents=True, exist_ok=True)
    outcome = NoiseOutcome()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        jobs = pool.map(partial(_copies, output=output, source=source, specs=specs, seed=seed), named.items())
        for part in with_progress(jobs, total=len(named), description="noise", unit="image"):
            for name in ("entries", "skipped", "notes", "failures"):
                getattr(outcome, name).extend(getattr(part, name))
    outcome.entries.sort(key=lambda entry: str(entry["file"]))
    if outcome.entries:
        with atomic_write(output / MANIFEST) as file:
            file.write((json.dumps({**header, "images": outcome.entries}, indent=1) + "\n").encode())
    return outcome


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of noisy copies.

    Raises:
        ValueError: there is none, or `masked-swin noise` has not written it.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or not {"seed", "noises", "images"} <= manifest.keys():
            raise ValueError(f"format {manifest['format']}, expected {FORMAT}")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a folder that `masked-swin noise` has written") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a manifest of `masked-swin noise` ({error})") from error
    return dict(manifest)


def check_noisy(folder: Path) -> tuple[int, list[str]]:
    """Compare a folder with its manifest; return the number of right copies and a line for each wrong one."""
    right, problems = 0, []
    listed = {entry["file"]: entry["sha256"] for entry in read_manifest(folder)["images"]}
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            problems.append(f"{path}: not the bytes that the manifest names")
        else:
            right += 1
    strangers = (path for path in image_paths(folder) if path.relative_to(folder).as_posix() not in listed)
    problems += [f"{path}: not in the manifest" for path in strangers if path.name != MANIFEST]
    return right, problems


def _copies(named: tuple[str, Path], *, output: Path, source: Path, specs: list[Spec], seed: int) -> NoiseOutcome:
    name, path = named
    outcome = NoiseOutcome()
    try:
        image = read_image(path)
    except NotAnImageError as error:
        outcome.skipped.append(str(error))
        return outcome
    except ValueError as error:
        outcome.failures.append(str(error))
        return outcome
    outcome.notes += eight_bit_notes(image, path)
    clean = image.eight_bit[..., :1] if image.grey else image.eight_bit
    source_digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for noise, level in specs:
        target = output / f"{noise}_{level}" / f"{name}.png"
        try:
            data = _png(noisy_copy(clean, name, noise, level, seed))
            if target.exists():
                if target.read_bytes() != data:
                    raise ValueError("a file of other content is there; choose another output folder")
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(target) as file:
                    file.write(data)
        except (ValueError, OSError) as error:
            outcome.failures.append(f"{target}: {error}")
            continue
        outcome.entries.append(
            {
                "file": target.relative_to(output).as_posix(),
                "source": path.relative_to(source if source.is_dir() else source.parent).as_posix(),
                "source_sha256": source_digest,
                "noise": noise,
                "level": level,
                "strength": strength(noise, level) if noise in STRENGTHS else None,
                "seed": seed,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    return outcome


def eight_bit_notes(image: DecodedImage, path: Path) -> list[str]:
    """Say what an image loses when it is read as 8 bits without transparency."""
    notes = list(image.notes)
    if image.alpha is not None:
        notes.append(f"{path}: transparency dropped")
    if image.pixels.dtype != np.uint8:
        notes.append(f"{path}: {8 * image.pixels.itemsize} bits rounded to 8")
    return notes


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()
