"""`masked-swin doctor`: which backends run here, why the others do not, and a self-test. Needs no extra packages."""

import argparse
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from masked_swin.kernels import (
    CPU_LIBRARY,
    EmbeddingWeights,
    SwinBlockWeights,
    VisibleTokens,
    Windows,
    backend_report,
    convolution,
    pixel_embedding,
    relative_position_bias,
    swin_block,
    window_attention,
)
from masked_swin.memory import available_memory

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
# Error of float32 against float64, relative to the norm: rounding leaves at most 1e-6, a wrong kernel far more.
TOLERANCE = 1e-5

# One 64 x 64 image, as wide as the published network, 75 % masked, shifted windows.
WINDOWS = Windows(64, 64, (8, 8), (4, 4))
CHANNELS, HEADS, HIDDEN = 60, 6, 120


class Trial(NamedTuple):
    """One backend on its device: the largest error of output and gradients against the float64 reference.

    `why_not` is the reason why it was not tested.
    """

    operation: str
    backend: str
    device: str
    error: float
    why_not: str | None = None
    milliseconds: float | None = None  # forward and backward

    @property
    def right(self) -> bool:
        return self.why_not is not None or self.error < TOLERANCE  # a NaN is not


def run(arguments: Sequence[str]) -> int:
    """Print the report and the self-test; return 1 if a backend computes something wrong, else 0."""
    parser = argparse.ArgumentParser(prog="masked-swin doctor", description="What runs on this machine, and how well.")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for the self-test; 0 leaves it out (default: %(default)g)"
    )
    options = parser.parse_args(list(arguments))
    print(report(), flush=True)
    if options.seconds <= 0:
        return 0
    trials = self_test(options.seconds)
    print("\n".join(_shown(trials)))
    return 0 if all(trial.right for trial in trials) else 1


def report() -> str:
    """Describe versions, processor and memory, and each kernel backend with the reason why it cannot run."""
    lines = ["versions"]
    lines += [f"  {name:12} {text}" for name, text in _versions().items()]
    library = f"loaded, {CPU_LIBRARY.instruction_set}" if CPU_LIBRARY.loaded else f"not loaded: {CPU_LIBRARY.why_not}"
    if not CPU_LIBRARY.loaded:
        library += "; with a C++ compiler: pip install --no-cache-dir --force-reinstall masked-swin"
    model, flags = _processor()
    dot_products = sorted(_BF16_DOT_PRODUCTS & flags)
    lines += [
        "processor",
        f"  name         {model}",
        f"  cores        {_usable_cores()} usable of {os.cpu_count()}",
        f"  threads      {torch.get_num_threads()} (torch)",
        f"  instructions {' '.join(flag for flag in _FLAGS if flag in flags) or 'unknown'}",
        f"  torch uses   {torch.backends.cpu.get_cpu_capability()}",
        f"  bf16 dot     {', '.join(dot_products) if dot_products else 'none: bfloat16 gains no speed'}",
        f"  memory       {available_memory() / 2**30:.1f} GiB free",
        f"  cuda         {_cuda()}",
        "native library",
        f"  C++ kernels  {library}",
        "kernel backends, the first that can run is taken",
    ]
    for operation, name, why_not in backend_report():
        lines.append(f"  {operation:16} {name:9} {'ready' if why_not is None else f'cannot run: {why_not}'}")
    return "\n".join(lines)


def self_test(seconds: float = SECONDS) -> list[Trial]:
    """Compare each backend that can run with the float64 reference, and time it if it is right.

    Both run forward and backward with gradients of all inputs. The backends take turns for about `seconds`; times are
    medians.
    """
    started = time.monotonic()
    operations = {
        "window_attention": _attention(),
        "swin_block": _block(),
        "pixel_embedding": _embedding(),
        "convolution": _convolution(),
    }
    trials: list[Trial] = []
    runs: dict[int, Callable[[], object]] = {}
    for operation, name, why_not in backend_report():
        if why_not is None:
            trial, run = _trial(operation, name, operations[operation])
            if run is not None and trial.right:
                runs[len(trials)] = run
            trials.append(trial)
    times: dict[int, list[float]] = {index: [] for index in runs}
    while runs and (time.monotonic() - started < seconds or not min(map(len, times.values()))):
        for index, run in runs.items():
            before = time.perf_counter()
            run()
            times[index].append(time.perf_counter() - before)
    for index, values in times.items():
        trials[index] = trials[index]._replace(milliseconds=1e3 * statistics.median(values))
    return trials


Case = tuple[Callable[..., Tensor], list[Tensor]]  # function of the inputs and a backend, inputs in float64


def _attention() -> Case:
    generator = torch.Generator().manual_seed(0)
    visible = _visible(generator)
    shape = (len(visible.token_index), HEADS, CHANNELS // HEADS)
    sizes = [shape, shape, shape, (15 * 15, HEADS), (3, *shape[1:])]
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]

    def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor, shared: Tensor, backend: str) -> Tensor:
        bias = relative_position_bias(table, WINDOWS.window)
        shared_qkv = (shared[0], shared[1], shared[2])
        here = _on(visible, q.device)
        unused = len(here.token_index) - len(q)  # on a GPU the list has room for every token
        q, k, v = (torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, unused)) for rows in (q, k, v))
        return window_attention(q, k, v, bias, scale=0.3, visible=here, shared_qkv=shared_qkv, backend=backend)

    return run, inputs


def _block() -> Case:
    generator = torch.Generator().manual_seed(0)
    visible = _visible(generator)
    c, m = CHANNELS, HIDDEN
    sizes = [(c,), (c,), (3 * c, c), (3 * c,), (15 * 15, HEADS), (c, c), (c,), (c,), (c,), (m, c), (m,), (c, m), (c,)]
    inputs = [torch.randn(1, WINDOWS.height, WINDOWS.width, c, generator=generator, dtype=torch.float64)]
    inputs += [torch.randn(size, generator=generator, dtype=torch.float64) * size[-1] ** -0.5 for size in sizes]

    def run(x: Tensor, *weights: Tensor, backend: str) -> Tensor:
        here = _on(visible, x.device)
        parameters = SwinBlockWeights(*weights)
        return swin_block(x, parameters, window=WINDOWS.window, shift=WINDOWS.shift, visible=here, backend=backend)

    return run, inputs


def _embedding() -> Case:
    generator = torch.Generator().manual_seed(0)
    # 10 %: in float32 even PyTorch's sums lose digits where thousands of pixels are equal.
    masked = torch.rand(1, WINDOWS.height, WINDOWS.width, generator=generator) < 0.1
    image = torch.rand(1, 3, WINDOWS.height, WINDOWS.width, generator=generator, dtype=torch.float64)
    sizes = [(CHANNELS, 3, 1, 1), *[(CHANNELS,)] * 3]
    inputs = [image, *(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)]

    def run(image: Tensor, *weights: Tensor, backend: str) -> Tensor:
        return pixel_embedding(
            image,
            (WINDOWS.height, WINDOWS.width),
            masked=masked.to(image.device),
            mean=image.new_full((3,), 0.5),
            image_range=1.0,
            mask_value=-0.1,
            weights=EmbeddingWeights(*weights),
            backend=backend,
        ).features

    return run, inputs


def _convolution() -> Case:
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, WINDOWS.height, WINDOWS.width, CHANNELS), (CHANNELS // 4, CHANNELS, 3, 3), (CHANNELS // 4,)]
    inputs = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return convolution, inputs


def _trial(operation: str, backend: str, case: Case) -> tuple[Trial, Callable[[], object] | None]:
    run, inputs = case
    expected = _with_gradients(run, inputs, "reference")
    reason = "no device"
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
        placed = [value.to(device, torch.float32) for value in inputs]
        try:
            found = _with_gradients(run, placed, backend)
        except ValueError as refused:
            reason = str(refused)
            continue
        error = max(_relative_error(a, b) for a, b in zip(found, expected, strict=True))

        def timed(placed: list[Tensor] = placed, device: str = device) -> None:
            _with_gradients(run, placed, backend)
            if device == "cuda":
                torch.cuda.synchronize()

        return Trial(operation, backend, device, error), timed
    return Trial(operation, backend, "none", float("nan"), reason), None


def _with_gradients(run: Callable[..., Tensor], inputs: list[Tensor], backend: str) -> list[Tensor]:
    inputs = [value.detach().requires_grad_() for value in inputs]
    out = run(*inputs, backend=backend)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected).norm() / expected.norm())


def _visible(generator: torch.Generator) -> VisibleTokens:
    return VisibleTokens.from_keep(torch.rand(1, WINDOWS.tokens, generator=generator) >= 0.75, WINDOWS)


def _on(visible: VisibleTokens, device: torch.device) -> VisibleTokens:
    return visible if device.type == "cpu" else VisibleTokens.from_keep(visible.image_keep.to(device), WINDOWS)


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
