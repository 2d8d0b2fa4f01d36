"""The Swin block of the Triton backend against float64: in Triton's interpreter, and compiled and run by ptxsim."""

import pytest
import torch
from attention_cases import relative_error
from test_fused_block import NAMES, SHAPES, check_errors, run
from test_ops import MaskedBlock, random_weights
from torch.utils._python_dispatch import TorchDispatchMode
from triton_on_ptxsim import on_ptxsim

from masked_swin.kernels import (
    SwinBlockWeights,
    VisibleTokens,
    Windows,
    relative_position_bias,
    swin_block,
    triton_block,
    triton_launch,
    triton_position,
)
from masked_swin.kernels.geometry import shift_regions

MODES = ("zero", "token", "drop", "visible")
ONE_IMAGE = {"size": (16, 8), "batch": 1}
RECTANGLE = SHAPES["rectangle"] | {"drop_path": True}
QUICK = [
    ("zero", RECTANGLE),
    ("token", RECTANGLE),
    ("drop", RECTANGLE),
    ("zero", RECTANGLE | {"keep": None}),
    ("zero", RECTANGLE | {"keep": 0.0}),
    ("drop", RECTANGLE | {"keep": 0.0}),
    ("token", RECTANGLE | {"keep": 1.0, "shift": (0, 0)}),
    ("visible", RECTANGLE),
    ("visible", RECTANGLE | {"keep": 0.0}),
]


@pytest.mark.parametrize(("mode", "shape"), QUICK)
def test_output_and_every_gradient(interpreted, mode, shape):
    interpreted(check_errors, mode, shape, False, 2.4e-7, "triton", 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(interpreted, mode, shape):
    options = SHAPES[shape] | ({} if "size" in SHAPES[shape] else ONE_IMAGE)
    interpreted(check_errors, mode, options, False, 2.4e-7, "triton", 1)


@pytest.mark.parametrize("mode", ["zero", "drop"])
def test_half_precision(interpreted, mode):
    """In float16; the interpreter multiplies bfloat16 wrongly."""
    interpreted(check_errors, mode, RECTANGLE | {"half": torch.float16}, True, 1e-3, "triton", 1)


@pytest.mark.parametrize("mode", ["zero", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:])])
def test_compiled_in_bfloat16(mode):
    with on_ptxsim() as emulator:
        check_errors(mode, ONE_IMAGE, True, 0.0, "triton", 1)
    assert {"rows_to_heads_kernel", "forward_kernel", "projection_kernel", "mlp_kernel"} <= {
        launch.kernel for launch in emulator.launches
    }


def other_layouts_and_dtypes():
    """Strided x and gradient; an x in float16 without autocast; weights in another dtype than x under autocast."""
    weights = [w.detach().requires_grad_() for w in random_weights()[:13]]
    options = {"window": (4, 4), "shift": (2, 2), "backend": "triton"}

    def block(x, grad, weights, **more):
        out = swin_block(x, SwinBlockWeights(*weights), **options, **more)
        return [out, *torch.autograd.grad(out, [x, *weights], grad)]

    x = torch.randn(1, 12, 4, 8).permute(0, 2, 3, 1).requires_grad_()
    grad = torch.randn(1, 12, 4, 8).permute(0, 2, 3, 1)
    dense = x.detach().contiguous().requires_grad_(), grad.contiguous()
    exact = block(*dense, weights)
    for a, b in zip(block(x, grad, weights), exact, strict=True):
        assert torch.equal(a, b)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            narrow_x = x.half().detach().requires_grad_()
            ours = block(narrow_x, grad.half(), weights if autocast else [w.half() for w in weights])
        assert [t.dtype for t in ours[:2]] == [torch.float16] * 2
        assert max(relative_error(a, b) for a, b in zip(ours, exact, strict=True)) < 5e-3


def test_other_layouts_and_dtypes(interpreted):
    interpreted(other_layouts_and_dtypes)


def capacity_for_every_token():
    """As on a device, where the list of visible tokens has a row for every token and no one knows how many it holds."""
    exact = run("drop", torch.float32, "triton", **RECTANGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        roomy = run("drop", torch.float32, "triton", **RECTANGLE)
    for name, a, b in zip(NAMES, roomy, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


def test_rows_that_no_window_owns(interpreted):
    interpreted(capacity_for_every_token)


class _NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device, and shapes that depend on data."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_numbers = function is torch.ops.aten.index.Tensor and all(
            i is None or i.dtype != torch.bool for i in args[1]
        )
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*function.tags}
        assert by_numbers or not waits, function
        return function(*args, **(kwargs or {}))


def block_arguments(mode):
    """Of the operator; every token has a row in the plan where `torch.compiler.is_compiling()`."""
    weights = [w.detach().requires_grad_() for w in random_weights()[:13]]
    keep = torch.rand(1, 32) < 0.4
    x = torch.randn(1, 4, 8, 12, requires_grad=True)
    token = torch.randn(12, requires_grad=True) if mode == 1 else None
    return x, weights, token, keep, torch.rand(2, 1), 4, 4, 2, 2, mode, torch.float32


@pytest.mark.parametrize("mode", range(3))
def test_nothing_waits_for_the_device(mode, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(triton_launch, "launch", lambda *arguments, **constants: None)
    x, *rest = block_arguments(mode)
    with torch.no_grad(), _NoWaiting():
        triton_block.forward(x, *rest)
        triton_block.backward(x, x, *rest)
        with pytest.raises(AssertionError, match=r"item|_local_scalar_dense"):
            x.sum().item()


def operator_checks(mode):
    torch.library.opcheck(torch.ops.masked_swin.swin_block_triton.default, block_arguments(mode))


@pytest.mark.parametrize("mode", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_opcheck(interpreted, mode):
    interpreted(operator_checks, mode)


def compiled_in_one_graph():
    block = MaskedBlock(backend="triton")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(2, 4, 8, 12, requires_grad=True)
    key = torch.tensor(5), torch.tensor(1), torch.arange(2)
    eager, ours = block(x, *key), compiled(x, *key)
    torch.testing.assert_close(ours, eager)
    wanted = torch.autograd.grad(eager.square().sum(), [x, *block.parameters()], allow_unused=True)
    grads = torch.autograd.grad(ours.square().sum(), [x, *block.parameters()], allow_unused=True)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_compiled_in_one_graph(interpreted):
    interpreted(compiled_in_one_graph)


def places():
    for windows in (Windows(12, 15, (3, 5), (1, 2)), Windows(8, 6, (4, 2), (0, 1)), Windows(4, 8, (4, 8), (3, 4))):
        height, width = windows.window
        table = torch.randn((2 * height - 1) * (2 * width - 1), 3, requires_grad=True)
        bias = relative_position_bias(table, windows.window)
        assert torch.equal(triton_position.position_bias(table.detach(), windows.window), bias)
        grad = torch.randn_like(bias)
        ours = triton_position.table_gradient(grad, table, windows.window)
        torch.testing.assert_close(ours, torch.autograd.grad(bias, table, grad)[0])
        ours = triton_position.shift_regions(windows, table.device)
        assert torch.equal(ours, shift_regions(windows).int())


def test_bias_its_gradient_and_regions(interpreted):
    interpreted(places)


def test_refusals_name_the_reason():
    """What it cannot take is composed, here without a device."""
    block = random_weights()
    x = torch.zeros(1, 8, 8, 12)
    with pytest.raises(ValueError, match=r"triton: (PyTorch sees no NVIDIA or AMD device here|needs a CUDA tensor)"):
        swin_block(x, block, window=(4, 4), shift=(0, 0), backend="triton")
    wide = SwinBlockWeights(
        *(torch.zeros(s) for s in [(264,), (264,), (792, 264), (792,), (49, 8), (264, 264), (264,), (264,), (264,)]),
        *(torch.zeros(s) for s in [(264, 264), (264,), (264, 264), (264,)]),
    )
    keep = VisibleTokens.from_keep(torch.ones(1, 3, 64).bool(), Windows(8, 8, (4, 4)))
    with on_ptxsim():
        with pytest.raises(ValueError, match="triton: x has 264 channels, at most 256 fit"):
            swin_block(torch.zeros(1, 8, 8, 264), wide, window=(4, 4), shift=(0, 0), backend="triton")
        with pytest.raises(ValueError, match="triton: per-head masks are not in this kernel"):
            swin_block(x, block, window=(4, 4), shift=(0, 0), visible=keep, backend="triton")
        keep = VisibleTokens.from_keep(torch.ones(1, 64).bool(), keep.windows)
        with pytest.raises(ValueError, match="triton: mode 'visible' is not in this kernel"):
            swin_block(x, block, window=(4, 4), shift=(0, 0), visible=keep, mode="visible", backend="triton")
