"""What commands say on stderr."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def report(**lines_by_label: list[str]) -> None:
    """Print each line to stderr after its label, as in "failed: photo.png: truncated"."""
    for label, lines in lines_by_label.items():
        for line in lines:
            print(f"{label}: {line}", file=sys.stderr)


def note_missing_kernels(device: "torch.device") -> None:
    """Say that this processor computes without the C++ kernels, if it does."""
    from masked_swin.kernels import CPU_LIBRARY  # takes seconds

    if device.type == "cpu" and not CPU_LIBRARY.loaded:
        report(note=[f"PyTorch's operators compute, without the C++ kernels: {CPU_LIBRARY.why_not}"])
