"""The Triton backend on a device: `make test-gpu`."""

import pytest
import torch

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig
from masked_swin.kernels import Noise, VisibleTokens, Windows, swin_block, token_mask, window_attention
from masked_swin.masking import gaussian_noise
from tests.support.attention_cases import USES, Case, assert_small, errors, make_case, relative_error
from tests.support.block_cases import block_weights
from tests.support.mlp_cases import SHAPES as MLP_SHAPES
from tests.support.mlp_cases import errors as mlp_errors
from tests.support.public_network import PublicBlock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA or AMD device"),
]


def on_device(case: Case) -> Case:
    fixed = dict(case.fixed)
    if "visible" in fixed:
        plan = fixed["visible"]
        fixed["visible"] = VisibleTokens.from_keep(plan.image_keep.cuda(), plan.windows)  # every token has a row
        rows = len(fixed["visible"].token_index)
        grown = {}
        for name, tensor in case.tensors.items():
            grown[name] = tensor
            if tensor.dim() == 3 and name in "qkv":
                grown[name] = tensor.new_zeros(rows, *tensor.shape[1:])
                grown[name][: len(tensor)] = tensor
        case = Case(grown, fixed)
    fixed = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in fixed.items()}
    return Case({name: tensor.cuda() for name, tensor in case.tensors.items()}, fixed)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [{}, {"window": (3, 5), "shift": (1, 2), "heads": 2, "head_dim": 7}], ids=["8x8", "3x5"]
)
def test_output_and_every_gradient(use, dtype, shape):
    assert_small(errors(on_device(make_case(use, **shape)), dtype, "triton"), dtype)


@pytest.mark.parametrize("use", USES)
def test_same_bits_every_time(use):
    case = on_device(make_case(use))
    first, second = (case.run(torch.bfloat16, "triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_captured_in_a_cuda_graph():
    q, k, v = torch.randn(3, 8, 64, 6, 10, device="cuda").unbind()
    bias = torch.randn(6, 64, 64, device="cuda")
    window_attention(q, k, v, bias, scale=0.3)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = window_attention(q, k, v, bias, scale=0.3)
    q.normal_()
    graph.replay()
    torch.testing.assert_close(out, window_attention(q, k, v, bias, scale=0.3))


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(dtype, shape) for dtype in (torch.float16, torch.bfloat16) for shape in MLP_SHAPES]
    + [(torch.float32, "published"), (torch.float32, "odd")],  # exact products of more than 64 channels run nowhere
)
@pytest.mark.parametrize("stream", [torch.float32, None], ids=["autocast", "plain"])
def test_mlp_and_every_gradient(dtype, stream, shape, share):
    assert_small(mlp_errors(dtype, stream, device="cuda", share=share, **MLP_SHAPES[shape]), stream or dtype)


def block_gradients(mode, dtype, backend, autocast=None):
    """y, the gradients of x and of the weights, of a block with a mask and stochastic depth, for a fixed cotangent."""
    block = PublicBlock(60, 6, 8, 4, 2.0, img_size=(32, 24))
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    block.to("cuda", dtype)
    token = torch.randn(60, dtype=torch.float64).to("cuda", dtype).requires_grad_()
    weights = block_weights(block, token)
    windows = Windows(32, 24, (8, 8), (4, 4))
    plan = VisibleTokens.from_keep(torch.rand(3, windows.tokens).cuda() < 0.25, windows)
    x = torch.randn(3, 32, 24, 60, dtype=torch.float64).to("cuda", dtype).requires_grad_()
    scale = torch.tensor([[1.0, 0.0, 1.2], [0.9, 1.1, 0.0]], device="cuda")
    options = {"window": (8, 8), "shift": (4, 4), "visible": plan, "mode": mode, "drop_path_scale": scale}
    with torch.autocast("cuda", autocast, enabled=autocast is not None):
        y = swin_block(x, weights, backend=backend, **options)
    leaves = [x, *(weight for weight in weights if mode == "token" or weight is not token)]
    cotangent = torch.randn(y.shape, dtype=torch.float64).to("cuda", y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


@pytest.mark.parametrize("mode", ["zero", "token", "drop", "visible"])
@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
def test_block_and_every_gradient(mode, autocast):
    truth = block_gradients(mode, torch.float64, "reference")
    ours = block_gradients(mode, torch.float32, None, autocast)
    eager = block_gradients(mode, torch.float32, "reference", autocast)
    found = [(relative_error(a, t), relative_error(b, t)) for t, a, b in zip(truth, ours, eager, strict=True)]
    assert_small({str(place): pair for place, pair in enumerate(found)}, torch.float32)


def test_block_gives_the_same_bits_every_time():
    first, second = (block_gradients("zero", torch.float32, None, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("exact", [False, True])
def test_masks_and_plans_are_those_of_the_cpu(exact):
    windows = Windows(24, 40, (8, 8), (4, 4))
    key = torch.tensor(-5), torch.tensor(2**31 + 5), torch.tensor([0, 7, 2**32 + 7])
    options = {"heads": 2, "windows": windows, "exact": exact, "ratio_per_sample": True}
    ours, wanted = (
        token_mask(*(t.to(device) for t in key), windows.tokens, (0.3, 0.9), **options) for device in ("cuda", "cpu")
    )
    assert torch.equal(ours.cpu(), wanted)
    for keep in (~wanted, ~wanted[:, 0]):
        plan, on_cpu = (VisibleTokens.from_keep(keep.to(device), windows) for device in ("cuda", "cpu"))
        rows = len(on_cpu.token_index)
        assert torch.equal(plan.token_index[:rows].cpu(), on_cpu.token_index)
        assert torch.equal(plan.position[:rows].cpu(), on_cpu.position)
        for name in ("offsets", "keep", "regions"):
            assert torch.equal(getattr(plan, name).cpu(), getattr(on_cpu, name))


def test_network_embeds_the_same_pixels():
    network = MaskedSwinIR(ModelConfig(depths=(1,), num_heads=(6,))).cuda().train()
    image, key = torch.rand(2, 3, 61, 70, device="cuda"), MaskKey.make(7, samples=2, device="cuda")
    fused = network._embed(image, (64, 72), Noise(0.1, *key), key).features
    network.backend = "reference"
    torch.testing.assert_close(fused, network._embed(image, (64, 72), Noise(0.1, *key), key).features)


def test_noise_is_that_of_the_cpu():
    image, key = torch.rand(3, 6, 17, 29), MaskKey.make(1, 2, 3)
    on_device = gaussian_noise(image.cuda(), 0.1, MaskKey(*(part.cuda() for part in key)))
    torch.testing.assert_close(on_device.cpu(), gaussian_noise(image, 0.1, key), rtol=0, atol=1e-6)
