"""The registered operators: schema, shape function, gradient and autocast of each operation, once for all backends.

A backend that computes outside of PyTorch's operators calls `register`. Its operator is masked_swin::OPERATION_BACKEND,
with flat arguments, so that torch.compile, torch.export and opcheck see through it. The arguments come from the method
`arguments` of the operation's inputs. Contracts are in the files of the operations.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import register_autocast, register_autograd, register_fake, register_vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

_KEY = "Tensor seed, Tensor draw, Tensor sample"
_WINDOW = "int window_height, int window_width, int shift_height, int shift_width"
_GEOMETRY = f"SymInt height, SymInt width, {_WINDOW}"


class Gradient(NamedTuple):
    """The backward operator, whose arguments are grad_out and those of the forward operator."""

    results: str
    fake: Callable[..., Any]
    of_inputs: Callable[..., Any]  # (arguments of the forward, results of the backward) -> a gradient per argument


class Operation(NamedTuple):
    """What the operators of one operation share."""

    arguments: str
    results: str
    fake: Callable[..., Any]  # makes the results' shapes
    gradient: Gradient | None = None


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _attention_fake(q, k, v, bias, shared_qkv, offsets, position, regions, window_mask, scale):  # type: ignore
    heads, queries, _ = bias.shape
    windows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    shape = q.shape if shared_qkv is None and q.dim() == 3 else (windows, queries, heads, q.shape[-1])
    return q.new_empty(shape)


def _attention_backward_fake(grad_out, q, k, v, bias, shared_qkv, *rest):  # type: ignore
    d_shared = q.new_empty((0,)) if shared_qkv is None else shared_qkv.new_empty(shared_qkv.shape)
    return (*_like(q, k, v, bias), d_shared)


def _attention_gradients(arguments, grads):  # type: ignore
    _q, _k, _v, _bias, shared_qkv, *fixed = arguments
    dq, dk, dv, d_bias, d_shared = grads
    return dq, dk, dv, d_bias, None if shared_qkv is None else d_shared, *(None for _ in fixed)


def _block_backward_fake(grad_out, x, weights, mask_token, *rest):  # type: ignore
    return list(_like(x, *weights) if mask_token is None else _like(x, *weights, mask_token))


def _block_gradients(arguments, grads):  # type: ignore
    _x, _weights, mask_token, *fixed = arguments
    dx, *d_weights = grads
    d_token = None if mask_token is None else d_weights.pop()
    return dx, d_weights, d_token, *(None for _ in fixed)


def _embedding_fake(  # type: ignore
    image, seed, draw, sample, input_mask, mean, weight, bias, norm_weight, norm_bias, height, width, *rest
):
    return norm_weight.new_empty(image.shape[0], height, width, bias.shape[0])


def _embedding_backward_fake(  # type: ignore
    grad_out, image, seed, draw, sample, input_mask, mean, weight, bias, norm_weight, norm_bias, *rest
):
    *_, image_gradient = rest
    d_image = image.new_empty(image.shape if image_gradient else (0,))
    return (d_image, *_like(weight, bias, norm_weight, norm_bias))


def _embedding_gradients(arguments, grads):  # type: ignore
    *_, image_gradient = arguments
    d_image, *d_weights = grads
    key_mask_and_mean, numbers = (None,) * 5, (None,) * 6
    return d_image if image_gradient else None, *key_mask_and_mean, *d_weights, *numbers


def _visible_fake(keep, height, width, window_height, window_width, shift_height, shift_width):  # type: ignore
    tokens, size = keep.numel(), window_height * window_width

    def new(*shape: Any, dtype: torch.dtype) -> Tensor:
        return keep.new_empty(shape, dtype=dtype)

    return (
        new(tokens, dtype=torch.int64),
        new(tokens, dtype=torch.int32),
        new(tokens // size + 1, dtype=torch.int32),
        new(tokens // size, size, dtype=torch.bool),
        new(height * width // size if shift_height or shift_width else 0, size, dtype=torch.int32),
    )


OPERATIONS = {
    "window_attention": Operation(
        "Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? shared_qkv, Tensor? offsets, Tensor? position, "
        "Tensor? regions, Tensor? window_mask, float scale",
        "Tensor",
        _attention_fake,
        Gradient("(Tensor, Tensor, Tensor, Tensor, Tensor)", _attention_backward_fake, _attention_gradients),
    ),
    # weights: those of SwinBlockWeights but mask_token, in their order; dtype: of the operands of products
    "swin_block": Operation(
        "Tensor x, Tensor[] weights, Tensor? mask_token, Tensor? keep, Tensor? drop_path_scale, "
        f"{_WINDOW}, int mode, ScalarType dtype",
        "Tensor",
        lambda x, *rest: x.new_empty(x.shape),
        Gradient("Tensor[]", _block_backward_fake, _block_gradients),
    ),
    "convolution": Operation(
        "Tensor x, Tensor weight, Tensor bias",
        "Tensor",
        lambda x, weight, bias: x.new_empty((*x.shape[:3], weight.shape[0])),
        Gradient("(Tensor, Tensor, Tensor)", lambda grad_out, *inputs: _like(*inputs), lambda arguments, grads: grads),
    ),
    # seed, draw, sample: of the noise; None without noise
    "pixel_embedding": Operation(
        "Tensor image, Tensor? seed, Tensor? draw, Tensor? sample, Tensor? input_mask, Tensor mean, "
        "Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, SymInt height, SymInt width, "
        "float sigma, float image_range, float mask_value, bool image_gradient",
        "Tensor",
        _embedding_fake,
        Gradient("(Tensor, Tensor, Tensor, Tensor, Tensor)", _embedding_backward_fake, _embedding_gradients),
    ),
    "random_words": Operation(
        f"{_KEY}, SymInt first, SymInt count, int first_head, int heads",
        "Tensor",
        lambda seed, draw, sample, first, count, first_head, heads: sample.new_empty((sample.shape[0], heads, count)),
    ),
    "token_mask": Operation(
        f"{_KEY}, Tensor percent, {_GEOMETRY}, int heads, bool exact",
        "Tensor",
        lambda seed, draw, sample, percent, height, width, wh, ww, sh, sw, heads, exact: sample.new_empty(
            (sample.shape[0], heads, height * width), dtype=torch.bool
        ),
    ),
    "normal": Operation(
        f"{_KEY}, SymInt channels, SymInt pixels",
        "Tensor",
        lambda seed, draw, sample, channels, pixels: sample.new_empty(
            (sample.shape[0], channels, pixels), dtype=torch.float32
        ),
    ),
    "visible_tokens": Operation(
        f"Tensor keep, {_GEOMETRY}",
        "(Tensor token_index, Tensor position, Tensor offsets, Tensor keep_of_segments, Tensor regions)",
        _visible_fake,
    ),
}


def register(
    operation: str,
    backend: str,
    *,
    module: str | None = None,
    forward: str = "forward",
    backward: str = "backward",
    autocast: torch.dtype | None = None,
) -> Callable[[Any], Any]:
    """Register the operator masked_swin::OPERATION_BACKEND and, if it has a gradient, ..._BACKEND_backward.

    Args:
        module: the module whose functions `forward` and `backward` compute it, imported at the first call. None: a
            C++ library brings the implementation.
        autocast: the dtype that the operator gets its tensors in under CPU autocast. None: those of the caller.

    Returns:
        The `run` of a Backend: calls the operator with `inputs.arguments()`.
    """
    schema = OPERATIONS[operation]
    name = f"{operation}_{backend}"
    _define(name, f"({schema.arguments}) -> {schema.results}", schema.fake)
    if module is not None:
        _implement(name, module, forward)
    if schema.gradient is not None:
        backward_schema = f"(Tensor grad_out, {schema.arguments}) -> {schema.gradient.results}"
        _define(f"{name}_backward", backward_schema, schema.gradient.fake)
        _differentiate(name, schema.gradient)
        if module is not None:
            _implement(f"{name}_backward", module, backward)
    if autocast is not None:
        register_autocast(f"masked_swin::{name}", "cpu", autocast)
    operator = getattr(torch.ops.masked_swin, name)
    _add_vmap(name)

    def run(inputs: Any) -> Any:
        arguments = inputs.arguments()
        if schema.gradient is not None and not torch.compiler.is_compiling():
            _refuse_transforms(operation, backend, arguments)
        return operator(*arguments)

    return run


def _define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    torch.library.define(f"masked_swin::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    register_fake(f"masked_swin::{name}")(fake)


def _implement(name: str, module: str, function: str) -> None:
    def run(*arguments: Any) -> Any:
        return getattr(import_module(module), function)(*arguments)

    torch.library.impl(f"masked_swin::{name}", ("cuda", "cpu"), run)  # the CPU for interpreters of device kernels


def _differentiate(name: str, gradient: Gradient) -> None:
    run_backward = getattr(torch.ops.masked_swin, f"{name}_backward")

    # Arguments may be lists of tensors, which save_for_backward does not take.
    def save(ctx, inputs, output):  # type: ignore
        flat, ctx.structure = tree_flatten(inputs)
        ctx.save_for_backward(*(leaf for leaf in flat if isinstance(leaf, Tensor)))
        ctx.others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in flat]

    def differentiate(ctx, grad_out):  # type: ignore
        tensors = iter(ctx.saved_tensors)
        arguments = tree_unflatten([next(tensors) if o is None else o[0] for o in ctx.others], ctx.structure)
        return gradient.of_inputs(arguments, run_backward(grad_out, *arguments))

    def refuse(ctx, *grads):  # type: ignore
        operation, _, backend = name.rpartition("_")
        raise RuntimeError(
            f"masked_swin: {operation} of backend '{backend}' has no second derivative; "
            "pass backend='reference' to differentiate twice"
        )

    register_autograd(f"masked_swin::{name}", differentiate, setup_context=save)
    register_autograd(f"masked_swin::{name}_backward", refuse, setup_context=lambda ctx, inputs, output: None)


def _refuse_transforms(operation: str, backend: str, arguments: tuple[object, ...]) -> None:
    """Raise where PyTorch would leave out a derivative without a word, or give an error of its own.

    Raises:
        RuntimeError: in forward mode, where the tangents would get lost, and under torch.func's reverse mode.
    """
    interpreters = torch._C._functorch.get_interpreter_stack() or ()
    reverse = any(interpreter.key() == torch._C._functorch.TransformType.Grad for interpreter in interpreters)
    forward = forward_ad._current_level >= 0 and any(
        isinstance(leaf, Tensor) and forward_ad.unpack_dual(leaf).tangent is not None for leaf in tree_leaves(arguments)
    )
    if reverse or forward:
        missing = "forward-mode derivative" if forward else "derivative under torch.func.grad, vjp and jacrev"
        raise RuntimeError(
            f"masked_swin: {operation} of backend '{backend}' has no {missing}; "
            "pass backend='reference', or use torch.autograd"
        )


def _add_vmap(name: str) -> None:
    """Under torch.vmap the operator is called once for each index of the mapped dimension."""
    operator = getattr(torch.ops.masked_swin, name)

    def call_each(info, in_dims, *arguments):  # type: ignore
        def select(index: int) -> Any:
            return tree_map(lambda leaf, dim: leaf if dim is None else leaf.select(dim, index), arguments, in_dims)

        results = [operator(*select(index)) for index in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    register_vmap(f"masked_swin::{name}", call_each)
