"""denoise: what it averages, that seeds decide, and that the model is left as it was."""

import pytest
import torch
from torch import Tensor

from masked_swin import MaskedSwinIR, MaskKey, ModelConfig, denoise

TINY = ModelConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4)


@pytest.fixture
def model() -> MaskedSwinIR:
    torch.manual_seed(0)
    model = MaskedSwinIR(TINY).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 11, 14, generator=torch.Generator().manual_seed(0))


def test_averages_over_masks(model: MaskedSwinIR, images: Tensor) -> None:
    got = denoise(model, images, average=3, seed=5)
    assert model.training, "the mode is restored"
    model.eval()
    with torch.no_grad():
        draws = [model(images, key=MaskKey.make(5, draw, 3)) for draw in range(3)]
    torch.testing.assert_close(got, torch.stack(draws).mean(0).clamp(0, 1), rtol=0, atol=1e-6)
    assert torch.equal(denoise(model, images, seed=5), denoise(model, images, average=4, seed=5))
    assert not model.training


def test_random_and_off(model: MaskedSwinIR, images: Tensor) -> None:
    random = denoise(model, images, attention_mask="random", seed=5)
    assert torch.equal(random, denoise(model, images, average=1, seed=5))
    assert not torch.equal(random, denoise(model, images, attention_mask="random", seed=6))
    off = denoise(model, images, attention_mask="off")
    model.eval()
    with torch.no_grad():
        assert torch.equal(random, model(images, key=MaskKey.make(5, 0, 3)).clamp(0, 1))
        assert torch.equal(off, model(images, attention_mask=False).clamp(0, 1))


def test_a_network_without_masks_runs_once(images: Tensor) -> None:
    model = MaskedSwinIR(ModelConfig(**{**TINY.to_dict(), "attention_mask": None}))
    calls: list[object] = []
    model.register_forward_hook(lambda *arguments: calls.append(arguments))
    denoise(model, images, average=4)
    assert len(calls) == 1


def test_sample_ids_free_results_of_the_batch(model: MaskedSwinIR, images: Tensor) -> None:
    model, images = model.double(), images.double()
    together = denoise(model, images, sample=torch.tensor([7, 7, 9]))
    for i, sample in enumerate((7, 7, 9)):
        alone = denoise(model, images[i], sample=torch.tensor([sample]))
        assert alone.shape == images[i].shape
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-12)


def test_leaves_the_model_alone(model: MaskedSwinIR, images: Tensor) -> None:
    before, state = images.clone(), torch.get_rng_state()
    out = denoise(model, images)
    assert torch.equal(images, before)
    assert not out.requires_grad
    assert 0 <= out.min() <= out.max() <= 1
    assert torch.equal(torch.get_rng_state(), state), "torch's generator does not move"
    with pytest.raises(ValueError, match="at least one pixel"):
        denoise(model, images[..., :0])
    assert model.training, "also after an error"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_mask": "mean"}, "'average', 'random' or 'off', got 'mean'"),
        ({"average": 0}, "at least 1, got 0"),
        ({"average": 1.5}, "at least 1, got 1.5"),
        ({"seed": -1}, "seed"),
        ({"sample": torch.tensor([1, 2])}, "3 samples"),
    ],
)
def test_bad_options(model: MaskedSwinIR, images: Tensor, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        denoise(model, images, **options)  # type: ignore[arg-type]


def test_bad_images(model: MaskedSwinIR) -> None:
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(B, C, H, W\), got \(8, 8\)"):
        denoise(model, torch.rand(8, 8))
    with pytest.raises(ValueError, match=r"torch.uint8; use image.float\(\) / 255"):
        denoise(model, torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert denoise(model, torch.rand(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got .* to 2\d\d.*; divide 8-bit values by 255"):
        denoise(model, 255 * torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="got nan to nan"):
        denoise(model, torch.full((3, 8, 8), float("nan")))
    denoise(model, 0.5 + torch.randn(3, 8, 8).clamp(-1, 1))  # noise that was not clipped


def test_wrong_types_are_named(model: MaskedSwinIR, images: Tensor) -> None:
    for arguments, options, words in (
        (("published", images), {}, "model must be a MaskedSwinIR, got str"),
        ((model, images.numpy()), {}, "image must be a torch tensor, got ndarray"),
        ((model, images), {"sample": [1, 2, 3]}, "sample must be an int64 tensor of ids, got list"),
        ((model, images), {"seed": 1.5}, "seed must be a whole number"),
        ((model, images), {"tile": "big"}, "tile must be a multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            denoise(*arguments, **options)  # type: ignore[arg-type]
