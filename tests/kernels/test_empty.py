"""Nothing in, nothing out: 0 images or windows give empty results and gradients of 0, also compiled."""

import pytest
import torch

from masked_swin import MaskedSwinIR, ModelConfig
from masked_swin.kernels import (
    EmbeddingWeights,
    VisibleTokens,
    Windows,
    convolution,
    gaussian_noise,
    pixel_embedding,
    swin_block,
    token_mask,
    window_attention,
)
from tests.support.examples import WINDOWS, examples, names_here

KEY = torch.tensor(1), torch.tensor(2), torch.arange(0)


def backends(operation):
    return pytest.mark.parametrize("backend", [None, "reference", *names_here(operation)])


def check(run, x, weights, shape):
    """Eager and compiled."""
    torch._dynamo.reset()
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        out = function(x)
        assert out.shape == shape
        grads = torch.autograd.grad(out.sum(), [x, *weights], materialize_grads=True)
        assert grads[0].shape == x.shape
        assert all(grad.shape == weight.shape for grad, weight in zip(grads[1:], weights, strict=True))
        assert not any(grad.any() for grad in grads[1:])


@backends("window_attention")
@pytest.mark.parametrize("use", ["dense", "zero", "visible"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_window_attention(backend, use):
    inputs = examples("window_attention")["zero"]
    visible, shared, heads = None, inputs.shared_qkv, inputs.bias.shape[0]
    q = torch.zeros(0, 16, heads, 5, requires_grad=True)
    if use != "dense":
        visible = VisibleTokens.from_keep(torch.ones(0, 64, dtype=torch.bool), Windows(8, 8, (4, 4), (2, 2)))
        q = torch.zeros(0, heads, 5, requires_grad=True)
    options = {"scale": 0.5, "visible": visible, "shared_qkv": shared if use == "zero" else None, "backend": backend}
    shape = (0, heads, 5) if use == "visible" else (0, 16, heads, 5)
    weights = [inputs.bias, *(shared if use == "zero" else ())]
    check(lambda q: window_attention(q, q, q, inputs.bias, **options), q, weights, shape)


@backends("swin_block")
@pytest.mark.parametrize("mode", [None, "zero", "token", "drop", "visible"])
@pytest.mark.filterwarnings("ignore")
def test_swin_block(backend, mode):
    weights = examples("swin_block")["zero"].weights
    visible = None if mode is None else VisibleTokens.from_keep(torch.ones(0, WINDOWS.tokens).bool(), WINDOWS)
    options = {"window": WINDOWS.window, "shift": WINDOWS.shift, "visible": visible, "mode": mode or "zero"}
    x = torch.zeros(0, WINDOWS.height, WINDOWS.width, 12, requires_grad=True)
    check(lambda x: swin_block(x, weights, backend=backend, **options), x, weights, x.shape)


@backends("convolution")
def test_convolution(backend):
    _, weight, bias = examples("convolution")["3x3"]
    x = torch.zeros(0, 5, 7, 6, requires_grad=True)
    check(lambda x: convolution(x, weight, bias, backend=backend), x, [weight, bias], (0, 5, 7, 9))


@backends("pixel_embedding")
def test_pixel_embedding(backend):
    weights = EmbeddingWeights(*examples("pixel_embedding")["plain"].weights)
    options = {"mean": torch.zeros(3), "image_range": 1.0, "mask_value": -0.1, "weights": weights, "backend": backend}
    image = torch.zeros(0, 3, 6, 11, requires_grad=True)
    check(lambda image: pixel_embedding(image, (8, 12), **options).features, image, list(weights), (0, 8, 12, 12))


def test_masks_noise_and_lists():
    assert token_mask(*KEY, 60, 0.5).shape == (0, 60)
    assert token_mask(*KEY, 60, (0.2, 0.5), heads=2, ratio_per_sample=True).shape == (0, 2, 60)
    assert gaussian_noise(torch.zeros(0, 3, 4, 5), 0.1, *KEY).shape == (0, 3, 4, 5)
    visible = VisibleTokens.from_keep(torch.ones(0, 60, dtype=torch.bool), Windows(6, 10, (3, 5), (1, 2)))
    assert visible.token_index.shape == visible.position.shape == (0,)
    assert visible.offsets.tolist() == [0]


@pytest.mark.parametrize("kernel", [1, 3])
def test_network(kernel):
    config = ModelConfig(
        embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, input_mask=(0.2, 0.5), conv_first_kernel=kernel
    )
    model = MaskedSwinIR(config).train()
    out = model(torch.zeros(0, 3, 9, 10), noise_sigma=0.1)
    assert out.shape == (0, 3, 9, 10)
    out.sum().backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


NO_TENSORS = [[[0.0]], None, 3, torch.zeros(2).numpy()]


@pytest.mark.parametrize("value", NO_TENSORS, ids=lambda value: type(value).__name__)
def test_what_is_no_tensor_is_named(value):
    q, bias = torch.zeros(2, 4, 1, 2), torch.zeros(1, 4, 4)
    block, (x, _weight, offset) = examples("swin_block")["dense"], examples("convolution")["3x3"]
    calls = {
        "q": lambda: window_attention(value, q, q, bias, scale=1.0),
        "v": lambda: window_attention(q, q, value, bias, scale=1.0),
        "bias": lambda: window_attention(q, q, q, value, scale=1.0),
        "x": lambda: swin_block(value, block.weights, window=(4, 3), shift=(0, 0)),
        "proj_bias": lambda: swin_block(block.x, block.weights._replace(proj_bias=value), window=(4, 3), shift=(0, 0)),
        "fc1_weight": lambda: swin_block(
            block.x, block.weights._replace(fc1_weight=value), window=(4, 3), shift=(0, 0)
        ),
        "weight": lambda: convolution(x, value, offset),
        "keep": lambda: VisibleTokens.from_keep(value, WINDOWS),
        "image": lambda: gaussian_noise(value, 0.1, *KEY),
        "seed": lambda: token_mask(value, *KEY[1:], 4, 0.5),
        "images": lambda: MaskedSwinIR(ModelConfig(embed_dim=12, depths=(1,), num_heads=(2,)))(value),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=rf"^{name} must be .*{'got' if name != 'seed' else ''}"):
            call()
    with pytest.raises(ValueError, match="weights must be SwinBlockWeights, got"):
        swin_block(block.x, value, window=(4, 3), shift=(0, 0))
