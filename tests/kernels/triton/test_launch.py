"""The launches of the Triton backend for an image far too large to run here: tensors have shapes, and no memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from masked_swin.kernels import window_attention
from masked_swin.kernels.swin_block import MODES
from masked_swin.kernels.triton import launch, tuning
from masked_swin.kernels.triton import pixel_embedding as triton_embedding
from masked_swin.kernels.triton import swin_block as triton_block
from masked_swin.kernels.triton import window_attention as triton_backend
from tests.support.triton_on_ptxsim import in_place_of_launch

SIDE, CHANNELS, HEADS = 4096, 60, 6
GRID_LIMITS = 2**31 - 1, 65535, 65535  # of CUDA


class Grids:
    def __init__(self):
        self.found = []

    def launch(self, kernel, grid, *arguments, num_warps, **constants):
        self.found.append((kernel.fn.__name__, grid))


def starts(run):
    """Names and grids of the kernels that `run` starts. Reading a value from a device would be an error here."""
    with in_place_of_launch(Grids()) as grids, FakeTensorMode(), torch.device("cuda"):
        run()
    return grids.found


def check(found):
    assert found
    assert [start for start in found if any(map(int.__gt__, start[1], GRID_LIMITS))] == []


@pytest.mark.parametrize("mode", [None, *MODES])
def test_block(mode):
    def run():
        c, h = CHANNELS, 2 * CHANNELS
        shapes = [c, c, (3 * c, c), 3 * c, (225, HEADS), (c, c), c, c, c, (h, c), h, (c, h), c]
        weights = [torch.empty(shape) for shape in shapes]
        x, token = torch.empty(1, SIDE, SIDE, c), torch.empty(c) if mode == "token" else None
        keep = None if mode is None else torch.empty(1, SIDE * SIDE, dtype=torch.bool)
        sizes = (8, 8, 4, 4, MODES.index(mode or "zero"))
        inputs = (x, weights, token, keep, torch.empty(2, 1), *sizes, torch.bfloat16)
        assert triton_block.forward(*inputs).shape == x.shape
        assert [grad.shape for grad in triton_block.backward(x, *inputs)[:14]] == [x.shape, *(w.shape for w in weights)]

    check(starts(run))


def test_embedding():
    def run():
        image, mean, weight = torch.empty(1, 3, SIDE, SIDE), torch.empty(3), torch.empty(CHANNELS, 3, 1, 1)
        vectors = [torch.empty(CHANNELS) for _ in range(3)]
        inputs = (image, *[None] * 4, mean, weight, *vectors, SIDE, SIDE, 0.0, 1.0, -0.1, True)
        out = triton_embedding.forward(*inputs)
        triton_embedding.backward(out, *inputs)

    check(starts(run))


def more_programs_than_an_axis_takes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_backend, "MAX_PROGRAMS", 2)
        q, k, v = torch.randn(3, 19, 4, 2, 4).unbind()
        bias = torch.randn(2, 4, 4)
        ours, wanted = (window_attention(q, k, v, bias, scale=0.5, backend=name) for name in ("triton", "reference"))
        torch.testing.assert_close(ours, wanted)


def test_more_programs_than_an_axis_takes(interpreted):
    interpreted(more_programs_than_an_axis_takes)


@pytest.mark.parametrize(
    ("hip", "architecture", "precision"),
    [(None, "sm_80", "tf32"), ("7.0", "gfx942", "tf32"), ("7.0", "gfx90a", "ieee")],
)
def test_less_precise_products_only_where_the_device_has_them(monkeypatch, hip, architecture, precision):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(tuning, "architecture", lambda: architecture)
    assert launch.product_precision() == "ieee"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert launch.product_precision() == precision
