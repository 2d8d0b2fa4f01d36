"""The Swin block of the Triton backend against float64: in Triton's interpreter, and compiled and run by ptxsim."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from masked_swin.kernels import SwinBlockWeights, VisibleTokens, Windows, relative_position_bias, swin_block
from masked_swin.kernels.backends import choose
from masked_swin.kernels.geometry import shift_regions
from masked_swin.kernels.swin_block import BlockInputs
from masked_swin.kernels.triton import launch, position
from masked_swin.kernels.triton import swin_block as triton_block
from masked_swin.kernels.triton.launch import product_precision
from tests.support.attention_cases import relative_error
from tests.support.block_cases import NAMES, SHAPES, MaskedBlock, check_errors, random_weights, run
from tests.support.triton_on_ptxsim import on_ptxsim

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


def check_with_tf32_allowed(*arguments):
    """More than 64 channels are not computed exactly on devices; the interpreter does, whatever is allowed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        check_errors(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(interpreted, mode, shape):
    options = SHAPES[shape] | ({} if "size" in SHAPES[shape] else ONE_IMAGE)
    check = check_errors if options.get("channels", 60) <= 64 else check_with_tf32_allowed
    interpreted(check, mode, options, False, 2.4e-7, "triton", 1)


@pytest.mark.parametrize("mode", ["zero", "drop", "visible"])
def test_half_precision(interpreted, mode):
    """In float16; the interpreter multiplies bfloat16 wrongly."""
    interpreted(check_errors, mode, RECTANGLE | {"half": torch.float16}, True, 1e-3, "triton", 1)


@pytest.mark.parametrize("mode", ["zero", *(pytest.param(mode, marks=pytest.mark.slow) for mode in MODES[1:])])
def test_compiled_in_bfloat16(mode):
    with on_ptxsim() as emulator:
        check_errors(mode, ONE_IMAGE, True, 0.0, "triton", 1)
    assert {"tokens_to_heads_kernel", "forward_kernel", "projection_kernel", "mlp_kernel"} <= {
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


def capacity_for_every_token(mode):
    """As on a device, where the list has room for every token, and only the device knows how many are visible."""
    exact = run(mode, torch.float32, "triton", **RECTANGLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        roomy = run(mode, torch.float32, "triton", **RECTANGLE)
    for name, a, b in zip(NAMES, roomy, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("mode", ["drop", "visible"])
def test_entries_that_no_window_owns(interpreted, mode):
    interpreted(capacity_for_every_token, mode)


def masked_tokens(narrow):
    """Mode "visible" with an infinity in every masked token: it comes out as it came in, and nothing else sees it."""
    weights = SwinBlockWeights(*(w.detach().to(narrow) for w in random_weights()[:13]))
    windows = Windows(8, 12, (4, 4), (2, 2))
    keep = torch.rand(2, windows.tokens) < 0.4
    x = torch.randn(2, 8, 12, 12, dtype=narrow)
    x[~keep.view(2, 8, 12)] = float("inf")
    x.requires_grad_()
    visible = VisibleTokens.from_keep(keep, windows)
    y = swin_block(x, weights, window=(4, 4), shift=(2, 2), visible=visible, mode="visible", backend="triton")
    grad = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, grad)
    masked = ~keep.view(2, 8, 12)
    assert torch.equal(y[masked], x[masked])
    assert torch.equal(dx[masked], grad[masked])
    assert y[~masked].isfinite().all()
    assert dx[~masked].isfinite().all()
    assert not (y[~masked] == x[~masked]).all(1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_masked_tokens_come_out_as_they_came_in(interpreted, dtype):
    interpreted(masked_tokens, dtype)


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
    """Arguments of the operator; the list has room for every token where `torch.compiler.is_compiling()`."""
    weights = [w.detach().requires_grad_() for w in random_weights()[:13]]
    keep = torch.rand(1, 32) < 0.4
    x = torch.randn(1, 4, 8, 12, requires_grad=True)
    token = torch.randn(12, requires_grad=True) if mode == 1 else None
    return x, weights, token, keep, torch.rand(2, 1), 4, 4, 2, 2, mode, torch.float32


@pytest.mark.parametrize("mode", range(4))
def test_nothing_waits_for_the_device(mode, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(launch, "launch", lambda *arguments, **constants: None)
    x, *rest = block_arguments(mode)
    with torch.no_grad(), _NoWaiting():
        triton_block.forward(x, *rest)
        triton_block.backward(x, x, *rest)
        with pytest.raises(AssertionError, match=r"item|_local_scalar_dense"):
            x.sum().item()


def operator_checks(mode):
    torch.library.opcheck(torch.ops.masked_swin.swin_block_triton.default, block_arguments(mode))


@pytest.mark.parametrize("mode", [1, *(pytest.param(mode, marks=pytest.mark.slow) for mode in (2, 3))])
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


def position_tables():
    for windows in (Windows(12, 15, (3, 5), (1, 2)), Windows(8, 6, (4, 2), (0, 1)), Windows(4, 8, (4, 8), (3, 4))):
        height, width = windows.window
        table = torch.randn((2 * height - 1) * (2 * width - 1), 3, requires_grad=True)
        bias = relative_position_bias(table, windows.window)
        assert torch.equal(position.position_bias(table.detach(), windows.window), bias)
        grad = torch.randn_like(bias)
        ours = position.table_gradient(grad, table, windows.window)
        torch.testing.assert_close(ours, torch.autograd.grad(bias, table, grad)[0])
        ours = position.shift_regions(windows, table.device)
        assert torch.equal(ours, shift_regions(windows).int())


def test_bias_its_gradient_and_regions(interpreted):
    interpreted(position_tables)


def weights_of(c, heads):
    """Zeros."""
    shapes = [(c,), (c,), (3 * c, c), (3 * c,), (49, heads), (c, c), (c,), (c,), (c,), (c, c), (c,), (c, c), (c,)]
    return SwinBlockWeights(*(torch.zeros(shape) for shape in shapes))


def test_refusals_name_the_reason():
    """What it cannot take is composed, here without a device."""
    block = random_weights()
    x = torch.zeros(1, 8, 8, 12)
    with pytest.raises(ValueError, match=r"triton: (PyTorch sees no NVIDIA or AMD device here|needs a CUDA tensor)"):
        swin_block(x, block, window=(4, 4), shift=(0, 0), backend="triton")
    keep = VisibleTokens.from_keep(torch.ones(1, 3, 64).bool(), Windows(8, 8, (4, 4)))
    with on_ptxsim():
        with pytest.raises(ValueError, match="triton: x has 264 channels, at most 256 fit"):
            swin_block(torch.zeros(1, 8, 8, 264), weights_of(264, 8), window=(4, 4), shift=(0, 0), backend="triton")
        with pytest.raises(ValueError, match="triton: per-head masks are not in this kernel"):
            swin_block(x, block, window=(4, 4), shift=(0, 0), visible=keep, backend="triton")


def test_exact_products_of_many_channels_are_left_to_pytorch():
    x, weights, windows = torch.zeros(1, 8, 8, 68), weights_of(68, 4), Windows(8, 8, (4, 4))
    inputs = BlockInputs(x, weights, windows, None, "zero", None)
    with on_ptxsim(), pytest.MonkeyPatch.context() as patch:
        with pytest.raises(ValueError, match="triton: exact float32 products of 68 channels, more than 64, are faster"):
            swin_block(x, weights, window=(4, 4), shift=(0, 0), backend="triton")
        with torch.autocast("cpu", torch.bfloat16):
            assert choose("swin_block", inputs, "triton").name == "triton"
        patch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        assert choose("swin_block", inputs, "triton").name == "triton"


def test_a_compiled_graph_follows_the_precision_of_products():
    """It is read while the graph is traced."""
    follow = torch.compile(lambda x: x + (product_precision() == "tf32"), fullgraph=True, backend="eager")
    before = torch.get_float32_matmul_precision()
    try:
        for precision, result in (("highest", 0), ("high", 1), ("highest", 0)):
            torch.set_float32_matmul_precision(precision)
            assert follow(torch.zeros(())) == result
    finally:
        torch.set_float32_matmul_precision(before)
