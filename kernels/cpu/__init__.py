"""The backend "cpu": C++ (csrc/cpu) in float32. Under autocast to bfloat16 the block multiplies bfloat16 operands."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import Backend
from ..ops import register
from .library import CPU_LIBRARY

if TYPE_CHECKING:
    from ..convolution import ConvolutionInputs
    from ..noise import NormalInputs
    from ..swin_block import BlockInputs
    from ..token_mask import RandomWordsInputs, TokenMaskInputs
    from ..window_attention import AttentionInputs

NAME = "cpu"
MAX_HEAD_DIM = 128


def _attention_why_not(inputs: "AttentionInputs") -> str | None:
    if inputs.visible is not None and inputs.visible.heads is not None:
        return "per-head masks are not in this kernel"
    if inputs.q.shape[-1] > MAX_HEAD_DIM:
        return f"head_dim is {inputs.q.shape[-1]}, at most {MAX_HEAD_DIM} fit"
    return _not_float32([inputs.q, inputs.k, inputs.v, inputs.bias, *(inputs.shared_qkv or ())])


def _block_why_not(inputs: "BlockInputs") -> str | None:
    if inputs.visible is not None and inputs.visible.heads is not None:
        return "per-head masks are not in this kernel"
    return _not_float32([inputs.x, *(weight for weight in inputs.weights if weight is not None)])


def _convolution_why_not(inputs: "ConvolutionInputs") -> str | None:
    """3x3 in float32: oneDNN is slow where a channel number is no multiple of 16, as in SwinIR (60 -> 15 -> 60)."""
    kernel = tuple(inputs.weight.shape[2:])
    if kernel != (3, 3):
        return f"needs a 3x3 kernel, got {kernel}"
    if inputs.x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return "under autocast convolutions are computed in its dtype, and this one computes in float32"
    return _not_float32(inputs)


def _words_why_not(inputs: "RandomWordsInputs | TokenMaskInputs | NormalInputs") -> str | None:
    return None if inputs.sample.device.type == "cpu" else f"needs CPU tensors, got {inputs.sample.device}"


def _mask_why_not(inputs: "TokenMaskInputs") -> str | None:
    return "exact masks are not in this kernel" if inputs.exact else _words_why_not(inputs)


def _normal_why_not(inputs: "NormalInputs") -> str | None:
    return _words_why_not(inputs) if inputs.dtype == torch.float32 else f"makes float32, not {inputs.dtype}"


def _not_float32(tensors: Iterable[Tensor]) -> str | None:
    """Why a float32 kernel cannot take these. Autocast converts other dtypes, but not float64."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"needs CPU tensors, got one on {tensor.device}"
        if tensor.dtype == torch.float64 or (tensor.dtype != torch.float32 and not torch.is_autocast_enabled("cpu")):
            return f"needs float32, got {tensor.dtype}"
    return None


def _backend(operation: str, why_not: Any, autocast: torch.dtype | None = None) -> Backend:
    return Backend(operation, NAME, register(operation, NAME, autocast=autocast), why_not, lambda: CPU_LIBRARY.why_not)


BACKENDS = [
    _backend("window_attention", _attention_why_not, torch.float32),
    _backend("swin_block", _block_why_not, torch.float32),
    _backend("convolution", _convolution_why_not, torch.float32),
    _backend("random_words", _words_why_not),
    _backend("token_mask", _mask_why_not),
    _backend("normal", _normal_why_not),
]
