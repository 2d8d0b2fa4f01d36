"""The registered operators: schema, shape function, gradient and autocast, once for every native backend.

Flat tensors only, so that torch.compile, torch.export and opcheck see through them. Contracts are in
window_attention.py.
"""

import torch
from torch import Tensor
from torch.library import register_autocast, register_autograd, register_fake

NATIVE_BACKENDS = ("cpu",)

_ATTENTION = (
    "Tensor q, Tensor k, Tensor v, Tensor bias, Tensor? masked, Tensor? offsets, Tensor? position, Tensor? regions, "
    "Tensor? window_mask"
)
# stats: (W, 2, H, T) fp32, for each query the largest score and 1 / sum of exponentials
_SCHEMAS = {
    "window_attention_{}": f"({_ATTENTION}, float scale) -> (Tensor out, Tensor stats)",
    "window_attention_{}_backward": f"(Tensor grad_out, {_ATTENTION}, Tensor stats, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}
_NO_DOUBLE_BACKWARD = (
    "masked_swin: window_attention of backend '{}' has no second derivative; "
    "pass backend='reference' to differentiate twice"
)


def _attention_fake(q, k, v, bias, masked, offsets, position, regions, window_mask, scale):  # type: ignore
    heads, queries, _ = bias.shape
    windows = q.shape[0] if offsets is None else offsets.shape[0] - 1
    shape = q.shape if masked is None and q.dim() == 3 else (windows, queries, heads, q.shape[-1])
    return q.new_empty(shape), q.new_empty((windows, 2, heads, queries))


def _attention_backward_fake(grad_out, q, k, v, bias, masked, *rest):  # type: ignore[no-untyped-def]
    like = [tensor.new_empty(tensor.shape) for tensor in (q, k, v, bias)]
    return (*like, q.new_empty((0,)) if masked is None else masked.new_empty(masked.shape))


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def _register(backend: str) -> None:
    for name, schema in _SCHEMAS.items():
        torch.library.define(f"masked_swin::{name.format(backend)}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    forward, backward = (f"masked_swin::{name.format(backend)}" for name in _SCHEMAS)
    run_backward = getattr(torch.ops.masked_swin, f"window_attention_{backend}_backward")

    def gradient(ctx, grad_out: Tensor | None, _grad_stats: Tensor | None):  # type: ignore[no-untyped-def]
        if grad_out is None:
            return (None,) * 10
        *inputs, stats = ctx.saved_tensors
        dq, dk, dv, d_bias, d_masked = run_backward(grad_out, *inputs, stats, ctx.scale)
        return dq, dk, dv, d_bias, None if inputs[4] is None else d_masked, None, None, None, None, None

    def refuse(ctx, *grads):  # type: ignore[no-untyped-def]
        raise RuntimeError(_NO_DOUBLE_BACKWARD.format(backend))

    register_fake(forward)(_attention_fake)
    register_fake(backward)(_attention_backward_fake)
    register_autograd(forward, gradient, setup_context=_save)
    register_autograd(backward, refuse, setup_context=lambda ctx, inputs, output: None)
    register_autocast(forward, backend, torch.float32)


def _register_token_mask() -> None:
    name = "masked_swin::token_mask_cpu"
    schema = (
        "(Tensor seed, Tensor draw, Tensor sample, SymInt tokens, int heads, int low, int high, "
        "bool ratio_per_sample) -> Tensor"
    )
    torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))

    @register_fake(name)
    def _(seed, draw, sample, tokens, heads, low, high, ratio_per_sample):  # type: ignore[no-untyped-def]
        return sample.new_empty((sample.shape[0], heads, tokens), dtype=torch.bool)


for _backend in NATIVE_BACKENDS:
    _register(_backend)
_register_token_mask()
