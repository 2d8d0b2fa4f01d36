"""The operators of random masks and of plans, which have no gradient; contracts are in token_mask.py and visible.py."""

from typing import Any

import torch
from torch import Tensor

from .ops import define, implement_in_triton

_KEY = "Tensor seed, Tensor draw, Tensor sample"
_SHARE = "int heads, int low, int high, bool ratio_per_sample"
_GEOMETRY = "SymInt height, SymInt width, int window_height, int window_width, int shift_height, int shift_width"


def _mask_fake(seed, draw, sample, tokens, heads, *share):  # type: ignore
    return sample.new_empty((sample.shape[0], heads, tokens), dtype=torch.bool)


def _normal_fake(seed, draw, sample, channels, pixels):  # type: ignore
    return sample.new_empty((sample.shape[0], channels, pixels), dtype=torch.float32)


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


for _backend in ("cpu", "triton"):
    define(f"token_mask_{_backend}", f"({_KEY}, SymInt tokens, {_SHARE}) -> Tensor", _mask_fake)
    define(f"normal_{_backend}", f"({_KEY}, SymInt channels, SymInt pixels) -> Tensor", _normal_fake)
define("exact_token_mask_triton", f"({_KEY}, {_GEOMETRY}, {_SHARE}) -> Tensor", _exact_mask_fake)
define(
    "visible_tokens_triton",
    f"(Tensor keep, {_GEOMETRY}) -> (Tensor index, Tensor position, Tensor offsets, Tensor kept, Tensor regions)",
    _visible_fake,
)
implement_in_triton("token_mask_triton", "triton.token_mask.token_mask")
implement_in_triton("exact_token_mask_triton", "triton.token_mask.exact_token_mask")
implement_in_triton("normal_triton", "triton.noise.normal")
implement_in_triton("visible_tokens_triton", "triton.visible.visible_tokens")
