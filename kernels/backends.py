"""Which backend computes an operation: the first that can, or the one named, with every reason when none can."""

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRITON_INSTALLED = find_spec("triton") is not None
TRITON_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton runs its kernels on CPU tensors


class Backend(NamedTuple):
    """One way to compute an operation. `run` and `why_not` take the operation's inputs (a NamedTuple)."""

    name: str
    run: Callable[[Any], Any]
    why_not: Callable[[Any], str | None]  # why it cannot take these inputs
    unavailable: Callable[[], str | None] = lambda: None  # why it cannot run on this machine at all


# per operation, fastest first
REGISTRY: dict[str, list[Backend]] = {
    "window_attention": [],
    "swin_block": [],
    "pixel_embedding": [],
    "convolution": [],
}


def choose(operation: str, inputs: NamedTuple, name: str | None) -> Backend:
    """Return the named backend or, without a name, the first that can run.

    Raises ValueError with all the reasons if none can, or if the named one does not exist or cannot.
    """
    reasons = []
    for backend in REGISTRY[operation]:
        if name is not None and name != backend.name:
            continue
        reason = backend.unavailable() or backend.why_not(inputs)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    if not reasons:
        names = ", ".join(backend.name for backend in REGISTRY[operation])
        raise ValueError(f"{operation} has no backend {name!r}; it has {names}")
    raise ValueError(f"{operation} cannot run: " + "; ".join(reasons))


def backend_report() -> list[tuple[str, str, str | None]]:
    """(operation, backend, why it cannot run on this machine or None) for every backend, fastest first."""
    return [(operation, b.name, b.unavailable()) for operation, backends in REGISTRY.items() for b in backends]


def not_float32(tensors: Sequence[Tensor]) -> str | None:
    """Why a float32 kernel of the CPU cannot take these: autocast converts other dtypes, but not float64."""
    autocast = torch.is_autocast_enabled("cpu")
    for tensor in tensors:
        if tensor.dtype == torch.float64 or (tensor.dtype != torch.float32 and not autocast):
            return f"needs float32, got {tensor.dtype}"
    return None


def triton_unavailable() -> str | None:
    if not TRITON_INSTALLED:
        return "the package triton is not installed"
    if not TRITON_INTERPRETS and not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA or AMD device here"
    return None


def triton_cannot_take(tensor: Tensor) -> str | None:
    """Why no Triton kernel can take this tensor, whatever it computes."""
    if tensor.device.type != "cuda" and not TRITON_INTERPRETS:
        return f"needs a CUDA tensor, got one on {tensor.device}"
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"needs float32, bfloat16 or float16, got {tensor.dtype}"
    return None
