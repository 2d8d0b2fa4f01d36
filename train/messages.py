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


def note_kernels(device: "torch.device", precision: str = "float32") -> None:
    """Say what this processor lacks: the C++ kernels, or products of the precision that is asked of it."""
    from masked_swin.kernels import CPU_LIBRARY  # takes seconds

    if device.type != "cpu":
        return
    if not CPU_LIBRARY.loaded:
        say(f"note: PyTorch's operators compute, without the C++ kernels: {CPU_LIBRARY.why_not}")
    elif precision == "bfloat16" and not CPU_LIBRARY.bfloat16:
        say("note: this processor has no bfloat16 products; the kernels compute in float32, as fast as float32 does")
