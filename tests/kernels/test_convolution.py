"""The library's 3x3 convolution against PyTorch's in float64."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from masked_swin.kernels import CPU_LIBRARY, convolution
from tests.support.native import needs_native

pytestmark = needs_native


def torch_convolution(x, weight, bias):
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


def results(function, dtype, batch, height, width, channels, out_channels):
    """The output and the three gradients, for fixed random inputs and cotangent."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shapes = [(batch, height, width, channels), (out_channels, channels, 3, 3), (out_channels,)]
    inputs = [random(*shape).requires_grad_() for shape in shapes]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, random(*y.shape))]


SIZES = [
    (2, 40, 24, 60, 15),
    (2, 24, 40, 15, 60),
    (1, 5, 7, 3, 5),
    (3, 1, 1, 4, 17),
    (2, 1, 33, 33, 1),
    (2, 70, 3, 1, 2),
    (1, 16, 200, 45, 64),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_output_and_gradients_against_float64(sizes):
    exact = results(torch_convolution, torch.float64, *sizes)
    ours = results(convolution, torch.float32, *sizes)
    eager = results(torch_convolution, torch.float32, *sizes)
    for name, truth, value, yardstick in zip(("y", "x", "weight", "bias"), exact, ours, eager, strict=True):
        error, allowed = ((v.double() - truth).norm() / truth.norm() for v in (value, yardstick))
        assert error <= 2 * allowed + 1.2e-7, name


def test_same_bits_for_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        outcomes = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outcomes.append(results(convolution, torch.float32, 3, 40, 16, 12, 20))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck_and_any_layout():
    x = torch.randn(1, 6, 5, 4).permute(0, 2, 3, 1).requires_grad_()  # not contiguous
    weight = torch.randn(5, 6, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randn(5, requires_grad=True)
    torch.library.opcheck(torch.ops.masked_swin.convolution_cpu.default, (x, weight, bias))
    torch.testing.assert_close(convolution(x, weight, bias), torch_convolution(x, weight, bias))


def test_images_are_apart_and_nan_stays_where_it_is():
    x = torch.randn(3, 20, 8, 4)
    x[1, 0, 0] = float("nan")
    y = convolution(x, torch.randn(8, 4, 3, 3), torch.randn(8))
    assert y[1, :2, :2].isnan().all()
    y[1, :2, :2] = 0
    assert y.isfinite().all()


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float64, False), (torch.float32, True)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_it_leaves_to_pytorch(dtype, autocast, kernel):
    if autocast and not CPU_LIBRARY.bfloat16:
        pytest.skip("a processor without bfloat16 products: the next test")
    x, weight = torch.randn(1, 5, 6, 4, dtype=dtype), torch.randn(3, 4, kernel, kernel, dtype=dtype)
    bias = torch.randn(3, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises(ValueError, match=r"cannot run: cpu: (needs a 3x3|needs float32|under autocast)"):
            convolution(x, weight, bias, backend="cpu")
        y = convolution(x, weight, bias)
        expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel // 2).permute(0, 2, 3, 1)
    assert y.dtype == expected.dtype
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)


AUTOCAST = """
import torch
from torch.nn import functional as F
from masked_swin import MaskedSwinIR, ModelConfig
from masked_swin.kernels import CPU_LIBRARY, convolution
assert CPU_LIBRARY.instruction_set == "avx2"
for kernel in (1, 3):
    x, weight, bias = torch.randn(2, 5, 6, 4), torch.randn(3, 4, kernel, kernel), torch.randn(3)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x, weight, bias)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel // 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(y, expected)
for kernel in (1, 3):
    config = ModelConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, conv_first_kernel=kernel)
    model, image = MaskedSwinIR(config).train(), torch.rand(2, 3, 8, 8)
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(image)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()), materialize_grads=True)])
    for exact, value in zip(*found):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(CPU_LIBRARY.instruction_set in (None, "portable"), reason="needs AVX2")
def test_where_bfloat16_is_emulated_autocast_computes_in_float32():
    """The choice of the instruction set is made once: a process of its own, with one that has no bfloat16."""
    environment = os.environ | {"MASKED_SWIN_CPU_ISA": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", AUTOCAST], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RuntimeError, match=r"needs x \(B, H, W, I\), weight \(O, I, 3, 3\)"):
        torch.ops.masked_swin.convolution_cpu(torch.randn(1, 4, 4, 3), torch.randn(5, 4, 3, 3), torch.randn(5))
