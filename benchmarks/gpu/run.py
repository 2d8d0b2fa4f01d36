"""The benchmarks that need an NVIDIA or AMD device: `make bench-gpu`.

    python -m benchmarks.gpu.run                 # all
    python -m benchmarks.gpu.run "mlp, C=60"     # those whose names contain it

Nothing is timed before its output and gradients are found to be the baseline's. Times are medians, with quartiles, of
rounds in which all ways run in turn; the ratio is eager / way, round by round; memory is the peak above what was there.
"""

import sys

import torch

from benchmarks.gpu import mlp as gpu_mlp
from benchmarks.gpu import swin_block as gpu_swin_block
from benchmarks.gpu import window_attention as gpu_window_attention
from benchmarks.gpu.measuring import RESULTS, check, conditions, line, measure, save

ROUNDS = 50


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench-gpu: PyTorch sees no NVIDIA or AMD device")
    wanted = " ".join(sys.argv[1:])
    print(", ".join(f"{name} {value}" for name, value in conditions().items()))
    rows = []
    for module in (gpu_window_attention, gpu_mlp, gpu_swin_block):
        torch.manual_seed(0)
        for comparison in module.comparisons("cuda"):
            if wanted in comparison.name:
                comparison, reasons = check(comparison)
                for name, reason in reasons.items():
                    print(f"{comparison.name}: '{name}' does not run: {reason}")
                for row in measure(comparison, ROUNDS):
                    rows.append(row)
                    print(line(row), flush=True)
    save(rows)
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
