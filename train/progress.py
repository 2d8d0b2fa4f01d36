"""Progress on stderr: a bar on a terminal, a line every few seconds in a file or a pipe."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from masked_swin.train.messages import is_quiet

LINE_SECONDS = 5.0  # between two lines in a file or a pipe
_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

Item = TypeVar("Item")


class ProgressBar(Protocol):
    """Shows how much of `total` is done; a context, whose end shows the last state."""

    n: float
    total: float | None

    def update(self, n: float = 1) -> object: ...
    def set_postfix(self, ordered_dict: dict[str, str], refresh: bool) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> "ProgressBar": ...
    def __exit__(self, *exception: object) -> object: ...


def progress_bar(
    *,
    total: int | None,
    description: str,
    unit: str,
    initial: int = 0,
    leave: bool = True,
    delay: float = 0.0,
    shown: bool = True,
) -> ProgressBar:
    """Make a bar on a terminal, lines elsewhere; nothing if not `shown`, if quiet, or if TQDM_DISABLE is set.

    Without the package tqdm, which the extra "train" installs, nothing is shown either.

    Args:
        total: number of units; None: set it later.
        leave: keep the bar, or write a last line, at the end.
        delay: seconds before the bar appears.
    """
    if not shown or is_quiet() or os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false"):
        return _Silent(total, initial)
    tqdm = _tqdm()
    if tqdm is None:
        return _Silent(total, initial)
    if not sys.stderr.isatty():
        return _Lines(total, initial, description, unit, leave)
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        leave=leave,
        delay=delay,
        dynamic_ncols=True,
        disable=False,
    )


def with_progress(items: Iterable[Item], *, total: int, description: str, unit: str) -> Iterator[Item]:
    """Yield the items and show how many are done."""
    with progress_bar(total=total, description=description, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


def say(line: str) -> None:
    """Write a line to stderr, above the bars, unless quiet."""
    if not is_quiet():
        tqdm = _tqdm()
        print(line, file=sys.stderr) if tqdm is None else tqdm.write(line, file=sys.stderr)


def _tqdm() -> Any:
    """The class of the bars; None where the extra "train" is not installed, and progress is not shown."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm


class _Silent:
    def __init__(self, total: float | None, initial: float) -> None:
        self.total, self.n = total, initial

    def update(self, n: float = 1) -> None:
        self.n += n

    def set_postfix(self, ordered_dict: dict[str, str], refresh: bool) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Lines(_Silent):
    def __init__(self, total: float | None, initial: float, description: str, unit: str, leave: bool) -> None:
        super().__init__(total, initial)
        self._initial, self._description, self._unit, self._leave = initial, description, unit, leave
        self._postfix: dict[str, str] = {}
        self._started = self._written = time.monotonic()

    def update(self, n: float = 1) -> None:
        self.n += n
        if time.monotonic() >= self._written + LINE_SECONDS:
            self._write()

    def set_postfix(self, ordered_dict: dict[str, str], refresh: bool) -> None:
        self._postfix = ordered_dict

    def close(self) -> None:
        if self._leave:
            self._write()
            self._leave = False

    def _write(self) -> None:
        self._written = time.monotonic()
        line = _tqdm().format_meter(
            self.n,
            self.total or 0,
            self._written - self._started,
            prefix=self._description,
            unit=self._unit,
            initial=self._initial,
            postfix=", ".join(f"{name}={value}" for name, value in self._postfix.items()),
            bar_format=_LINE,
        )
        print(line, file=sys.stderr, flush=True)


class StepResult(NamedTuple):
    """The figures of one training step."""

    loss: float
    psnr: float  # of the training batch against its clean patches, dB
    gradient_norm: float  # before clipping
    loading: float  # seconds that the step waited for its batch


class TrainProgress:
    """Progress from step `first` to `last`; a context. `shown` False keeps it quiet."""

    def __init__(self, first: int, last: int, batch_size: int, description: str, shown: bool) -> None:
        self.batch_size = batch_size
        self.validation: float | None = None
        self._shown = shown
        self._bar = progress_bar(total=last, initial=first, description=description, unit="step", shown=shown)
        self._started, self._steps, self._loading = time.perf_counter(), 0, 0.0

    def step(self, result: StepResult) -> None:
        """Count one step and show its figures."""
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
        """Mean since the start, validation and checkpoints included."""
        return self._steps * self.batch_size / (time.perf_counter() - self._started)

    @property
    def loading_share(self) -> float:
        """Share of the time in which the network waited for its batch."""
        return self._loading / (time.perf_counter() - self._started)

    def say(self, line: str) -> None:
        """Write a line that stays, above the bar."""
        if self._shown:
            say(line)

    def __enter__(self) -> "TrainProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
