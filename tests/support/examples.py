"""Small inputs of every operation, and the backends of the registry that can take them.

The tests of an operation run over these: a new backend appears in them by itself.
"""

from typing import Any

import torch

from masked_swin.kernels import EmbeddingWeights, Noise, SwinBlockWeights, VisibleTokens, Windows
from masked_swin.kernels.backends import REGISTRY, Backend
from masked_swin.kernels.convolution import ConvolutionInputs
from masked_swin.kernels.noise import NormalInputs
from masked_swin.kernels.pixel_embedding import EmbeddingInputs
from masked_swin.kernels.swin_block import MODES, BlockInputs
from masked_swin.kernels.token_mask import RandomWordsInputs, TokenMaskInputs
from masked_swin.kernels.visible import VisibleTokensInputs
from masked_swin.kernels.window_attention import AttentionInputs
from tests.support.attention_cases import USES, make_case

WINDOWS = Windows(8, 12, (4, 3), (2, 1))


def examples(operation: str) -> dict[str, Any]:
    """Inputs on the CPU in float32, by what they try; tensors that have a gradient require it."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    made: dict[str, Any] = _MAKERS[operation](random)
    return made


def _window_attention(random: Any) -> dict[str, AttentionInputs]:
    made = {}
    for use in USES:
        case = make_case(use, window=(4, 4), shift=(2, 2), heads=2, head_dim=5, batch=1)
        tensors = {name: tensor.float().requires_grad_() for name, tensor in case.tensors.items()}
        shared = tuple(tensors[f"masked_{name}"] for name in "qkv") if use == "zero" else None
        mask = case.fixed.get("window_mask")
        made[use] = AttentionInputs(
            *(tensors[name] for name in ("q", "k", "v", "bias")),
            scale=0.4,
            visible=case.fixed.get("visible"),
            shared_qkv=shared,
            window_mask=None if mask is None else mask.float(),
        )
    return made


def _swin_block(random: Any) -> dict[str, BlockInputs]:
    c, hidden, heads = 12, 24, 3

    def weight(*shape: int) -> torch.Tensor:
        return (0.3 * random(*shape)).detach().requires_grad_()

    weights = SwinBlockWeights(
        *(weight(c), weight(c), weight(3 * c, c), weight(3 * c), weight(35, heads), weight(c, c), weight(c)),
        *(weight(c), weight(c), weight(hidden, c), weight(hidden), weight(c, hidden), weight(c)),
        mask_token=weight(c),
    )
    visible = VisibleTokens.from_keep(torch.arange(2 * WINDOWS.tokens).view(2, -1) % 5 < 2, WINDOWS)
    x, scale = random(2, WINDOWS.height, WINDOWS.width, c), torch.tensor([[0.5, 1.0], [1.0, 2.0]])
    made = {mode: BlockInputs(x, weights, WINDOWS, visible, mode, scale) for mode in MODES}
    return made | {"dense": BlockInputs(x, weights, WINDOWS, None, "zero", None)}


def _convolution(random: Any) -> dict[str, ConvolutionInputs]:
    return {"3x3": ConvolutionInputs(random(2, 5, 7, 6), random(9, 6, 3, 3), random(9))}


def _pixel_embedding(random: Any) -> dict[str, EmbeddingInputs]:
    weights = EmbeddingWeights(random(12, 3, 1, 1), random(12), random(12), random(12))
    image = torch.rand(2, 3, 6, 11).requires_grad_()
    mask = torch.arange(2 * 8 * 12).view(2, 8, 12) % 3 == 0
    noise = Noise(0.1, *_key())
    mean = torch.tensor([0.4, 0.5, 0.6])
    return {
        "plain": EmbeddingInputs(image, (8, 12), None, None, mean, 1.0, -0.1, weights, False),
        "noise and mask": EmbeddingInputs(image, (8, 12), noise, mask, mean, 2.0, -0.1, weights, False),
    }


def _key() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor(2**62 + 12345), torch.tensor(2**31 + 5), torch.tensor([3, 2**32 + 7])


def _random_words(random: Any) -> dict[str, RandomWordsInputs]:
    return {
        "heads": RandomWordsInputs(*_key(), 0, 37, 0, 3),
        "reserved": RandomWordsInputs(*_key(), 0xFFFFFFFF, 1, 0xFFFFFFFF, 1),
    }


def _token_mask(random: Any) -> dict[str, TokenMaskInputs]:
    percents = torch.tensor([[0, 30, 120], [75, 100, -3]])
    plain = Windows(1, 83, (1, 1))
    return {
        "one percentage": TokenMaskInputs(*_key(), torch.tensor([[75]]), plain, 1, False),
        "of images": TokenMaskInputs(*_key(), percents[:, :1], plain, 3, False),
        "of heads": TokenMaskInputs(*_key(), percents[:1], plain, 3, False),
        "of both": TokenMaskInputs(*_key(), percents, plain, 3, False),
        "exact": TokenMaskInputs(*_key(), percents, WINDOWS, 3, True),
    }


def _normal(random: Any) -> dict[str, NormalInputs]:
    return {"5 channels": NormalInputs(*_key(), 5, 129, torch.float32)}


def _visible_tokens(random: Any) -> dict[str, VisibleTokensInputs]:
    keep = torch.arange(2 * 3 * WINDOWS.tokens).view(2, 3, -1) % 7 < 3
    return {
        "shared": VisibleTokensInputs(keep[:, 0], WINDOWS),
        "per head": VisibleTokensInputs(keep, WINDOWS),
        "not shifted": VisibleTokensInputs(keep[:, 0], Windows(8, 12, (4, 3))),
    }


_MAKERS = {
    "window_attention": _window_attention,
    "swin_block": _swin_block,
    "convolution": _convolution,
    "pixel_embedding": _pixel_embedding,
    "random_words": _random_words,
    "token_mask": _token_mask,
    "normal": _normal,
    "visible_tokens": _visible_tokens,
}


def backends_here(operation: str) -> list[Backend]:
    """The backends, but the reference, that run on this machine and take at least one example on the CPU."""
    made = examples(operation).values()
    return [
        backend
        for backend in REGISTRY[operation]
        if backend.name != "reference"
        and backend.unavailable() is None
        and any(backend.why_not(inputs) is None for inputs in made)
    ]


def names_here(operation: str) -> list[str]:
    return [backend.name for backend in backends_here(operation)]


def all_examples() -> list[tuple[str, str, str]]:
    """(operation, backend, example) of everything that runs here, the reference left out."""
    return [
        (operation, backend.name, name)
        for operation in REGISTRY
        for backend in backends_here(operation)
        for name, inputs in examples(operation).items()
        if backend.why_not(inputs) is None
    ]
