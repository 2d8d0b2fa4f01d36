"""The operators of random masks and of plans, which have no gradient; contracts are in token_mask.py and visible.py."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

TRITON_INSTALLED = find_spec("triton") is not None

_KEY = "Tensor seed, Tensor draw, Tensor sample"
_SHARE = "int heads, int low, int high, bool ratio_per_sample"
_GEOMETRY = "SymInt height, SymInt width, int window_height, int window_width, int shift_height, int shift_width"


def _define(name: str, schema: str, fake: Callable[..., Any], triton_module: str | None = None) -> None:
    """Register an operator; that of Triton is the function `name` of a module, imported when it is first used."""
    operator = f"masked_swin::{name}" + ("_cpu" if triton_module is None else "_triton")
    torch.library.define(operator, schema, tags=(torch.Tag.pt2_compliant_tag,))
    register_fake(operator)(fake)
    if triton_module is not None:

        def run(*inputs: Any) -> Any:
            return getattr(import_module(triton_module, __package__), name)(*inputs)

        torch.library.impl(operator, ("cuda", "cpu"), run)  # the CPU for Triton's interpreter


def _mask_fake(seed, draw, sample, tokens, heads, *share):  # type: ignore
    return sample.new_empty((sample.shape[0], heads, tokens), dtype=torch.bool)


def _exact_mask_fake(seed, draw, sample, height, width, wh, ww, sh, sw, heads, *share):  # type: ignore
    return sample.new_empty((sample.shape[0], heads, height * width), dtype=torch.bool)


def _visible_fake(keep, height, width, window_height, window_width, shift_height, shift_width):  # type: ignore
    rows, size = keep.numel(), window_height * window_width

    def new(*shape: Any, dtype: torch.dtype) -> Tensor:
        return keep.new_empty(shape, dtype=dtype)

    return (
        new(rows, dtype=torch.int64),
        new(rows, dtype=torch.int32),
        new(rows // size + 1, dtype=torch.int32),
        new(rows // size, size, dtype=torch.bool),
        new(height * width // size if shift_height or shift_width else 0, size, dtype=torch.int32),
    )


for _module in (None, ".triton_mask"):
    _define("token_mask", f"({_KEY}, SymInt tokens, {_SHARE}) -> Tensor", _mask_fake, _module)
_define("exact_token_mask", f"({_KEY}, {_GEOMETRY}, {_SHARE}) -> Tensor", _exact_mask_fake, ".triton_mask")
_define(
    "visible_tokens",
    f"(Tensor keep, {_GEOMETRY}) -> (Tensor index, Tensor position, Tensor offsets, Tensor kept, Tensor regions)",
    _visible_fake,
    ".triton_visible",
)
