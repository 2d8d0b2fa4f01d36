"""Swin blocks for the tests: inputs by shape, errors against float64, and a block that draws its mask."""

import torch

from masked_swin.kernels import SwinBlockWeights, VisibleTokens, Windows, swin_block, token_mask
from tests.support.public_network import PublicBlock

CHANNELS, HEADS = 12, 3  # of random_weights
MODES = ("zero", "token", "drop", "visible")

NAMES = ("y", "x", *SwinBlockWeights._fields)

SHAPES = {
    "published": {},
    "unshifted, stochastic depth": {"shift": (0, 0), "drop_path": True},
    "dense": {"keep": None},
    "dense, stochastic depth": {"keep": None, "drop_path": True},
    "half visible": {"keep": 0.5},
    "almost all visible": {"keep": 0.97},
    "all visible": {"keep": 1.0},
    "none visible": {"keep": 0.0},
    "few visible": {"keep": 0.02},  # windows with none
    "rectangle": {
        "window": (3, 5),
        "shift": (1, 2),
        "channels": 14,
        "heads": 2,
        "size": (6, 10),
        "ratio": 3,
        "keep": 0.5,
    },
    "one axis shifted": {"window": (4, 2), "shift": (0, 1), "channels": 6, "heads": 6, "size": (8, 6), "keep": 0.4},
    "window 7": {"window": (7, 7), "shift": (3, 3), "channels": 96, "heads": 3, "size": (14, 14), "ratio": 4},
    "window 16, head_dim 30": {"window": (16, 16), "shift": (8, 8), "heads": 2, "size": (32, 16)},
    "180 channels": {"channels": 180, "size": (16, 8)},
    "one window": {"size": (8, 8), "batch": 1},
    "tiny": {"window": (1, 2), "shift": (0, 1), "channels": 3, "heads": 3, "size": (2, 4), "ratio": 1, "keep": 0.5},
    "large scores": {"magnitude": 3.0},
}


def run(
    mode: str,
    dtype: torch.dtype,
    backend: str,
    *,
    keep: float | None = 0.25,
    mask: torch.Tensor | None = None,  # in place of a random one
    window=(8, 8),
    shift=(4, 4),
    channels=60,
    heads=6,
    size=(16, 24),
    ratio=2,
    batch=2,
    drop_path=False,
    magnitude=0.3,
    seed=0,
    autocast=False,
    half=torch.bfloat16,  # of autocast
) -> list[torch.Tensor]:
    """y and the gradients of x and of every weight, for a fixed random cotangent."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    c, hidden, rows = channels, ratio * channels, (2 * window[0] - 1) * (2 * window[1] - 1)
    shapes = [
        (c,),
        (c,),
        (3 * c, c),
        (3 * c,),
        (rows, heads),
        (c, c),
        (c,),
        (c,),
        (c,),
        (hidden, c),
        (hidden,),
        (c, hidden),
    ]
    weights = [
        magnitude * random(*shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 1) for shape in [*shapes, (c,), (c,)]
    ]
    for norm in (0, 7):
        weights[norm] = weights[norm] + 1
    weights[4] = magnitude * random(rows, heads)
    x = 2 * random(batch, *size, c) + 0.5
    windows = Windows(*size, window, shift)
    mask = torch.rand(batch, windows.tokens, generator=generator) < (keep or 0.0) if mask is None else mask
    visible = None if keep is None else VisibleTokens.from_keep(mask, windows)
    scale = torch.tensor([[0.0, 1.1], [1.3, 0.0]])[:, :batch] if drop_path else None
    cotangent = random(*x.shape)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, *weights)]
    options = {"window": window, "shift": shift, "visible": visible, "mode": mode, "drop_path_scale": scale}
    with torch.autocast("cpu", half, enabled=autocast):
        y = swin_block(inputs[0], SwinBlockWeights(*inputs[1:]), backend=backend, **options)
    grads = torch.autograd.grad(y, inputs, cotangent.to(dtype), allow_unused=True)
    return [y.detach(), *(torch.zeros_like(i) if g is None else g for g, i in zip(grads, inputs, strict=True))]


def check_errors(mode, shape, autocast, rounding, backend="cpu", seeds=2):
    """Errors against float64 are at most twice those of torch's own ops, plus one rounding; mean of seeds."""
    errors: dict[str, list[tuple[float, float]]] = {}
    options = SHAPES[shape] if isinstance(shape, str) else shape
    for seed in range(8 if shape == "tiny" else seeds):  # where sums have few terms, errors scatter
        truth = run(mode, torch.float64, "reference", seed=seed, **options)
        ours = run(mode, torch.float32, backend, seed=seed, autocast=autocast, **options)
        eager = run(mode, torch.float32, "reference", seed=seed, autocast=autocast, **options)
        largest = max(t.norm().item() for t in truth)
        for name, exact, value, yardstick in zip(NAMES, truth, ours, eager, strict=True):
            assert value.isfinite().all(), name
            norm = exact.norm().item()
            if norm < 1e-9 * largest:  # vanishes in theory
                assert value.norm() < (1e-2 if autocast else 1e-5) * largest, name
                continue
            errors.setdefault(name, []).append(
                tuple((v.double() - exact).norm().item() / norm for v in (value, yardstick))
            )
    for name, pairs in errors.items():
        ours, eager = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
        assert ours <= 2 * eager + rounding, f"{name}: {ours:.1e}, torch {eager:.1e}"


def block_weights(block: PublicBlock, mask_token=None) -> SwinBlockWeights:
    attention, mlp = block.attn, block.mlp
    return SwinBlockWeights(
        block.norm1.weight,
        block.norm1.bias,
        attention.qkv.weight,
        attention.qkv.bias,
        attention.relative_position_bias_table,
        attention.proj.weight,
        attention.proj.bias,
        block.norm2.weight,
        block.norm2.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
        mask_token,
    )


def random_weights() -> SwinBlockWeights:
    def random(*shape):
        return (0.3 * torch.randn(*shape)).requires_grad_()

    c, hidden = CHANNELS, 2 * CHANNELS
    return SwinBlockWeights(
        *(random(c), random(c), random(3 * c, c), random(3 * c), random(49, HEADS), random(c, c), random(c)),
        *(random(c), random(c), random(hidden, c), random(hidden), random(c, hidden), random(c), random(c)),
    )


class MaskedBlock(torch.nn.Module):
    """Draws a mask, builds the plan and runs a block, as a model does."""

    def __init__(self, mode="zero", backend=None):
        super().__init__()
        self.mode, self.backend = mode, backend
        self.weights = random_weights()
        for name, weight in self.weights._asdict().items():
            self.register_parameter(name, torch.nn.Parameter(weight.detach()))

    def forward(self, x, seed, draw, sample):
        windows = Windows(x.shape[1], x.shape[2], (4, 4), (2, 2))
        keep = ~token_mask(seed, draw, sample, windows.tokens, (0.5, 0.75))
        weights = SwinBlockWeights(**{name: getattr(self, name) for name in SwinBlockWeights._fields})
        visible = VisibleTokens.from_keep(keep, windows)
        options = {"visible": visible, "mode": self.mode, "backend": self.backend}
        return swin_block(x, weights, window=(4, 4), shift=(2, 2), **options)
