"""How the benchmarks measure: pairs of runs in turn, and what the machine did meanwhile."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from masked_swin.kernels import CPU_LIBRARY


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleaved(
    baseline: Callable[[], object], ours: Callable[[], object], pairs: int
) -> Iterator[tuple[float, float]]:
    """Seconds of both in turn, so that a drifting machine speed cancels in the ratio; one run of each comes before."""
    baseline(), ours()
    for _ in range(pairs):
        yield seconds(baseline), seconds(ours)


def bar(*, avx512: float | None = None, avx2: float | None = None) -> float | None:
    """The bar of a row on the instruction set in use, if there is one for it."""
    return {"avx512": avx512, "avx512_bf16": avx512, "avx2": avx2}.get(CPU_LIBRARY.instruction_set or "")


def ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median and quartiles of baseline / ours, and the median of each."""
    quartiles = statistics.quantiles([baseline / ours for baseline, ours in pairs], n=4)
    return {
        "ratio": quartiles[1],
        "ratio_q1": quartiles[0],
        "ratio_q3": quartiles[2],
        "baseline": statistics.median(baseline for baseline, _ in pairs),
        "ours": statistics.median(ours for _, ours in pairs),
    }


class OtherWork:
    """What others do to the processor while a benchmark runs: `OtherWork().cores()` some time later."""

    def __init__(self) -> None:
        self.start = time.monotonic(), self._busy()

    def cores(self) -> float | None:
        """Cores busy for others, on average since the start; None where the system does not tell."""
        start, before = self.start
        after = self._busy()
        if before is None or after is None:
            return None
        return max(0.0, (after - before) / (time.monotonic() - start))

    @staticmethod
    def _busy() -> float | None:
        """CPU seconds of the whole machine, with those that a hypervisor withheld, less our own and our children's."""
        try:
            user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        except (OSError, ValueError):
            return None
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def machine() -> str:
    """What the numbers depend on, in one line."""
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, {CPU_LIBRARY.instruction_set or 'no native library'}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def commit() -> str:
    try:
        describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(
            describe, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
