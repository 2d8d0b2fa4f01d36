"""Rows: each compares ours with a baseline by pairs of runs in turn.

A row is printed and written to benchmarks/results/cpu.json as soon as it is measured.
A ratio above 1 means that ours is better; the bar is what it should reach. Names of rows measured with the instruction
set AVX2 begin with "avx2".
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.cpu.measuring import OtherWork, commit, interleaved, machine, ratio
from benchmarks.cpu.work import Work
from masked_swin.kernels import CPU_LIBRARY

ROWS: list[dict[str, object]] = []
RESULTS = Path(__file__).parents[1] / "results" / "cpu.json"
TIMEOUT = 1800  # seconds for a row: torch.compile takes minutes
BUSY = 0.1  # cores
HEAD = "{:66} {:>20}  {:>4} {:>9} {:>9} {:>7}".format(
    "baseline / ours, median of pairs [quartiles]", "ratio", "bar", "baseline", "ours", "floor"
)


class Report:
    """Records the rows of one test and prints them through `show`."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.load, self.others = os.getloadavg()[0], OtherWork()

    def times(
        self,
        name: str,
        baseline: Callable[[], object],
        ours: Callable[[], object],
        *,
        bar: float | None = None,
        pairs: int = 11,
        work: Work | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> float:
        """A row of run times; `work` is what ours has at least to do, in `dtype`. Returns the ratio."""
        values, shares = [], []
        for slow, fast in interleaved(baseline, ours, pairs):
            values.append((slow * 1e3, fast * 1e3))
            floor = None if work is None else work.floor(dtype)  # each time: the peak drifts, too
            shares += [] if floor is None else [floor / fast]
        return self.row(name, values, "ms", bar=bar, floor_share=statistics.median(shares) if shares else None)

    def row(
        self,
        name: str,
        pairs: Sequence[tuple[float, float]],
        unit: str,
        *,
        bar: float | None = None,
        **more: object,
    ) -> float:
        """A row of pairs (baseline, ours) in `unit`, and `more` to be recorded. Returns the ratio."""
        if CPU_LIBRARY.instruction_set == "avx2":
            name = f"avx2 {name}"
        row: dict[str, object] = {"name": name, "bar": bar, "unit": unit, **ratio(pairs), "pairs": len(pairs), **more}
        row |= {"load_before": self.load, "cores_used_by_others": self.others.cores()}
        row |= {"machine": machine(), "commit": commit(), "measured": time.strftime("%Y-%m-%d %H:%M")}
        if not ROWS:
            self.show(HEAD)
        ROWS.append(row)
        self.show(line(row))
        record(row)
        return ratio(pairs)["ratio"]


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    plugins = pytestconfig.pluginmanager
    terminal, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")

    def show(text: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(text, flush=True)

    return Report(show)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(TIMEOUT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.write_line(f"{machine()}, commit {commit()}")


def record(row: dict[str, object]) -> None:
    """Add a row to the file of results; it replaces the row of that name."""
    RESULTS.parent.mkdir(exist_ok=True)
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [*(old for old in earlier if old["name"] != row["name"]), row]
    new = RESULTS.with_suffix(".new")
    new.write_text(json.dumps(rows, indent=1) + "\n")
    new.replace(RESULTS)  # a run that is stopped leaves a whole file


def line(row: dict[str, object]) -> str:
    spread = f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"
    bar = "" if row["bar"] is None else f"{row['bar']:g}"
    share = f"{row['floor_share']:4.0%}" if row.get("floor_share") else "    "
    missed = row["bar"] is not None and row["ratio"] < row["bar"]
    others = row["cores_used_by_others"] or 0.0
    notes = ["below the bar"] * missed + [f"BUSY: others used {others:.1f} cores"] * (others > BUSY)
    values = f"{row['baseline']:9.2f} {row['ours']:9.2f} {row['unit']}"
    return f"{row['name']:66} {spread:>20}  {bar:>4} {values} {share} {'; '.join(notes)}".rstrip()
