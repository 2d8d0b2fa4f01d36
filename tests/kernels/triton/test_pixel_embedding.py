"""The embedding of pixels in Triton against PyTorch in float64: interpreted, and compiled for sm_80 and executed."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig
from masked_swin.kernels import EmbeddingWeights, Noise, gaussian_noise, pixel_embedding
from masked_swin.kernels.backends import choose
from masked_swin.kernels.noise import NormalInputs
from tests.support.attention_cases import assert_small, relative_error
from tests.support.triton_on_ptxsim import on_ptxsim

RANGE, MASK_VALUE = 1.3, -0.1
PADDED = {"image": (13, 18), "size": (16, 24)}
CASES = {
    "published": {},
    "padded": PADDED,
    "unmasked, gray": {"image_channels": 1, "channels": 7, "masked_share": None},
    "180 channels": {"image_channels": 4, "channels": 180, "batch": 1},
    "noise": {**PADDED, "sigma": 0.3},
    "noise, 4 channels": {"image_channels": 4, "channels": 20, "masked_share": None, "sigma": 0.06},
}


def composed(image, size, noise, input_mask, mean, weight, bias, norm_weight, norm_bias):
    height, width = image.shape[2:]
    if noise is not None:
        image = gaussian_noise(image, *noise)
    if input_mask is not None:
        image = image.masked_fill(input_mask[:, None, :height, :width], MASK_VALUE)
    image = F.pad(image, (0, size[1] - width, 0, size[0] - height), mode="reflect")
    features = F.conv2d((image - mean.view(1, -1, 1, 1)) * RANGE, weight, bias).permute(0, 2, 3, 1)
    return F.layer_norm(features, (len(bias),), norm_weight, norm_bias)


def fused(image, size, noise, input_mask, mean, *weights, backend="triton"):
    options = {"noise": noise, "input_mask": input_mask, "mean": mean, "image_range": RANGE, "mask_value": MASK_VALUE}
    return pixel_embedding(image, size, weights=EmbeddingWeights(*weights), backend=backend, **options).features


def embedding_errors(dtype, case):
    """Errors of the kernel and of PyTorch in a dtype, of the output and of every gradient."""
    return errors_of(dtype, **CASES[case])


def errors_of(
    dtype, image=(16, 16), size=(16, 16), image_channels=3, channels=60, batch=2, masked_share=0.8, sigma=None
):
    torch.manual_seed(0)
    noise = None if sigma is None else Noise(sigma, *MaskKey.make(2**40 + 3, 2**31 + 5, torch.arange(7, 7 + batch)))
    mean = torch.rand(image_channels).to(dtype)
    input_mask = None if masked_share is None else torch.rand(batch, *size) < masked_share
    leaves = [
        torch.rand(batch, image_channels, *image),
        torch.randn(channels, image_channels, 1, 1),
        torch.randn(channels) * 0.1,
        torch.rand(channels) + 0.5,
        torch.randn(channels),
    ]
    grad = torch.randn(batch, *size, channels).to(dtype)

    def run(embed, of_dtype):
        inputs = [leaf.to(dtype).to(of_dtype).requires_grad_() for leaf in leaves]
        out = embed(inputs[0], size, noise, input_mask, mean.to(of_dtype), *inputs[1:])
        return [out, *torch.autograd.grad(out, inputs, grad.to(of_dtype))]

    truth = run(composed, torch.float64)
    names = ("out", "d_image", "d_weight", "d_bias", "d_norm_weight", "d_norm_bias")
    results = zip(names, run(fused, dtype), run(composed, dtype), truth, strict=True)
    return {n: (relative_error(ours, t), relative_error(eager, t)) for n, ours, eager, t in results}


def same_normal_numbers():
    key = MaskKey.make(2**62 + 12345, 2**31 + 5, torch.tensor([0, 7, 2**32 + 7]))
    for channels, pixels in ((1, 1), (6, 1030)):
        inputs = NormalInputs(*key, channels, pixels, torch.float64)
        ours = torch.ops.masked_swin.normal_triton(*inputs.arguments())
        wanted = choose("normal", inputs, "reference").run(inputs)
        torch.testing.assert_close(ours.double(), wanted, rtol=3e-7, atol=1e-6)


def test_same_normal_numbers(interpreted):
    interpreted(same_normal_numbers)
    with on_ptxsim():
        same_normal_numbers()


@pytest.mark.parametrize("case", CASES)
def test_interpreted(interpreted, case):
    assert_small(interpreted(embedding_errors, torch.float32, case), torch.float32)


@pytest.mark.parametrize(("dtype", "case"), [(torch.float32, "180 channels"), (torch.bfloat16, "noise")])
def test_compiled(dtype, case):
    with on_ptxsim():
        assert_small(embedding_errors(dtype, case), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_compiled_in_every_case(dtype, case):
    with on_ptxsim():
        assert_small(embedding_errors(dtype, case), dtype)


def test_whole_sectors_are_requested_once_and_masked_pixels_not_read():
    image, input_mask = torch.rand(1, 3, 32, 32), torch.rand(1, 32, 32) < 0.85
    weights = [weight.requires_grad_() for weight in (torch.rand(60, 3, 1, 1), *torch.rand(3, 60))]
    with on_ptxsim() as emulator:
        fused(image, (32, 32), None, input_mask, torch.rand(3), *weights).sum().backward()
    for launch, features in zip(emulator.launches, ("out_ptr", "grad_ptr"), strict=True):
        traffic = {launch.arguments[int(a.name.split()[1])]: a for a in launch.stats.arguments}
        assert traffic["image_ptr"].unique_read == 3 * 4 * (~input_mask).sum()
        for name in ("image_ptr", "input_mask_ptr", features):
            of = traffic[name]
            assert of.requested_read + of.requested_written == of.sectors_read + of.sectors_written, name
        assert of.sectors_read + of.sectors_written == 1024 * 60 * 4 // 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "triton: (PyTorch sees no NVIDIA or AMD device|needs a CUDA tensor)"),
        ({"backend": "gpu"}, "pixel_embedding has no backend 'gpu'; it has cpu, triton, reference"),
    ],
)
def test_without_a_device_it_says_why(change, message):
    weights = torch.rand(60, 3, 1, 1), torch.rand(60), torch.rand(60), torch.rand(60)
    with pytest.raises(ValueError, match=message):
        fused(torch.rand(1, 3, 8, 8), (8, 8), None, None, torch.rand(3), *weights, **change)


@pytest.mark.parametrize(
    ("channels", "kernel", "residuals", "message"),
    [(60, 3, True, "needs a 1x1 conv"), (60, 1, True, "features only"), (300, 1, False, "at most 4 and 256 fit")],
)
def test_what_the_kernel_leaves_to_pytorch(channels, kernel, residuals, message):
    weights = EmbeddingWeights(torch.rand(channels, 3, kernel, kernel), *torch.rand(3, channels))
    options = {"mean": torch.rand(3), "image_range": 1.0, "mask_value": -0.1, "residuals": residuals}
    with on_ptxsim() as emulator:
        embedding = pixel_embedding(torch.rand(1, 3, 8, 8), (8, 8), weights=weights, **options)
        with pytest.raises(ValueError, match=message):
            pixel_embedding(torch.rand(1, 3, 8, 8), (8, 8), weights=weights, **options, backend="triton")
    assert not emulator.launches
    assert (embedding.image is not None) == (embedding.convolved is not None) == residuals


def test_network_embeds_the_same_pixels():
    config = ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,), window_size=8, input_mask=0.8)
    torch.manual_seed(0)
    network = MaskedSwinIR(config).train()
    image, key = torch.rand(2, 3, 13, 18), MaskKey.make(7, samples=2)
    results = []
    for stand_in in (nullcontext(), on_ptxsim()):
        with stand_in as emulator:
            out = network(image, key=key, noise_sigma=0.1)
            gradients = torch.autograd.grad(out.square().sum(), [*network.parameters()])
        if emulator is not None:
            assert {launch.kernel for launch in emulator.launches} == {"embedding_kernel", "embedding_backward_kernel"}
        results.append([out, *gradients])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck():
    weights = torch.rand(5, 3, 1, 1), torch.rand(5), torch.rand(5), torch.rand(5)
    leaves = [tensor.requires_grad_() for tensor in weights]
    key = MaskKey.make(1, 2, torch.tensor([3]))
    input_mask, sizes = torch.rand(1, 8, 8) < 0.5, (8, 8, 0.1, 1.0, -0.1, False)
    arguments = (torch.rand(1, 3, 5, 6), *key, input_mask, torch.rand(3), *leaves, *sizes)
    with on_ptxsim():
        torch.library.opcheck(torch.ops.masked_swin.pixel_embedding_triton.default, arguments)
