"""The backend "cpu": C++ (csrc/cpu) in float32. Under autocast to bfloat16 the block multiplies bfloat16 operands.

Only processors with bfloat16 products gain from autocast. On the others PyTorch emulates bfloat16 convolutions, at a
third of the speed of float32. This backend computes them in float32 there.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import reference
from ..backends import Backend
from ..convolution import ConvolutionInputs
from ..ops import register
from ..pixel_embedding import Embedding
from .library import CPU_LIBRARY

if TYPE_CHECKING:
    from ..noise import NormalInputs
    from ..pixel_embedding import EmbeddingInputs
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


def _convolution_why_not(inputs: ConvolutionInputs) -> str | None:
    """3x3 in float32: oneDNN is slow where a channel number is no multiple of 16, as in SwinIR (60 -> 15 -> 60)."""
    kernel = tuple(inputs.weight.shape[2:])
    if inputs.x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        if not _emulates_autocast():
            return "under autocast convolutions are computed in its dtype, and this one computes in float32"
    elif kernel != (3, 3):
        return f"needs a 3x3 kernel, got {kernel}"
    return _not_float32(inputs)


def _run_convolution(inputs: ConvolutionInputs) -> Tensor:
    if tuple(inputs.weight.shape[2:]) == (3, 3):
        out: Tensor = _convolution(inputs)
        return out
    x, weight, bias = (tensor.float() for tensor in inputs)
    with torch.autocast("cpu", enabled=False):
        return reference.convolution(ConvolutionInputs(x, weight, bias))


def _embedding_why_not(inputs: "EmbeddingInputs") -> str | None:
    if inputs.image.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not _emulates_autocast():
        return "differs from the reference only under autocast on a processor without bfloat16 products"
    return _not_float32([inputs.image, *inputs.weights])


def _run_embedding(inputs: "EmbeddingInputs") -> Embedding:
    with torch.autocast("cpu", enabled=False):
        return reference.pixel_embedding(inputs)


def _emulates_autocast() -> bool:
    """Whether autocast's dtype is emulated: no instruction set in use has products of bfloat16."""
    return not CPU_LIBRARY.bfloat16


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


_convolution = register("convolution", NAME, autocast=torch.float32)


def _backend(operation: str, run: Callable[[Any], Any], why_not: Callable[[Any], str | None]) -> Backend:
    return Backend(operation, NAME, run, why_not, lambda: CPU_LIBRARY.why_not)


BACKENDS = [
    _backend("window_attention", register("window_attention", NAME, autocast=torch.float32), _attention_why_not),
    _backend("swin_block", register("swin_block", NAME, autocast=torch.float32), _block_why_not),
    _backend("convolution", _run_convolution, _convolution_why_not),
    _backend("pixel_embedding", _run_embedding, _embedding_why_not),
    _backend("random_words", register("random_words", NAME), _words_why_not),
    _backend("token_mask", register("token_mask", NAME), _mask_why_not),
    _backend("normal", register("normal", NAME), _normal_why_not),
]
