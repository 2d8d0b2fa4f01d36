"""The Triton backend on a device: `make test-gpu`."""

import pytest
import torch
from attention_cases import USES, Case, assert_small, errors, make_case

from masked_swin.kernels import window_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA or AMD device"),
]


def on_device(case: Case) -> Case:
    from masked_swin.kernels import VisibleTokens

    fixed = dict(case.fixed)
    if "visible" in fixed:
        plan = fixed["visible"]
        fixed["visible"] = VisibleTokens.from_keep(plan.image_keep.cuda(), plan.windows)  # every token has a row
        rows = len(fixed["visible"].index)
        grown = {}
        for name, tensor in case.tensors.items():
            grown[name] = tensor
            if tensor.dim() == 3 and name in "qkv":
                grown[name] = tensor.new_zeros(rows, *tensor.shape[1:])
                grown[name][: len(tensor)] = tensor
        case = Case(grown, fixed)
    fixed = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in fixed.items()}
    return Case({name: tensor.cuda() for name, tensor in case.tensors.items()}, fixed)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [{}, {"window": (3, 5), "shift": (1, 2), "heads": 2, "head_dim": 7}], ids=["8x8", "3x5"]
)
def test_output_and_every_gradient(use, dtype, shape):
    assert_small(errors(on_device(make_case(use, **shape)), dtype, "triton"), dtype)


@pytest.mark.parametrize("use", USES)
def test_same_bits_every_time(use):
    case = on_device(make_case(use))
    first, second = (case.run(torch.bfloat16, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_captured_in_a_cuda_graph():
    q, k, v = torch.randn(3, 8, 64, 6, 10, device="cuda").unbind()
    bias = torch.randn(6, 64, 64, device="cuda")
    window_attention(q, k, v, bias, scale=0.3)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = window_attention(q, k, v, bias, scale=0.3)
    q.normal_()
    graph.replay()
    torch.testing.assert_close(out, window_attention(q, k, v, bias, scale=0.3))
