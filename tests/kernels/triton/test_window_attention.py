"""The compiled kernels of the Triton backend (sm_80), executed on the CPU with every check of ptxsim on."""

import pytest
import torch

from masked_swin.kernels.triton import window_attention as triton_backend
from tests.support.attention_cases import USES, assert_small, check_padded_heads, errors, make_case
from tests.support.triton_on_ptxsim import on_ptxsim

PUBLISHED = {"heads": 2, "grid": (2, 1), "batch": 1}
RECTANGLE = {"window": (3, 5), "shift": (1, 2), "heads": 3, "head_dim": 7, "keep": 0.5}


def run(use, dtype, shape):
    with pytest.MonkeyPatch.context() as patch, on_ptxsim() as emulator:
        patch.setattr(triton_backend, "BIAS_PARTS", 1)  # a chunk of several windows
        assert_small(errors(make_case(use, **shape), dtype, "triton"), dtype)
    kernels = {launch.kernel for launch in emulator.launches}
    assert "forward_kernel" in kernels
    assert "backward_kernel" in kernels or {"backward_queries_kernel", "backward_keys_kernel"} <= kernels


@pytest.mark.parametrize("use", USES)
def test_published_shape_in_bfloat16(use):
    run(use, torch.bfloat16, PUBLISHED)


def test_padded_heads_in_bfloat16():
    with on_ptxsim():
        check_padded_heads(torch.bfloat16)


@pytest.mark.parametrize("use", ["zero", "visible"])
def test_rectangle_in_float32(use):
    run(use, torch.float32, RECTANGLE)


@pytest.mark.parametrize("window_mask", [pytest.param(False, marks=pytest.mark.slow), True])
def test_masked_keys_in_several_tiles(window_mask):
    """Tiles of 64 places, of 81."""
    case = make_case("zero", heads=1, head_dim=10, window=(9, 9), shift=(0, 0), grid=(1, 1), batch=1)
    if window_mask:
        case.fixed["window_mask"] = torch.randn(1, 81, 81, dtype=torch.float64)
    with on_ptxsim():
        assert_small(errors(case, torch.bfloat16, "triton"), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        PUBLISHED,
        RECTANGLE,
        {"heads": 2, "head_dim": 30, "grid": (1, 2), "shift": (0, 0)},
        {"heads": 1, "head_dim": 32, "grid": (2, 1), "batch": 1, "keep": 0.0},
        {"heads": 1, "head_dim": 16, "grid": (2, 1), "batch": 1, "keep": 1.0},
        {"heads": 2, "head_dim": 64, "window": (7, 7), "shift": (3, 3), "grid": (2, 1), "keep": 0.1},
        {"heads": 1, "head_dim": 30, "window": (16, 16), "shift": (8, 8), "grid": (1, 1), "batch": 1},
    ],
    ids=["published", "rectangle", "head_dim 30", "none visible", "all visible", "window 7", "window 16"],
)
def test_every_use_and_dtype(use, dtype, shape):
    run(use, dtype, shape)


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_large_scores_in_float32(use):
    """Where one key takes nearly all, the gradients of scores must cancel."""
    run(use, torch.float32, {"heads": 2, "grid": (2, 1), "batch": 1, "magnitude": 6.0})


def test_tf32_only_if_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    shape = {"heads": 1, "window": (4, 4), "shift": (0, 0), "grid": (1, 1), "batch": 1, "head_dim": 16}
    with on_ptxsim() as emulator:
        found = errors(make_case("dense", **shape), torch.float32, "triton")
    assert all(1e-5 < ours < 3e-3 for ours, _ in found.values()), found
    assert all(launch.stats.mma_flops for launch in emulator.launches)
