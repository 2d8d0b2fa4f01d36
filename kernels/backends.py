"""The registry: the backends of every operation, and the choice among them.

A backend is a folder or a file of this package that exports `BACKENDS`; `__init__.py` collects them. Contracts call
`choose`, and name no backend.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch


def _always() -> str | None:
    return None


class Backend(NamedTuple):
    """One way to compute one operation.

    Attributes:
        operation: the name of the operation, as "window_attention".
        name: the name of the backend, as users write it in `backend=`.
        run: computes the operation from its inputs, a NamedTuple of the contract's file.
        why_not: the reason why it cannot take these inputs, or None.
        unavailable: the reason why it cannot run on this machine at all, or None.
    """

    operation: str
    name: str
    run: Callable[[Any], Any]
    why_not: Callable[[Any], str | None]
    unavailable: Callable[[], str | None] = _always


REGISTRY: dict[str, list[Backend]] = {}  # the backends of each operation, fastest first


def collect(backends: Iterable[Backend]) -> None:
    """Add backends to the registry, after those that are there."""
    for backend in backends:
        REGISTRY.setdefault(backend.operation, []).append(backend)


def choose(operation: str, inputs: NamedTuple, name: str | None) -> Backend:
    """Return the named backend or, without a name, the first that can run.

    An export to ONNX, which knows PyTorch's operators only, takes the reference.

    Raises:
        ValueError: if none can run, with all the reasons; if the named one does not exist or cannot run.
    """
    if name is None and torch.onnx.is_in_onnx_export():
        name = "reference"
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


def run_empty(operation: str, inputs: NamedTuple) -> Any:
    """Compute an operation on 0 images or windows: empty results, and gradients of 0 for the weights."""
    return next(backend for backend in REGISTRY[operation] if backend.name == "reference").run(inputs)


def backend_report() -> list[tuple[str, str, str | None]]:
    """(operation, backend, why it cannot run on this machine or None) for every backend, fastest first."""
    return [(operation, b.name, b.unavailable()) for operation, backends in REGISTRY.items() for b in backends]
