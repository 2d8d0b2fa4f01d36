"""The embedding of pixels in Triton against PyTorch in float64: interpreted, and compiled for sm_80 and executed."""

from contextlib import nullcontext

import pytest
import torch
from attention_cases import assert_small, relative_error
from torch.nn import functional as F
from triton_on_ptxsim import on_ptxsim

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig
from masked_swin.kernels import EmbeddingWeights, pixel_embedding

RANGE, MASK_VALUE = 1.3, -0.1
PADDED = {"image": (13, 18), "size": (16, 24)}
CASES = {
    "published": {},
    "padded": PADDED,
    "unmasked, gray": {"image_channels": 1, "channels": 7, "masked_share": None},
    "180 channels": {"image_channels": 4, "channels": 180, "batch": 1},
}


def composed(image, size, masked, mean, weight, bias, norm_weight, norm_bias):
    height, width = image.shape[2:]
    if masked is not None:
        image = image.masked_fill(masked[:, None, :height, :width], MASK_VALUE)
    image = F.pad(image, (0, size[1] - width, 0, size[0] - height), mode="reflect")
    features = F.conv2d((image - mean.view(1, -1, 1, 1)) * RANGE, weight, bias).permute(0, 2, 3, 1)
    return F.layer_norm(features, (len(bias),), norm_weight, norm_bias)


def fused(image, size, masked, mean, *weights, backend="triton"):
    options = {"mean": mean, "image_range": RANGE, "mask_value": MASK_VALUE, "backend": backend}
    return pixel_embedding(image, size, masked=masked, weights=EmbeddingWeights(*weights), **options).features


def embedding_errors(dtype, case):
    """Errors of the kernel and of PyTorch in a dtype, of the output and of every gradient."""
    return errors_of(dtype, **CASES[case])


def errors_of(dtype, image=(16, 16), size=(16, 16), image_channels=3, channels=60, batch=2, masked_share=0.8):
    torch.manual_seed(0)
    mean = torch.rand(image_channels).to(dtype)
    masked = None if masked_share is None else torch.rand(batch, *size) < masked_share
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
        out = embed(inputs[0], size, masked, mean.to(of_dtype), *inputs[1:])
        return [out, *torch.autograd.grad(out, inputs, grad.to(of_dtype))]

    truth = run(composed, torch.float64)
    names = ("out", "d_image", "d_weight", "d_bias", "d_norm_weight", "d_norm_bias")
    results = zip(names, run(fused, dtype), run(composed, dtype), truth, strict=True)
    return {n: (relative_error(ours, t), relative_error(eager, t)) for n, ours, eager, t in results}


@pytest.mark.parametrize("case", CASES)
def test_interpreted(interpreted, case):
    assert_small(interpreted(embedding_errors, torch.float32, case), torch.float32)


@pytest.mark.parametrize(("dtype", "case"), [(torch.float32, "180 channels"), (torch.bfloat16, "padded")])
def test_compiled(dtype, case):
    with on_ptxsim():
        assert_small(embedding_errors(dtype, case), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_compiled_in_every_case(dtype, case):
    with on_ptxsim():
        assert_small(embedding_errors(dtype, case), dtype)


def test_features_are_written_in_whole_sectors_and_masked_pixels_not_read():
    image, masked = torch.rand(1, 3, 32, 32), torch.rand(1, 32, 32) < 0.85
    weights = torch.rand(60, 3, 1, 1), torch.rand(60), torch.rand(60), torch.rand(60)
    with on_ptxsim() as emulator:
        fused(image, (32, 32), masked, torch.rand(3), *weights)
    (launch,) = emulator.launches
    traffic = {launch.arguments[int(a.name.split()[1])]: a for a in launch.stats.arguments}
    assert traffic["out_ptr"].requested_written == traffic["out_ptr"].sectors_written == 1024 * 60 * 4 // 32
    assert traffic["image_ptr"].unique_read == 3 * 4 * (~masked).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "triton: (PyTorch sees no NVIDIA or AMD device|needs a CUDA tensor)"),
        ({"backend": "cpu"}, "pixel_embedding has no backend 'cpu'; it has triton, reference"),
    ],
)
def test_without_a_device_it_says_why(change, message):
    weights = torch.rand(60, 3, 1, 1), torch.rand(60), torch.rand(60), torch.rand(60)
    with pytest.raises(ValueError, match=message):
        fused(torch.rand(1, 3, 8, 8), (8, 8), None, torch.rand(3), *weights, **change)


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
            out = network(image, key=key)
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
    arguments = (torch.rand(1, 3, 5, 6), torch.rand(1, 8, 8) < 0.5, torch.rand(3), *leaves, 8, 8, 1.0, -0.1, False)
    with on_ptxsim():
        torch.library.opcheck(torch.ops.masked_swin.pixel_embedding_triton.default, arguments)
