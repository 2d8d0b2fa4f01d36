"""`masked-swin doctor`: what runs here, and why the rest does not."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from masked_swin.kernels import CPU_LIBRARY, backend_report


def report() -> str:
    """Versions, processor, and each kernel backend with the reason why it cannot run."""
    lines = ["versions"]
    lines += [f"  {name:12} {text}" for name, text in _versions().items()]
    library = f"loaded, {CPU_LIBRARY.instruction_set}" if CPU_LIBRARY.loaded else f"not loaded: {CPU_LIBRARY.why_not}"
    lines += [
        "processor",
        f"  cores        {os.cpu_count()}",
        f"  threads      {torch.get_num_threads()} (torch)",
        f"  instructions {torch.backends.cpu.get_cpu_capability()} (torch)",
        f"  cuda         {_cuda()}",
        "native library",
        f"  C++ kernels  {library}",
        "kernel backends, the first that can run is taken",
    ]
    for operation, name, why_not in backend_report():
        lines.append(f"  {operation:16} {name:8} {'ready' if why_not is None else f'cannot run: {why_not}'}")
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
    }
    for package in ("masked_swin", "triton", "numpy", "pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
