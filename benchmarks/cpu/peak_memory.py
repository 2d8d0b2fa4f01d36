"""Memory that training steps need beyond what is there before the first, in a process of their own.

python -m benchmarks.cpu.peak_memory eager|ours: prints bytes. Needs Linux.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.cpu.networks import our_forward, public_forward, training_step
from masked_swin import PRESETS

STEPS = 3


def status(field: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    torch.manual_seed(0)
    forward = {"eager": public_forward, "ours": our_forward}[sys.argv[1]]
    step = training_step(*forward(PRESETS["published"]))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in range(STEPS):
        step()
    print(json.dumps(status("VmHWM") - before))
