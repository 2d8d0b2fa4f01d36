"""The registered operators: schema, shape function, gradient and autocast, once for every native backend.

Flat tensors only, so that torch.compile, torch.export and opcheck see through them. Contracts are with the public
functions, in the files of their names.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import register_autocast, register_autograd, register_fake
from torch.utils._pytree import tree_flatten, tree_unflatten

# backend -> the operations it has, and the dtype that its operators compute in under autocast (None: what they get)
NATIVE_BACKENDS: dict[str, tuple[tuple[str, ...], torch.dtype | None]] = {
    "cpu": (("window_attention", "swin_block", "convolution"), torch.float32),
    "triton": (("window_attention", "swin_block", "pixel_embedding"), None),
}
_TRITON_MODULES = {
    "window_attention": "triton.window_attention",
    "swin_block": "triton.swin_block",
    "pixel_embedding": "triton.pixel_embedding",
}

_ATTENTION = (
    "Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? masked, Tensor? offsets, Tensor? position, Tensor? regions, "
    "Tensor? window_mask, float scale"
)
# weights: the first 13 of SwinBlockWeights; keep: (B, H * W), True = visible
_BLOCK = (
    "Tensor x, Tensor[] weights, Tensor? mask_token, Tensor? keep, Tensor? drop_path_scale, "
    "int window_height, int window_width, int shift_height, int shift_width, int mode, bool bf16"
)
# seed, draw, sample: of the noise, which is added where they are given; masked: (B, height, width) of the padded image
_EMBEDDING = (
    "Tensor image, Tensor? seed, Tensor? draw, Tensor? sample, Tensor? masked, Tensor mean, "
    "Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, "
    "SymInt height, SymInt width, float sigma, float image_range, float mask_value, bool image_gradient"
)


class _Operator(NamedTuple):
    """Forward and backward: schema results, shape functions, and the gradients of the forward's inputs."""

    arguments: str
    backward_result: str
    fake: Callable[..., Any]
    backward_fake: Callable[..., Any]
    to_gradients: Callable[..., Any]  # (forward inputs, results of the backward) -> one gradient per input


def _attention_fake(q, k, v, bias, masked, offsets, position, regions, window_mask, scale):  # type: ignore
    heads, queries, _ = bias.shape
    windows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    shape = q.shape if masked is None and q.dim() == 3 else (windows, queries, heads, q.shape[-1])
    return q.new_empty(shape)


def _attention_backward_fake(grad_out, q, k, v, bias, masked, *rest):  # type: ignore
    like = [tensor.new_empty(tensor.shape) for tensor in (q, k, v, bias)]
    return (*like, q.new_empty((0,)) if masked is None else masked.new_empty(masked.shape))


def _attention_gradients(inputs, grads):  # type: ignore
    dq, dk, dv, d_bias, d_masked = grads
    return dq, dk, dv, d_bias, None if inputs[4] is None else d_masked, None, None, None, None, None


def _block_backward_fake(grad_out, x, weights, mask_token, *rest):  # type: ignore
    tensors = [x, *weights] if mask_token is None else [x, *weights, mask_token]
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _block_gradients(inputs, grads):  # type: ignore
    d_token = None if inputs[2] is None else grads[14]
    return grads[0], grads[1:14], d_token, *(None,) * 8


def _convolution_fake(x, weight, bias):  # type: ignore
    return x.new_empty((*x.shape[:3], weight.shape[0]))


def _convolution_backward_fake(grad_y, *inputs):  # type: ignore
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _embedding_fake(image, seed, draw, sample, masked, mean, weight, bias, norm_weight, norm_bias, *rest):  # type: ignore
    return norm_weight.new_empty(image.shape[0], *rest[:2], bias.shape[0])


def _embedding_backward_fake(grad_out, image, seed, draw, sample, masked, mean, *rest):  # type: ignore
    d_image = image.new_empty(image.shape if rest[-1] else (0,))
    return (d_image, *(tensor.new_empty(tensor.shape) for tensor in rest[:4]))


def _embedding_gradients(inputs, grads):  # type: ignore
    return grads[0] if inputs[-1] else None, *(None,) * 5, *grads[1:], *(None,) * 6


_OPERATORS = {
    "window_attention": _Operator(
        _ATTENTION,
        "(Tensor, Tensor, Tensor, Tensor, Tensor)",
        _attention_fake,
        _attention_backward_fake,
        _attention_gradients,
    ),
    "swin_block": _Operator(
        _BLOCK, "Tensor[]", lambda x, *rest: x.new_empty(x.shape), _block_backward_fake, _block_gradients
    ),
    "convolution": _Operator(
        "Tensor x, Tensor weight, Tensor bias",
        "(Tensor, Tensor, Tensor)",
        _convolution_fake,
        _convolution_backward_fake,
        lambda inputs, grads: grads,
    ),
    "pixel_embedding": _Operator(
        _EMBEDDING,
        "(Tensor, Tensor, Tensor, Tensor, Tensor)",
        _embedding_fake,
        _embedding_backward_fake,
        _embedding_gradients,
    ),
}
# Triton has products in every dtype of autocast.
_OPERATORS["swin_block_triton"] = _OPERATORS["swin_block"]._replace(
    arguments=_BLOCK.replace("bool bf16", "ScalarType dtype")
)


def define(operator: str, schema: str, fake: Callable[..., Any]) -> None:
    """Make masked_swin::operator known, with the function that makes its results' shapes."""
    torch.library.define(f"masked_swin::{operator}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    register_fake(f"masked_swin::{operator}")(fake)


def implement_in_triton(operator: str, function: str) -> None:
    """Compute masked_swin::operator by a "module.function" of this package, which is imported when it is first used."""
    module, _, name = function.rpartition(".")

    def run(*inputs: Any) -> Any:
        return getattr(import_module(f".{module}", __package__), name)(*inputs)

    torch.library.impl(f"masked_swin::{operator}", ("cuda", "cpu"), run)  # the CPU for Triton's interpreter


def _register(name: str, operator: _Operator, backend: str, autocast: torch.dtype | None) -> None:
    forward, backward = f"{name}_{backend}", f"{name}_{backend}_backward"
    define(forward, f"({operator.arguments}) -> Tensor", operator.fake)
    backward_schema = f"(Tensor grad_out, {operator.arguments}) -> {operator.backward_result}"
    define(backward, backward_schema, operator.backward_fake)
    run_backward = getattr(torch.ops.masked_swin, backward)

    # Inputs may be lists of tensors, which save_for_backward does not take.
    def save(ctx, inputs, output):  # type: ignore
        flat, ctx.structure = tree_flatten(inputs)
        ctx.save_for_backward(*(leaf for leaf in flat if isinstance(leaf, Tensor)))
        ctx.others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in flat]

    def gradient(ctx, grad_out):  # type: ignore
        tensors = iter(ctx.saved_tensors)
        inputs = tree_unflatten([next(tensors) if o is None else o[0] for o in ctx.others], ctx.structure)
        return operator.to_gradients(inputs, run_backward(grad_out, *inputs))

    def refuse(ctx, *grads):  # type: ignore
        raise RuntimeError(
            f"masked_swin: {name} of backend '{backend}' has no second derivative; "
            "pass backend='reference' to differentiate twice"
        )

    register_autograd(f"masked_swin::{forward}", gradient, setup_context=save)
    register_autograd(f"masked_swin::{backward}", refuse, setup_context=lambda ctx, inputs, output: None)
    if autocast is not None:
        register_autocast(f"masked_swin::{forward}", "cpu", autocast)
    if backend == "triton":
        implement_in_triton(forward, f"{_TRITON_MODULES[name]}.forward")
        implement_in_triton(backward, f"{_TRITON_MODULES[name]}.backward")


for _backend, (_names, _autocast) in NATIVE_BACKENDS.items():
    for _name in _names:
        _register(_name, _OPERATORS.get(f"{_name}_{_backend}", _OPERATORS[_name]), _backend, _autocast)
