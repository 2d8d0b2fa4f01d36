"""The registered operators under opcheck, torch.compile, torch.export, autocast and a second derivative."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from masked_swin.kernels import (
    CPU_LIBRARY,
    SwinBlockWeights,
    VisibleTokens,
    Windows,
    swin_block,
    token_mask,
    window_attention,
)
from tests.support.attention_cases import USES, make_case

pytestmark = pytest.mark.skipif(not CPU_LIBRARY.loaded, reason=f"no native library: {CPU_LIBRARY.why_not}")
CHANNELS, HEADS = 12, 3


def operator_arguments(use):
    case = make_case(use, window=(4, 4), shift=(2, 2), heads=2, head_dim=5, batch=1)
    tensors = {name: t.float().requires_grad_() for name, t in case.tensors.items()}
    plan = case.fixed.get("visible")
    masked = torch.stack([tensors[f"masked_{n}"].detach() for n in "qkv"]).requires_grad_() if use == "zero" else None
    mask = case.fixed.get("window_mask")
    return (
        *(tensors[name] for name in ("q", "k", "v", "bias")),
        masked,
        None if plan is None else plan.offsets,
        None if plan is None else plan.position,
        None if plan is None else plan.regions,
        None if mask is None else mask.float(),
        0.4,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
@pytest.mark.parametrize("use", USES)
def test_opcheck_window_attention(use):
    torch.library.opcheck(torch.ops.masked_swin.window_attention_cpu.default, operator_arguments(use))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_opcheck_swin_block(mode):
    weights = [w.detach().requires_grad_() for w in random_weights()[:13]]
    windows = Windows(8, 8, (4, 4), (2, 2))
    plan = VisibleTokens.from_keep(torch.rand(2, 64) < 0.4, windows)
    x = torch.randn(2, 8, 8, CHANNELS, requires_grad=True)
    token = torch.randn(CHANNELS, requires_grad=True) if mode == 1 else None
    arguments = (x, weights, token, plan.image_keep, torch.rand(2, 2), 4, 4, 2, 2, mode, torch.float32)
    torch.library.opcheck(torch.ops.masked_swin.swin_block_cpu.default, arguments)


def test_opcheck_token_mask():
    percent = torch.tensor([[30], [50], [70]])
    arguments = (torch.tensor(1), torch.tensor(2), torch.arange(3), percent, 1, 40, 1, 1, 0, 0, 2, False)
    torch.library.opcheck(torch.ops.masked_swin.token_mask_cpu.default, arguments)


def test_opcheck_random_words():
    arguments = (torch.tensor(1), torch.tensor(2), torch.arange(3), 2**32 - 2, 40, 2**32 - 1, 2)
    torch.library.opcheck(torch.ops.masked_swin.random_words_cpu.default, arguments)


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


def random_weights() -> SwinBlockWeights:
    def random(*shape):
        return (0.3 * torch.randn(*shape)).requires_grad_()

    c, hidden = CHANNELS, 2 * CHANNELS
    return SwinBlockWeights(
        *(random(c), random(c), random(3 * c, c), random(3 * c), random(49, HEADS), random(c, c), random(c)),
        *(random(c), random(c), random(hidden, c), random(hidden), random(c, hidden), random(c), random(c)),
    )


class MaskedBlock(torch.nn.Module):
    """Draws a mask, builds the plan and runs a block, as a model does."""

    def __init__(self, mode="zero", backend=None):
        super().__init__()
        self.mode, self.backend = mode, backend
        self.weights = random_weights()
        for name, weight in self.weights._asdict().items():
            self.register_parameter(name, torch.nn.Parameter(weight.detach()))

    def forward(self, x, seed, draw, sample):
        windows = Windows(x.shape[1], x.shape[2], (4, 4), (2, 2))
        keep = ~token_mask(seed, draw, sample, windows.tokens, (0.5, 0.75))
        weights = SwinBlockWeights(**{name: getattr(self, name) for name in SwinBlockWeights._fields})
        visible = VisibleTokens.from_keep(keep, windows)
        options = {"visible": visible, "mode": self.mode, "backend": self.backend}
        return swin_block(x, weights, window=(4, 4), shift=(2, 2), **options)


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
