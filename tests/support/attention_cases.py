"""Inputs for window_attention in every use, in float64, to be converted to the dtype under test."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from masked_swin.kernels import VisibleTokens, Windows, shift_mask, window_attention

USES = ("dense", "zero", "drop", "visible")


@dataclass
class Case:
    """One call of window_attention: `tensors` are differentiable, `fixed` are not."""

    tensors: dict[str, Tensor]
    fixed: dict[str, object]

    def run(self, dtype: torch.dtype, backend: str | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The output and the gradient of each tensor, for a fixed random cotangent."""
        inputs = {name: tensor.to(dtype).requires_grad_() for name, tensor in self.tensors.items()}
        masked = tuple(inputs[name] for name in ("masked_q", "masked_k", "masked_v") if name in inputs) or None
        fixed = {name: v.to(dtype) if name == "window_mask" else v for name, v in self.fixed.items()}  # type: ignore[union-attr]
        out = window_attention(
            inputs["q"], inputs["k"], inputs["v"], inputs["bias"], shared_qkv=masked, backend=backend, **fixed
        )
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(out)
        grads = torch.autograd.grad((out * cotangent).sum(), list(inputs.values()))
        return out.detach(), dict(zip(inputs, grads, strict=True))


def make_case(
    use: str,
    *,
    window: tuple[int, int] = (8, 8),
    shift: tuple[int, int] = (4, 4),
    grid: tuple[int, int] = (3, 2),
    heads: int = 6,
    head_dim: int = 10,
    keep: float = 0.25,
    batch: int = 2,
    scale: float = 0.37,
    magnitude: float = 1.0,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return magnitude * torch.randn(*shape, generator=generator, dtype=torch.float64)

    windows = Windows(window[0] * grid[0], window[1] * grid[1], window, shift)
    mask = torch.rand(batch, windows.tokens, generator=generator) < keep
    visible = VisibleTokens.from_keep(mask, windows)
    rows, count, size = len(visible.token_index), batch * windows.count, windows.size
    compact, windowed = (rows, heads, head_dim), (count, size, heads, head_dim)
    q, kv = {
        "dense": (windowed, windowed),
        "zero": (compact, compact),
        "drop": (windowed, compact),
        "visible": (compact, compact),
    }[use]
    tensors = {"q": random(*q), "k": random(*kv), "v": random(*kv), "bias": random(heads, size, size)}
    if use == "zero":
        tensors |= {f"masked_{name}": random(heads, head_dim) for name in "qkv"}
    fixed: dict[str, object] = {"scale": scale}
    if use == "dense":
        fixed["window_mask"] = shift_mask(windows).double()
    else:
        fixed["visible"] = visible
    return Case(tensors, fixed)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Norm of the error over the norm of the truth; 0 where both vanish."""
    norm = truth.double().norm().item()
    error = (value.double() - truth.double()).norm().item()
    return error / norm if norm > 0 else error


def errors(case: Case, dtype: torch.dtype, backend: str) -> dict[str, tuple[float, float]]:
    """Relative errors of the output and every gradient against float64: of the backend, and of torch's own operators.

    The case is rounded to `dtype` first: the errors are those of the computation.
    """
    case = Case({name: tensor.to(dtype).double() for name, tensor in case.tensors.items()}, case.fixed)
    truth, true_grads = case.run(torch.float64, "reference")
    ours, our_grads = case.run(dtype, backend)
    eager, eager_grads = case.run(dtype, "reference")
    found = {}
    for name, exact, value, yardstick in [
        ("out", truth, ours, eager),
        *((n, true_grads[n], our_grads[n], eager_grads[n]) for n in true_grads),
    ]:
        assert value.dtype == dtype, name
        assert value.isfinite().all(), name
        if exact.norm() > 1e-9 * (1 + truth.norm()):  # gradients that vanish in theory have no relative error
            found[name] = relative_error(value, exact), relative_error(yardstick, exact)
        else:
            assert value.norm() <= 10 * torch.finfo(dtype).eps * (1 + truth.norm()), name
    return found


def assert_small(found: dict[str, tuple[float, float]], dtype: torch.dtype) -> None:
    """Errors are at most twice those of torch's own operators, plus two roundings."""
    for name, (ours, eager) in found.items():
        assert ours <= 2 * eager + 2 * torch.finfo(dtype).eps, f"{name}: {ours:.1e}, torch {eager:.1e}"


def mean_error(values: list[float]) -> float:
    return sum(values) / len(values)


def check_padded_heads(dtype: torch.dtype) -> None:
    """The Triton backend as the block calls it, heads padded to whole sectors, against the operator."""
    from masked_swin.kernels.triton import window_attention as triton_backend

    torch.manual_seed(0)
    heads, head_dim, width = 2, 5, triton_backend.padded_head_dim(5, dtype)
    assert width * dtype.itemsize == 32
    windows = Windows(8, 8, (4, 4), (2, 2))
    plan = VisibleTokens.from_keep(torch.rand(2, 64) < 0.4, windows)

    def buffer(*shape: int) -> Tensor:
        return torch.zeros(*shape, heads, width, dtype=dtype)

    qkv, d_qkv = buffer(len(plan.token_index), 3), buffer(len(plan.token_index), 3).fill_(7.0)
    out, grad_out = buffer(8, 16).fill_(7.0), buffer(8, 16)
    for tensor in (qkv, grad_out):
        tensor[..., :head_dim].normal_()
    heads_of = [tensor[..., :head_dim] for tensor in (out, grad_out)]
    q, k, v = qkv[..., :head_dim].unbind(1)
    masked, bias = torch.randn(3, heads, head_dim).to(dtype), torch.randn(heads, 16, 16).to(dtype)
    fixed = (bias, masked, plan.offsets, plan.position, plan.regions, None, 0.5)
    stats = torch.empty(heads, 3, 8 * 16)
    call = triton_backend.prepare(q, k, v, *fixed, padded=True)
    assert call.q.data_ptr() == qkv.data_ptr()  # no copy
    triton_backend.run_forward(call, heads_of[0], stats)
    d_inputs = d_qkv[..., :head_dim].unbind(1)
    found = triton_backend.run_backward(call, heads_of[1], heads_of[0], stats, *d_inputs)
    inputs = (q.contiguous(), k.contiguous(), v.contiguous(), *fixed)
    wanted = (triton_backend.forward(*inputs), *triton_backend.backward(heads_of[1].contiguous(), *inputs))
    for ours, exact in zip((heads_of[0], *d_inputs, *found), wanted, strict=True):
        assert relative_error(ours, exact) < 2 * torch.finfo(dtype).eps
    assert out[..., head_dim:].count_nonzero() == d_qkv[..., head_dim:].count_nonzero() == 0
    with pytest.raises(ValueError, match="equally far apart"):
        triton_backend.run_forward(call, heads_of[0].contiguous())
