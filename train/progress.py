"""What a user sees of a run: the progress bar, a line of log.jsonl now and then, TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from masked_swin.storage import atomic_write

LOG_FILE, TENSORBOARD_FOLDER = "log.jsonl", "tensorboard"


class StepResult(NamedTuple):
    loss: float
    psnr: float  # of the training batch against its clean patches, dB
    gradient_norm: float  # before clipping
    loading: float  # seconds that the step waited for its batch


class Progress:
    """The bar of steps `first` to `last`; a context. `shown` False keeps it quiet."""

    def __init__(self, first: int, last: int, batch_size: int, description: str, shown: bool) -> None:
        self.batch_size = batch_size
        self.validation: float | None = None
        self._bar = tqdm(
            total=last, initial=first, unit="step", desc=description, dynamic_ncols=True, disable=not shown
        )
        self._started, self._steps, self._loading = time.perf_counter(), 0, 0.0

    def step(self, result: StepResult) -> None:
        self._steps += 1
        self._loading += result.loading
        postfix = {"loss": f"{result.loss:.4f}", "PSNR": f"{result.psnr:.2f}"}
        if self.validation is not None:
            postfix["validation"] = f"{self.validation:.2f}"
        postfix |= {"patches/s": f"{self.patches_per_second:.1f}", "loading": f"{self.loading_share:.0%}"}
        self._bar.set_postfix(postfix, refresh=False)
        self._bar.update()

    @property
    def patches_per_second(self) -> float:
        """Since the start, validation and checkpoints included."""
        return self._steps * self.batch_size / (time.perf_counter() - self._started)

    @property
    def loading_share(self) -> float:
        """The share of the time in which the network waited for its batch."""
        return self._loading / (time.perf_counter() - self._started)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class RunLog:
    """Figures over the steps of a run, as JSON lines in `folder` and, if wanted, for TensorBoard.

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
        """Forget what a run that was killed wrote of later steps: they are done again."""
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
    except (ValueError, KeyError, TypeError):  # torn
        return float("inf")
