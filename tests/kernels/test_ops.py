"""The registered operators under opcheck, torch.compile, torch.export, autocast and a second derivative."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from masked_swin.kernels import window_attention
from tests.support.block_cases import CHANNELS, MaskedBlock
from tests.support.examples import all_examples, examples
from tests.support.native import needs_native

pytestmark = needs_native


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
@pytest.mark.parametrize(
    ("operation", "backend", "example"),
    [case for case in all_examples() if hasattr(torch.ops.masked_swin, f"{case[0]}_{case[1]}")],
)
def test_opcheck(operation, backend, example):
    operator = getattr(torch.ops.masked_swin, f"{operation}_{backend}").default
    torch.library.opcheck(operator, examples(operation)[example].arguments())


def test_second_derivative_is_refused_with_the_way_out():
    q, k, v = torch.randn(3, 1, 4, 2, 3, requires_grad=True)
    bias = torch.randn(2, 4, 4)
    out = window_attention(q, k, v, bias, scale=0.5, backend="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="pass backend='reference' to differentiate twice"):
        grad.sum().backward()
    out = window_attention(q, k, v, bias, scale=0.5, backend="reference")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    grad.square().sum().backward()


@pytest.mark.filterwarnings("ignore")  # what inductor itself warns of
@pytest.mark.parametrize(
    ("mode", "backend"), [("zero", None), ("drop", None), ("visible", None), ("visible", "composed")]
)
def test_compiled_in_one_graph_for_all_sizes_and_draws(mode, backend):
    """fullgraph=True: masks, plan and block without a break; new draws and sizes do not compile again."""
    block = MaskedBlock(mode, backend)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    compilations: list[int] = []
    for draw, (batch, height, width) in enumerate([(2, 8, 20), (3, 24, 16), (5, 12, 28)]):
        x = torch.randn(batch, height, width, CHANNELS, requires_grad=True)
        key = torch.tensor(5), torch.tensor(draw), torch.arange(batch)
        eager, ours = block(x, *key), compiled(x, *key)
        torch.testing.assert_close(ours, eager)
        wanted = torch.autograd.grad(eager.square().sum(), [x, *block.parameters()], allow_unused=True)
        grads = torch.autograd.grad(ours.square().sum(), [x, *block.parameters()], allow_unused=True)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-4)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1, f"compiled again: {compilations}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_by_inductor():
    block = MaskedBlock()
    compiled = torch.compile(block, fullgraph=True)
    x = torch.randn(2, 8, 8, CHANNELS)
    for draw in range(3):
        key = torch.tensor(5), torch.tensor(draw), torch.arange(2)
        torch.testing.assert_close(compiled(x, *key), block(x, *key))


@pytest.mark.filterwarnings("ignore")
def test_exported():
    block = MaskedBlock()
    x = torch.randn(2, 8, 8, CHANNELS)
    key = torch.tensor(5), torch.tensor(1), torch.arange(2)
    program = torch.export.export(block, (x, *key))
    torch.testing.assert_close(program.module()(x, *key), block(x, *key))


@pytest.mark.parametrize("mode", ["zero", "drop", "visible"])
def test_autocast_keeps_the_attention_in_fp32(mode):
    block = MaskedBlock(mode)
    x = torch.randn(2, 8, 8, CHANNELS)
    key = torch.tensor(5), torch.tensor(1), torch.arange(2)
    exact = block(x, *key)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x, *key)
    assert (out - exact).norm() < 0.02 * exact.norm()
    out.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())
    q, k, v = torch.randn(3, 1, 4, 2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert window_attention(q, k, v, torch.zeros(2, 4, 4), scale=0.5).dtype == torch.float32
