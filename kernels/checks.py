"""Checks that the contracts share."""

from torch import Tensor


def require_tensor(name: str, value: object, expected: str) -> None:
    """Raise ValueError unless `value` is a tensor; `expected` describes it, as "(B, H, W, C)"."""
    if not isinstance(value, Tensor):
        hint = "" if value is None else "; convert it with torch.as_tensor"
        raise ValueError(f"{name} must be a tensor {expected}, got {type(value).__name__}{hint}")
