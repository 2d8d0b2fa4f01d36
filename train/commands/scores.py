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
    """The measures of one image under one noise; `kind` is "noisy", "denoised", or "result" of a folder of results."""

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
    """The scores; `failures` names the images without a score and the reason; `notes` are for the user."""

    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def means(self) -> list[dict[str, Any]]:
        """Return the mean of each measure over the images, for each noise and kind in order of appearance."""
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
        "settings": {**settings, "versions": {name: version(name) for name in ("masked-swin", "torch", "numpy")}},
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
    """Return the means as aligned text; LPIPS only if it was measured."""
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


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means with infinity, the PSNR of equal images, as text: JSON has none."""
    return [{name: _json(value) for name, value in row.items()} for row in rows]


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
