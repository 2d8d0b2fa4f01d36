"""Rows of the tables in docs/triton-tables.md: registers of compiled kernels, and what ptxsim counts as they run."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget

from masked_swin.kernels.triton import tuning
from tests.support.triton_on_ptxsim import SM_80, Compiler, Launch, in_place_of_launch

TARGETS = [
    SM_80,
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
INSTRUCTIONS = {
    "mma.sync": r"\bmma\.sync\.",
    "wgmma": r"\bwgmma\.mma_async\.",
    "tcgen05": r"\btcgen05\.mma\.",
    "mfma": r"\bv_mfma_",
}


class Compiled(NamedTuple):
    """Kernels to compile for every target: those that `start` launches on CPU tensors."""

    case: str  # use, dtype, sizes
    start: Callable[[], object]


class Counted(NamedTuple):
    """A kernel that ran on ptxsim, or some of its programs."""

    case: str
    launch: Launch
    windows: float  # of the whole grid
    activations: set[str]  # names of arguments; views of one tensor count as the first
    useful_flops: float = 0.0  # of matrix products, of the whole grid


@contextmanager
def tiles_of(target: GPUTarget) -> Iterator[None]:
    """In this context, kernels get the package's tile sides for a target, on any machine."""
    architecture = f"sm_{target.arch}" if target.backend == "cuda" else target.arch
    tuning._entries.cache_clear()
    with mock.patch.multiple(tuning, architecture=lambda: architecture, user_table=lambda: Path("none")):
        yield
    tuning._entries.cache_clear()


def resources(launch: Launch, target: GPUTarget) -> tuple[int, int]:
    """Registers of a thread, and its spills: bytes of stack (NVIDIA) or registers (AMD)."""
    if target.backend == "hip":
        assembly = launch.compiled.asm["amdgcn"]
        registers, spills = (
            int(re.search(rf"\.{name}: +(\d+)", assembly)[1])  # type: ignore[index]
            for name in ("vgpr_count", "vgpr_spill_count")
        )
        return registers, spills
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups()  # type: ignore[union-attr]
    return int(registers), int(stack)


def compiled_cell(launch: Launch, target: GPUTarget) -> str:
    registers, spills = resources(launch, target)
    assembly = launch.compiled.asm["amdgcn" if target.backend == "hip" else "ptx"]
    matrix = [name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, assembly)]
    text = " ".join([f"{registers} / {launch.compiled.metadata.shared / 1024:.1f}", *matrix])
    return text + (f" **spills {spills}**" if spills else "")


def compiled_table(cases: list[Compiled]) -> list[str]:
    """A row for every kernel of a case, a column for every target."""
    lines = [
        "| case | kernel | " + " | ".join(str(target.arch) for target in TARGETS) + " |",
        "|---|---|" + "---|" * len(TARGETS),
    ]
    for case in cases:
        cells: dict[str, list[str]] = {}
        for target in TARGETS:
            with tiles_of(target), in_place_of_launch(Compiler(target)) as compiler:
                case.start()
            times: Counter[str] = Counter()
            for launch in compiler.launches:
                name = launch.kernel.removesuffix("_kernel")
                times[name] += 1
                label = name if times[name] == 1 else f"{name} ({times[name]})"
                cells.setdefault(label, []).append(compiled_cell(launch, target))
        lines += [f"| {case.case} | {kernel} | {' | '.join(row)} |" for kernel, row in cells.items()]
    return lines


def counted_row(row: Counted) -> str:
    stats = row.launch.stats
    assert stats is not None
    arguments = {row.launch.arguments[int(a.name.split()[1])]: a for a in stats.arguments}
    activations = [a for name, a in arguments.items() if name in row.activations]
    requested = sum(a.requested_read + a.requested_written for a in activations)
    unique = sum(a.sectors_read + a.sectors_written for a in activations)
    used = sum(a.unique_read + a.unique_written for a in activations)
    others = sum(a.requested_read + a.requested_written for name, a in arguments.items() if name not in row.activations)
    windows = row.windows / (stats.ctas_total / stats.ctas_run)  # that were run
    kib = 32 / 1024 / windows
    flops = row.useful_flops * windows / row.windows
    cells = [
        f"{stats.ctas_total} x {stats.warps_per_cta}",
        f"{unique * kib:.1f}",
        f"{requested / max(1, unique):.2f}",
        f"{used / max(1, 32 * requested):.0%}",
        f"{others * kib:.1f}",
        f"{stats.conflict_rate:.1%}",
        f"{stats.mma_flops / flops:.2f}" if flops else "-",
        f"{stats.issued_instructions / windows:.0f}",
    ]
    return f"| {row.case} | " + " | ".join(cells) + " |"


def counted_table(rows: list[Counted]) -> list[str]:
    return [
        "| kernel | programs x warps | activations, KiB | requested / unique sectors | bytes / sectors "
        "| other arguments, KiB | bank conflicts | matrix FLOPs / useful | instructions |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(counted_row, rows),
    ]
