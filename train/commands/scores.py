"""The scores of `masked-swin evaluate`: means, the printed table, images.csv and summary.json."""

import csv
import io
import json
import math
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from masked_swin.storage import atomic_write

SCORES_FILE, SUMMARY_FILE = "images.csv", "summary.json"
MEASURES = ("psnr", "ssim", "psnr_y", "ssim_y", "lpips")


class Score(NamedTuple):
    """The measures of one image under one noise; None: not measured.

    `image_set` is empty where the protocol names none; `kind` is "noisy", "denoised", or "result" of a folder of
    results.
    """

    image_set: str
    noise: str
    image: str
    kind: str
    psnr: float | None = None
    ssim: float | None = None
    psnr_y: float | None = None
    ssim_y: float | None = None
    lpips: float | None = None


@dataclass
class Evaluation:
    """The scores; `failures` names the images without a score and the reason; `notes` are for the user."""

    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def means(self) -> list[dict[str, Any]]:
        """Return mean and standard deviation of each measure over the images, for each set, noise and kind in order.

        The standard deviation is that of a sample (n - 1), "psnr_std"; None for one image, or with an infinite value.
        """
        groups: dict[tuple[str, str, str], list[Score]] = {}
        for score in self.scores:
            groups.setdefault((score.image_set, score.noise, score.kind), []).append(score)
        rows = []
        for (image_set, noise, kind), group in groups.items():
            row = {"image_set": image_set, "noise": noise, "kind": kind, "images": len(group)}
            for name in MEASURES:
                values = [getattr(score, name) for score in group]
                measured = None not in values
                row[name] = float(np.mean(values)) if measured else None
                spread = measured and len(values) > 1 and bool(np.isfinite(values).all())
                row[f"{name}_std"] = float(np.std(values, ddof=1)) if spread else None
            rows.append(row)
        return rows


def write_evaluation(evaluation: Evaluation, folder: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Write images.csv with a line for each score, and summary.json with means and settings.

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
        "settings": {
            **settings,
            "versions": {name: version(name) for name in ("masked-swin", "torch", "numpy", "scipy")},
        },
        "means": plain(evaluation.means()),
        "failures": evaluation.failures,
    }
    with atomic_write(folder / SUMMARY_FILE) as file:
        file.write((json.dumps(summary, indent=1) + "\n").encode())


def check_output(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if the folder holds an evaluation that may not be overwritten."""
    if not overwrite and (folder / SCORES_FILE).exists():
        raise ValueError(f"{folder / SCORES_FILE} is there; choose another output folder, or give --overwrite")


def table(rows: list[dict[str, Any]]) -> str:
    """Return means and standard deviations as aligned text, without columns that are empty."""
    texts = ["noise", "kind"]
    if any(row["image_set"] for row in rows):
        texts.insert(0, "image_set")
    measured = [name for name in MEASURES if any(row[name] is not None for row in rows)]
    headings = {"image_set": "set", "kind": ""}
    lines = [[*(headings.get(name, name) for name in texts), "images", *measured]]
    for row in rows:
        lines.append([*(row[name] for name in texts), str(row["images"]), *(_cell(row, name) for name in measured)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = len(texts)
    cells = (
        [*map(str.ljust, line[:left], widths[:left]), *map(str.rjust, line[left:], widths[left:])] for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    digits = 2 if name.startswith("psnr") else 4
    mean, deviation = row[name], row[f"{name}_std"]
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means with infinity, the PSNR of equal images, as text: JSON has none."""
    return [{name: _json(value) for name, value in row.items()} for row in rows]


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
