"""The fused MLP of the Triton backend against PyTorch in float64: interpreted, and compiled and executed by ptxsim."""

import pytest
import torch
from torch.nn import functional as F

from masked_swin.kernels.triton import launch, linear
from masked_swin.kernels.triton import mlp as triton_mlp
from masked_swin.kernels.triton.linear import Tokens
from masked_swin.kernels.triton.mlp import MlpWeights, mlp, mlp_backward
from tests.support.attention_cases import assert_small, relative_error
from tests.support.triton_on_ptxsim import Emulator


def make_case(channels=60, hidden=120, batch=3, tokens=45):
    """x, weights and scale in float64; LayerNorm's weight and bias far from 1 and 0, an image with scale 0."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = random(batch, tokens, channels) + 0.5
    weights = MlpWeights(
        random(channels),
        random(channels),
        random(hidden, channels) / channels**0.5,
        random(hidden),
        random(channels, hidden) / hidden**0.5,
        random(channels),
    )
    scale = torch.tensor([1.25, 0.0, 0.7][:batch], dtype=torch.float64)
    return x, weights, scale, random(batch, tokens, channels)


def eager(x, weights, scale, dtype=None, keep=None):
    """PyTorch's operators, with products in `dtype`, as under autocast. Tokens outside of `keep` stay."""
    norm_weight, norm_bias, *fc = weights
    normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias).to(dtype or x.dtype)
    fc1, b1, fc2, b2 = (tensor.to(normed.dtype) for tensor in fc)
    branch = F.linear(F.gelu(F.linear(normed, fc1, b1)), fc2, b2)
    y = x + (branch if scale is None else branch * scale.view(-1, 1, 1).to(branch.dtype))
    return y if keep is None else torch.where(keep[..., None], y, x)


def list_of(keep):
    """The list of visible tokens as on a device: with room for every token, and in an order of its own."""
    visible = keep.flatten().nonzero().flatten().flip(0)
    index = visible.new_zeros(keep.numel())
    index[: len(visible)] = visible
    offsets = torch.tensor([0, len(visible) // 2, len(visible)], dtype=torch.int32, device=keep.device)
    return Tokens(len(index), index, offsets)


def errors(dtype, stream=None, with_scale=True, device="cpu", share=None, precision="highest", **shape):
    """Errors of y and every gradient against float64: ours, and PyTorch's.

    stream: the dtype of x and weights.
    share: of visible tokens in a list; None = no list.
    precision: PyTorch's setting for float32 products; the interpreter's are exact anyway.
    """
    stream = stream or dtype
    x, weights, scale, grad = make_case(**shape)
    scale = scale.to(device) if with_scale else None
    keep = None if share is None else torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(1)) < share
    if keep is not None:
        keep = keep.to(device)
    tokens = None if keep is None else list_of(keep)
    found = {}

    def gradients(x, weights, grad, dtype=None):
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
        y = eager(leaves[0], MlpWeights(*leaves[1:]), scale, dtype, keep)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    x, grad, *weights = (tensor.to(device, stream) for tensor in (x, grad, *weights))
    truth = gradients(x.double(), [w.double() for w in weights], grad.double())
    theirs = gradients(x, weights, grad, dtype)
    scale32 = None if scale is None else scale.float()
    weights = MlpWeights(*weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
        dx, d_weights = mlp_backward(grad, x, weights, scale32, dtype, tokens)
        ours = [mlp(x.clone(), weights, scale32, dtype, tokens), dx, *d_weights]
    for name, wanted, value, yardstick in zip(("y", "dx", *MlpWeights._fields), truth, ours, theirs, strict=True):
        assert value.dtype == stream
        assert value.shape == wanted.shape
        found[name] = relative_error(value, wanted), relative_error(yardstick, wanted)
    return found


SHAPES = {
    "published": {},
    "180 channels": {"channels": 180, "hidden": 360, "tokens": 20},
    "240 channels": {"channels": 240, "hidden": 480, "tokens": 20},
    "96 channels": {"channels": 96, "hidden": 384, "tokens": 20},
    "odd": {"channels": 7, "hidden": 10, "batch": 2, "tokens": 37},
}


def few_chunks(*arguments, **options):
    """With chunks of several tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_mlp, "CHUNKS", 2)
        patch.setattr(linear, "WEIGHT_CHUNKS", 2)
        return errors(*arguments, **options)


def precision_of(shape):
    """No backend runs exact products of more than 64 channels."""
    return {"precision": "highest" if SHAPES[shape].get("channels", 60) <= 64 else "high"}


@pytest.mark.parametrize("shape", SHAPES)
def test_y_and_every_gradient(interpreted, shape):
    found = interpreted(errors, torch.float32, **SHAPES[shape], **precision_of(shape))
    assert_small(found, torch.float32)


@pytest.mark.parametrize("shape", ["published", "96 channels", "odd"])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_tokens_of_a_list(interpreted, shape, share):
    found = interpreted(few_chunks, torch.float32, share=share, **SHAPES[shape], **precision_of(shape))
    if share == 0.0:
        assert set(found.values()) == {(0.0, 0.0)}
    else:
        assert_small(found, torch.float32)


@pytest.mark.parametrize("with_scale", [True, False])
def test_chunks_of_several_tiles(interpreted, with_scale):
    assert_small(interpreted(few_chunks, torch.float32, with_scale=with_scale, tokens=100), torch.float32)


@pytest.mark.parametrize("stream", [torch.float16, torch.float32], ids=str)
def test_half_precision(interpreted, stream):
    assert_small(interpreted(errors, torch.float16, stream), stream)


def compiled(*arguments, **options):
    emulator = Emulator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", emulator.launch)
        return few_chunks(*arguments, **options)


@pytest.mark.parametrize("shape", ["published", "96 channels"])
def test_compiled_under_autocast(shape):
    assert_small(compiled(torch.bfloat16, torch.float32, **SHAPES[shape]), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(dtype, shape) for dtype in (torch.float16, torch.bfloat16) for shape in SHAPES]
    + [(torch.float32, "published"), (torch.float32, "odd")],
)
def test_compiled_for_every_dtype(dtype, shape, share):
    assert_small(compiled(dtype, share=share, **SHAPES[shape]), dtype)


@pytest.mark.parametrize("channels", [16, *(pytest.param(c, marks=pytest.mark.slow) for c in (60, 96, 180))])
@pytest.mark.parametrize("share", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_tf32_only_if_allowed(channels, share):
    shape = {"channels": channels, "hidden": 2 * channels, "tokens": 20}
    found = compiled(torch.float32, precision="high", share=share, **shape)
    errors_of_products = [found[name][0] for name in ("y", "dx", "fc1_weight", "fc2_weight")]
    assert all(1e-5 < error < 3e-3 for error in errors_of_products), found


def nan_stays():
    x, weights, scale, _ = make_case(channels=16, hidden=32, tokens=20)
    x, scale, weights = x.float(), scale.float(), MlpWeights(*(weight.float() for weight in weights))
    x[0, 3, 5] = float("nan")
    y = mlp(x, weights, scale, torch.float32)
    assert y[0, 3].isnan().all()
    assert y[0, 4:].isfinite().all()


def test_nan_is_not_swallowed(interpreted):
    interpreted(nan_stays)


def gelu_of_large_values():
    """Hidden units far outside the range of the fit, both signs."""
    x, weights, _, _ = make_case(channels=16, hidden=32, tokens=20)
    x, weights = x.float(), [weight.float() for weight in weights]
    weights = MlpWeights(*weights)._replace(fc1_bias=torch.linspace(-1e4, 1e4, 32))
    y = mlp(x, weights, None, torch.float32)
    truth = eager(x.double(), [weight.double() for weight in weights], None)
    assert relative_error(y, truth) < 1e-6


def test_gelu_of_large_values(interpreted):
    interpreted(gelu_of_large_values)
