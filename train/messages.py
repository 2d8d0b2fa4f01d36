"""Messages of the commands on stderr: failures always, notes unless --quiet."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Leave out progress and notes from now on, or not."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Tell whether progress and notes are left out."""
    return _quiet


def say(line: str) -> None:
    """Print what is good to know."""
    if not _quiet:
        print(line, file=sys.stderr)


def report(**lines_by_label: list[str]) -> None:
    """Print each line after its label, as in "failed: photo.png: truncated"; lines labelled "note" as `say` does."""
    for label, lines in lines_by_label.items():
        for line in lines:
            if label == "note":
                say(f"note: {line}")
            else:
                print(f"{label}: {line}", file=sys.stderr)


def note_missing_kernels(device: "torch.device") -> None:
    """Say that this processor computes without the C++ kernels, if it does."""
    from masked_swin.kernels import CPU_LIBRARY  # takes seconds

    if device.type == "cpu" and not CPU_LIBRARY.loaded:
        say(f"note: PyTorch's operators compute, without the C++ kernels: {CPU_LIBRARY.why_not}")
