"""The Triton backend in Triton's interpreter, against the specification in float64.

The interpreter is chosen when Triton is imported, hence a process of its own; it multiplies bfloat16 wrongly, so that
float32 and float16 are checked here and bfloat16 by executing compiled kernels (test_triton_ptxsim.py).
"""

import os

import pytest
import torch

from masked_swin.kernels import VisibleTokens, Windows, window_attention
from tests.support.attention_cases import USES, assert_small, check_padded_heads, errors, make_case, relative_error
from tests.support.examples import examples

SHAPES = {
    "published": {"heads": 2, "grid": (2, 2), "batch": 1},
    "head_dim 30": {"heads": 2, "head_dim": 30, "grid": (1, 2), "shift": (0, 0)},
    "head_dim 16": {"heads": 1, "head_dim": 16, "window": (7, 7), "shift": (3, 3), "grid": (2, 1), "batch": 1},
    "head_dim 64": {"heads": 1, "head_dim": 64, "window": (4, 4), "shift": (2, 2), "grid": (2, 1)},
    "rectangle": {"window": (3, 5), "shift": (1, 2), "heads": 2, "head_dim": 7, "keep": 0.5},
    "tiny": {"window": (1, 2), "shift": (0, 0), "heads": 1, "head_dim": 3, "keep": 0.5},
    "no token visible": {"keep": 0.0, "heads": 1, "grid": (2, 1)},
    "all visible": {"keep": 1.0, "heads": 1, "grid": (2, 1)},
    "about one visible": {"keep": 0.02, "heads": 2, "grid": (2, 1)},
    "large scores": {"magnitude": 6.0, "heads": 2, "grid": (2, 2)},
    "window 12": {"window": (12, 12), "shift": (6, 6), "heads": 1, "head_dim": 32, "grid": (1, 2), "batch": 1},
    "window 16": {"window": (16, 16), "shift": (8, 8), "heads": 1, "head_dim": 30, "grid": (1, 1), "batch": 1},
}

QUICK = ("published", "rectangle", "all visible", "large scores")


def case_errors(use, shape, dtype, window_mask=False):
    assert os.environ["TRITON_INTERPRET"] == "1"
    case = make_case(use, **SHAPES[shape])
    if window_mask:
        size = case.tensors["bias"].shape[1]
        mask = torch.randn(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        mask[0, :, ::5] = float("-inf")  # masked and visible keys alike are excluded
        mask[1, 2] = float("-inf")  # a query without any key
        case.fixed["window_mask"] = mask
    return errors(case, dtype, "triton")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shape", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in SHAPES])
def test_output_and_every_gradient(interpreted, use, shape):
    assert_small(interpreted(case_errors, use, shape, torch.float32), torch.float32)


def as_with_many_windows(use):
    """Chunks of windows: three and two; kinds of windows in chunks of three and two, too."""
    from masked_swin.kernels.triton import window_attention as triton_backend

    case = make_case(use, window=(3, 5), shift=(1, 2), grid=(5, 1), batch=1, heads=3, head_dim=7, keep=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_backend, "BIAS_PARTS", 2)
        patch.setattr(triton_backend, "SHARED_BIAS_PARTS", 2)
        return errors(case, torch.float32, "triton")


@pytest.mark.parametrize("use", USES)
def test_as_with_many_windows(interpreted, use):
    assert_small(interpreted(as_with_many_windows, use), torch.float32)


@pytest.mark.parametrize("use", USES)
def test_half_precision(interpreted, use):
    assert_small(interpreted(case_errors, use, "published", torch.float16), torch.float16)


@pytest.mark.parametrize("use", USES)
def test_window_mask_joins_the_plan(interpreted, use):
    assert_small(interpreted(case_errors, use, "rectangle", torch.float32, True), torch.float32)


def other_numbers_of_keys(queries, keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(6, n, 3, 7, requires_grad=True) for n in (queries, keys, keys))
    bias, mask = torch.randn(3, queries, keys, requires_grad=True), torch.randn(2, queries, keys)
    out = window_attention(q, k, v, bias, scale=0.6, window_mask=mask, backend="triton")
    truth = window_attention(
        *(t.double() for t in (q, k, v, bias)), scale=0.6, window_mask=mask.double(), backend="reference"
    )
    grad = torch.randn(truth.shape)
    ours = torch.autograd.grad(out, [q, k, v, bias], grad)
    wanted = torch.autograd.grad(truth, [q, k, v, bias], grad.double())
    return [relative_error(a, b) for a, b in zip([out, *ours], [truth, *wanted], strict=True)]


@pytest.mark.parametrize("queries_keys", [(9, 16), (64, 1), (5, 37), (1, 4)])
def test_other_numbers_of_keys(interpreted, queries_keys):
    found = interpreted(other_numbers_of_keys, *queries_keys)
    if queries_keys[1] == 1:  # softmax over one key is constant: dq, dk and the bias gradient vanish
        found = [found[0], found[3]]
    assert max(found) < 2e-6, found


def layouts():
    qkv = torch.randn(4, 16, 3, 2, 6, requires_grad=True)
    bias = torch.randn(2, 16, 16)
    packed = window_attention(*qkv.unbind(2), bias, scale=0.5, backend="triton")
    separate = window_attention(*(t.contiguous() for t in qkv.unbind(2)), bias, scale=0.5, backend="triton")
    assert torch.equal(packed, separate)
    swapped = qkv.detach().transpose(-1, -2).contiguous().transpose(-1, -2)  # head_dim not adjacent
    assert torch.equal(window_attention(*swapped.unbind(2), bias, scale=0.5, backend="triton"), packed)
    spread = torch.randn(packed.shape[0], 16, 2, 12)[..., ::2]
    grad = torch.autograd.grad(packed, qkv, spread, retain_graph=True)[0]
    assert torch.equal(grad, torch.autograd.grad(packed, qkv, spread.contiguous())[0])
    q = torch.randn(1, 50, 3, 64).transpose(0, 1)  # one token with a stride of its own
    k, v = torch.randn(2, 50, 4, 3, 64)
    bias = torch.randn(3, 1, 4)
    out = window_attention(q, k, v, bias, scale=0.2, backend="triton")
    torch.testing.assert_close(out, window_attention(q, k, v, bias, scale=0.2, backend="reference"))


def test_strided_and_sliced_inputs(interpreted):
    interpreted(layouts)


def test_padded_heads(interpreted):
    interpreted(check_padded_heads, torch.float32)


def unused_rows():
    windows = Windows(8, 8, (4, 4), (2, 2))
    keep = torch.rand(2, 64) < 0.4
    exact = VisibleTokens.from_keep(keep, windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        roomy = VisibleTokens.from_keep(keep, windows)  # as on a device: every token has a row
    used = len(exact.token_index)
    qkv = torch.full((3, len(roomy.token_index), 2, 3), float("nan"))
    qkv[:, :used] = torch.randn(3, used, 2, 3)
    qkv.requires_grad_()
    bias = torch.randn(2, 16, 16)
    for masked in (None, tuple(torch.randn(3, 2, 3))):
        out = window_attention(*qkv, bias, scale=0.5, visible=roomy, shared_qkv=masked, backend="triton")
        short = window_attention(*qkv[:, :used], bias, scale=0.5, visible=exact, shared_qkv=masked, backend="triton")
        assert torch.equal(out if masked else out[:used], short)
        (grad,) = torch.autograd.grad(out.sum(), qkv)
        assert grad[:, used:].count_nonzero() == 0
        assert grad.isfinite().all()


def test_unused_rows_are_ignored_and_get_no_gradient(interpreted):
    interpreted(unused_rows)


def excluded_by_the_bias():
    windows = Windows(4, 8, (4, 4), (0, 0))
    visible = VisibleTokens.from_keep(torch.rand(1, 32) < 0.5, windows)
    qkv = torch.randn(3, len(visible.token_index), 2, 3, requires_grad=True)
    bias = torch.randn(2, 16, 16)
    bias[0, 3] = float("-inf")  # a query without any key
    bias[1, 4, ::2] = float("-inf")
    arguments = {"scale": 0.5, "visible": visible, "shared_qkv": tuple(torch.randn(3, 2, 3))}
    out, truth = (window_attention(*qkv, bias, backend=backend, **arguments) for backend in ("triton", "reference"))
    assert out[:, 3, 0].count_nonzero() == 0
    torch.testing.assert_close(out, truth)
    grads = [torch.autograd.grad(o.square().sum(), qkv)[0] for o in (out, truth)]
    torch.testing.assert_close(*grads)


def test_keys_excluded_by_the_bias(interpreted):
    interpreted(excluded_by_the_bias)


def nan_stays():
    q, k, v = torch.randn(3, 2, 16, 2, 4)
    bias = torch.zeros(2, 16, 16)
    for tensor in (q, k, v, bias):
        kept = tensor.flatten()[5].item()
        tensor.view(-1)[5] = float("nan")
        assert window_attention(q, k, v, bias, scale=0.5, backend="triton").isnan().any()
        tensor.view(-1)[5] = kept


def test_nan_is_not_swallowed(interpreted):
    interpreted(nan_stays)


def operator_checks(use):
    arguments = examples("window_attention")[use].arguments()
    torch.library.opcheck(torch.ops.masked_swin.window_attention_triton.default, arguments)


@pytest.mark.parametrize("use", ["dense", pytest.param("zero", marks=pytest.mark.slow)])
def test_opcheck(interpreted, use):
    interpreted(operator_checks, use)


def compiled_in_one_graph():
    case = make_case("zero", window=(4, 4), shift=(2, 2), heads=2, head_dim=5)
    tensors = {name: tensor.float() for name, tensor in case.tensors.items()}

    def attend(q, k, v, bias, *masked):
        return window_attention(q, k, v, bias, shared_qkv=masked, backend="triton", **case.fixed)

    ours = torch.compile(attend, fullgraph=True, backend="aot_eager")(*tensors.values())
    torch.testing.assert_close(ours, attend(*tensors.values()))


def test_compiled_in_one_graph(interpreted):
    interpreted(compiled_in_one_graph)


def test_refusals_name_the_reason():
    """Without the interpreter, and in a process without a device."""
    q, k, v = torch.zeros(3, 2, 16, 2, 3)
    reason = "triton: (PyTorch sees no NVIDIA or AMD device here|needs a CUDA tensor, got one on cpu|.*not installed)"
    with pytest.raises(ValueError, match=reason):
        window_attention(q, k, v, torch.zeros(2, 16, 16), scale=0.5, backend="triton")
