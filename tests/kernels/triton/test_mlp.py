"""The fused MLP of the Triton backend against PyTorch in float64: interpreted, and compiled and executed by ptxsim."""

import pytest
import torch

from masked_swin.kernels.triton import launch, linear
from masked_swin.kernels.triton import mlp as triton_mlp
from masked_swin.kernels.triton.mlp import MlpWeights, mlp
from tests.support.attention_cases import assert_small, relative_error
from tests.support.mlp_cases import SHAPES, eager, errors, make_case
from tests.support.triton_on_ptxsim import Emulator


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
