"""The figures of a run over its steps: log.jsonl, and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masked_swin.storage import atomic_write

LOG_FILE, TENSORBOARD_FOLDER = "log.jsonl", "tensorboard"


class RunLog:
    """Writes figures over the steps of a run, as JSON lines in `folder` and, if wanted, for TensorBoard.

    Raises:
        ValueError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self.folder = folder
        self._tensorboard: Any = None
        self._writer_class: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(
                    "tensorboard: the package is missing; install 'masked-swin[tensorboard]', or leave it off"
                ) from error
            self._writer_class = SummaryWriter

    def continue_after(self, step: int) -> None:
        """Remove the lines of later steps, which a killed run left and this one computes again."""
        path = self.folder / LOG_FILE
        if path.exists():
            kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
            with atomic_write(path) as file:
                file.write("".join(f"{line}\n" for line in kept).encode())
        if self._writer_class is not None and self._tensorboard is None:
            self._tensorboard = self._writer_class(str(self.folder / TENSORBOARD_FOLDER), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float | None]) -> None:
        path = self.folder / LOG_FILE
        try:
            with open(path, "a") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if self._tensorboard is not None:
            for name, value in figures.items():
                if value is not None:
                    self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a torn line
        return float("inf")
