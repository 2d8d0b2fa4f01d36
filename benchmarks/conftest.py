"""Benchmarks compare by pairs: ours and the baseline in turn, so that a drifting machine speed cancels in the ratio.

The rows are printed and written to benchmarks/results/cpu.json.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the public-style network is the baseline

from masked_swin.kernels import CPU_LIBRARY

ROWS: list[dict[str, object]] = []
RESULTS = Path(__file__).parent / "results" / "cpu.json"


def interleaved(baseline: Callable[[], object], ours: Callable[[], object], pairs: int = 11) -> dict[str, float]:
    """Median times in ms and the median of the pairwise ratios baseline / ours, with its quartiles."""
    baseline(), ours()
    times = []
    for _ in range(pairs):
        pair = []
        for run in (baseline, ours):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        times.append(pair)
    ratios = sorted(slow / fast for slow, fast in times)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "baseline_ms": statistics.median(t[0] for t in times) * 1e3,
        "ours_ms": statistics.median(t[1] for t in times) * 1e3,
        "ratio": quartiles[1],
        "ratio_q1": quartiles[0],
        "ratio_q3": quartiles[2],
    }


@pytest.fixture
def report(benchmark):
    """Record a comparison: `report(name, baseline, ours, bar)` also gives ours to pytest-benchmark."""

    def compare(
        name: str, baseline: Callable[[], object], ours: Callable[[], object], bar: float | None = None, pairs: int = 11
    ) -> float:
        result = interleaved(baseline, ours, pairs)
        benchmark.extra_info.update(result)
        benchmark.pedantic(ours, rounds=2, warmup_rounds=0)
        ROWS.append({"name": name, "bar": bar, **result})
        return result["ratio"]

    return compare


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("")
    head = ("eager / ours, median of pairs [quartiles]", "ratio", "bar", "eager ms", "ours ms")
    write(f"{head[0]:62} {head[1]:>22} {head[2]:>5} {head[3]:>9} {head[4]:>9}")
    for row in ROWS:
        ratio = f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"
        bar = "" if row["bar"] is None else f"{row['bar']:.1f}"
        write(f"{row['name']:62} {ratio:>22} {bar:>5} {row['baseline_ms']:9.2f} {row['ours_ms']:9.2f}")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    machine = (
        f"{processor()}, {torch.get_num_threads()} threads, {CPU_LIBRARY.instruction_set or 'no native library'}, "
        f"torch {torch.__version__}, python {platform.python_version()}, commit {commit.stdout.strip() or 'unknown'}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    write(machine)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([row | {"machine": machine} for row in ROWS], indent=1) + "\n")


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
