"""Which backend computes an operation: the first that can, or the one named, with every reason when none can."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Backend(NamedTuple):
    """One way to compute an operation. `run` and `why_not` take the operation's inputs (a NamedTuple)."""

    name: str
    run: Callable[[Any], Tensor]
    why_not: Callable[[Any], str | None]  # why it cannot take these inputs
    unavailable: Callable[[], str | None] = lambda: None  # why it cannot run on this machine at all


REGISTRY: dict[str, list[Backend]] = {"window_attention": [], "swin_block": []}  # per operation, fastest first


def choose(operation: str, inputs: NamedTuple, name: str | None) -> Backend:
    """Return the named backend or, without a name, the first that can run.

    Raises ValueError with all the reasons if none can, or if the named one does not exist or cannot.
    """
    backends = REGISTRY[operation]
    candidates = [backend for backend in backends if name in (None, backend.name)]
    if not candidates:
        raise ValueError(
            f"{operation} has no backend {name!r}; it has {', '.join(backend.name for backend in backends)}"
        )
    reasons = []
    for backend in candidates:
        reason = backend.unavailable() or backend.why_not(inputs)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise ValueError(f"{operation} cannot run: " + "; ".join(reasons))


def backend_report() -> list[tuple[str, str, str | None]]:
    """(operation, backend, why it cannot run on this machine or None) for every backend, fastest first."""
    return [(operation, b.name, b.unavailable()) for operation, backends in REGISTRY.items() for b in backends]
