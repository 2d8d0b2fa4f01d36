"""`masked-swin doctor`: which backends run here, why the others do not, and a self-test. Needs no extra packages."""

import argparse
import json
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from masked_swin.kernels import CPU_LIBRARY, backend_report
from masked_swin.memory import available_memory
from masked_swin.train.commands.self_test import TOLERANCE, Trial, self_test

SECONDS = 10.0
# The processor flags that the kernels or PyTorch's matrix products use.
_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
_BF16_DOT_PRODUCTS = {"avx512_bf16", "amx_bf16", "bf16"}


def run(arguments: Sequence[str]) -> int:
    """Print the report and the self-test; return 1 if a backend computes something wrong, else 0."""
    parser = argparse.ArgumentParser(prog="masked-swin doctor", description="What runs on this machine, and how well.")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for the self-test; 0 leaves it out (default: %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(arguments))
    if not options.json:
        print(report(), flush=True)
    trials = self_test(options.seconds) if options.seconds > 0 else []
    if options.json:
        tested = [{**trial._asdict(), "error": trial.error if trial.why_not is None else None} for trial in trials]
        print(json.dumps({**facts(), "self_test": tested}, indent=1))
    elif trials:
        print("\n".join(_shown(trials)))
    return 0 if all(trial.right for trial in trials) else 1


def report() -> str:
    """Describe versions, processor and memory, and each kernel backend with the reason why it cannot run."""
    lines = []
    for section, values in _machine().items():
        lines += [section, *(f"  {name:12} {value}" for name, value in values.items())]
    lines.append("kernel backends, the first that can run is taken")
    for operation, name, why_not in backend_report():
        lines.append(f"  {operation:16} {name:9} {'ready' if why_not is None else f'cannot run: {why_not}'}")
    return "\n".join(lines)


def facts() -> dict[str, Any]:
    """Return the report as data."""
    backends = [{"operation": operation, "backend": name, "why_not": why} for operation, name, why in backend_report()]
    return {**_machine(), "backends": backends}


def _machine() -> dict[str, dict[str, str]]:
    library = f"loaded, {CPU_LIBRARY.instruction_set}" if CPU_LIBRARY.loaded else f"not loaded: {CPU_LIBRARY.why_not}"
    if not CPU_LIBRARY.loaded:
        library += "; with a C++ compiler: pip install --no-cache-dir --force-reinstall masked-swin"
    model, flags = _processor()
    dot_products = sorted(_BF16_DOT_PRODUCTS & flags)
    return {
        "versions": _versions(),
        "processor": {
            "name": model,
            "cores": f"{_usable_cores()} usable of {os.cpu_count()}",
            "threads": f"{torch.get_num_threads()} (torch)",
            "instructions": " ".join(flag for flag in _FLAGS if flag in flags) or "unknown",
            "torch uses": torch.backends.cpu.get_cpu_capability(),
            "bf16 dot": ", ".join(dot_products)
            if dot_products
            else "none: bfloat16 computes in float32, as fast as float32",
            "memory": f"{available_memory() / 2**30:.1f} GiB free",
            "cuda": _cuda(),
        },
        "native library": {"C++ kernels": library},
    }


def _shown(trials: list[Trial]) -> list[str]:
    lines = [
        "self-test: 64 x 64 tokens, 60 channels, attention 75 % masked, float32, forward and backward",
        f"  {'':26} {'device':6} {'error':>8} {'ms':>8}  against the reference backend's time",
    ]
    reference = {trial.operation: trial.milliseconds for trial in trials if trial.backend == "reference"}
    for trial in trials:
        name = f"  {trial.operation:16} {trial.backend:9}"
        if trial.why_not is not None:
            lines.append(f"{name} not tested: {trial.why_not}")
            continue
        line = f"{name} {trial.device:6} {trial.error:8.0e}"
        base = reference.get(trial.operation)
        if not trial.right:
            line += f" WRONG: expected below {TOLERANCE:.0e}; please report it"
        elif trial.milliseconds is not None:
            line += f" {trial.milliseconds:8.2f}" + (f"  {base / trial.milliseconds:.1f}x" if base else "")
        lines.append(line)
    return lines


def _versions() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
    }
    for package in ("masked_swin", "triton", "numpy", "pillow", "pyvips", "lpips"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _processor() -> tuple[str, set[str]]:
    """Return name and flags, as Linux tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return name[1] if name else platform.machine(), set(flags[1].split()) if flags else set()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
