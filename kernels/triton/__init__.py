"""The backend "triton": kernels for NVIDIA and AMD devices, compiled at the first call, which imports Triton."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import Backend
from ..ops import register
from ..pixel_embedding import Embedding

if TYPE_CHECKING:
    from ..noise import NormalInputs
    from ..pixel_embedding import EmbeddingInputs
    from ..swin_block import BlockInputs
    from ..visible import VisibleTokens, VisibleTokensInputs
    from ..window_attention import AttentionInputs

NAME = "triton"
INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton runs its kernels on CPU tensors

MAX_HEAD_DIM = 128
MAX_WINDOW_TOKENS = 256  # the backward pass holds all queries of a window
MAX_CHANNELS = 256  # a token's channels are held in registers
MAX_EXACT_CHANNELS = 64  # with exact float32 products; PyTorch is faster with more (docs/triton-design.md)
MAX_IMAGE_CHANNELS = 4


def _unavailable() -> str | None:
    if not INSTALLED:
        return "the package triton is not installed"
    if not INTERPRETED and not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA or AMD device here"
    return None


def _tensor_why_not(tensor: Tensor) -> str | None:
    if tensor.device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA tensor, got one on {tensor.device}"
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"needs float32, bfloat16 or float16, got {tensor.dtype}"
    return None


def _window_why_not(visible: "VisibleTokens | None", head_dim: int, tokens: int) -> str | None:
    if visible is not None and visible.heads is not None:
        return "per-head masks are not in this kernel"
    if head_dim > MAX_HEAD_DIM:
        return f"head_dim is {head_dim}, at most {MAX_HEAD_DIM} fit"
    if tokens > MAX_WINDOW_TOKENS:
        return f"a window has {tokens} tokens, at most {MAX_WINDOW_TOKENS} fit"
    return None


def _attention_why_not(inputs: "AttentionInputs") -> str | None:
    tokens = max(inputs.bias.shape[1:])
    return _tensor_why_not(inputs.q) or _window_why_not(inputs.visible, inputs.q.shape[-1], tokens)


def _block_why_not(inputs: "BlockInputs") -> str | None:
    from .launch import exact_products  # imports torch._dynamo, which takes seconds

    channels = inputs.x.shape[-1]
    if channels > MAX_CHANNELS:
        return f"x has {channels} channels, at most {MAX_CHANNELS} fit"
    if channels > MAX_EXACT_CHANNELS and exact_products(inputs.product_dtype):
        return (
            f"exact float32 products of {channels} channels, more than {MAX_EXACT_CHANNELS}, are faster in "
            "PyTorch; torch.autocast or torch.set_float32_matmul_precision('high') allows others"
        )
    head_dim = channels // inputs.weights.position_bias_table.shape[-1]
    return _tensor_why_not(inputs.x) or _window_why_not(inputs.visible, head_dim, inputs.windows.size)


def _embedding_why_not(inputs: "EmbeddingInputs") -> str | None:
    channels, image_channels, *kernel = inputs.weights.weight.shape
    if kernel != [1, 1]:
        return f"needs a 1x1 convolution, got {tuple(kernel)}"
    if inputs.residuals:
        return "residuals need the image and its convolution, and this kernel makes features only"
    if image_channels > MAX_IMAGE_CHANNELS or channels > MAX_CHANNELS:
        fit = f"at most {MAX_IMAGE_CHANNELS} and {MAX_CHANNELS} fit"
        return f"the convolution has {image_channels} and {channels} channels, {fit}"
    return _tensor_why_not(inputs.image)


def _device_why_not(tensor: Tensor) -> str | None:
    """Masks and lists of CPU tensors are left to the others, also where Triton is interpreted."""
    return None if tensor.device.type == "cuda" else f"needs a CUDA tensor, got one on {tensor.device}"


def _normal_why_not(inputs: "NormalInputs") -> str | None:
    if inputs.dtype != torch.float32:
        return f"makes float32, not {inputs.dtype}"
    return _device_why_not(inputs.sample)


def _visible_why_not(inputs: "VisibleTokensInputs") -> str | None:
    return _device_why_not(inputs.keep)


def _operator(operation: str, function: str | None = None, module: str | None = None) -> Callable[[Any], Any]:
    """`function` computes an operation without a gradient; else the module's `forward` and `backward` do."""
    module = f"{__name__}.{module or operation}"
    return register(operation, NAME, module=module, forward=function or "forward")


_attention = _operator("window_attention")
_embedding = _operator("pixel_embedding")


def _run_attention(inputs: "AttentionInputs") -> Tensor:
    """In the dtype of autocast, which has no list of casts for operators of devices."""
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        inputs = inputs._replace(q=inputs.q.to(dtype), k=inputs.k.to(dtype), v=inputs.v.to(dtype))
        if inputs.shared_qkv is not None:
            q, k, v = inputs.shared_qkv
            inputs = inputs._replace(shared_qkv=(q.to(dtype), k.to(dtype), v.to(dtype)))
    out: Tensor = _attention(inputs)
    return out


def _run_embedding(inputs: "EmbeddingInputs") -> Embedding:
    return Embedding(_embedding(inputs))


def _backend(operation: str, run: Callable[[Any], Any], why_not: Callable[[Any], str | None]) -> Backend:
    return Backend(operation, NAME, run, why_not, _unavailable)


BACKENDS = [
    _backend("window_attention", _run_attention, _attention_why_not),
    _backend("swin_block", _operator("swin_block"), _block_why_not),
    _backend("pixel_embedding", _run_embedding, _embedding_why_not),
    _backend(
        "random_words",
        _operator("random_words", "random_words", module="token_mask"),
        lambda inputs: _device_why_not(inputs.sample),
    ),
    _backend("token_mask", _operator("token_mask", "token_mask"), lambda inputs: _device_why_not(inputs.sample)),
    _backend("normal", _operator("normal", "normal", module="noise"), _normal_why_not),
    _backend("visible_tokens", _operator("visible_tokens", "visible_tokens", module="visible"), _visible_why_not),
]
