"""MaskedSwinIR against an independent transcription of the public network, its masks, and what it refuses."""

import copy
import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from masked_swin import PRESETS, MaskedSwinIR, MaskKey, ModelConfig
from masked_swin.checkpoint import load_public_state, public_state
from masked_swin.config import config_from_public_options
from masked_swin.kernels import Windows, token_mask
from masked_swin.masking import gaussian_noise
from tests.support.public_network import PublicNetwork, windowed_keep

SMALL = ModelConfig(embed_dim=24, depths=(2, 3), num_heads=(6, 4), drop_path_rate=0.0)
TINY = ModelConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, drop_path_rate=0.0)

PUBLIC_CASES = {
    "masks": ({}, (2, 3, 16, 24)),
    "masks off": ({"attention_mask": None}, (2, 3, 24, 16)),
    "ratio drawn": ({"attention_mask": (0.0, 1.0)}, (2, 3, 13, 19)),
    "everything masked": ({"attention_mask": 1.0}, (1, 3, 16, 16)),
    "nothing masked": ({"attention_mask": 0.0}, (1, 3, 16, 16)),
    "exact": ({"attention_mask_exact": True}, (2, 3, 17, 31)),
    "per head": ({"attention_mask_per_head": True, "num_heads": (6, 6)}, (2, 3, 11, 24)),
    "per head, ratios drawn": (
        {"attention_mask_per_head": True, "num_heads": (6, 6), "attention_mask": (0.25, 0.9)},
        (2, 3, 16, 16),
    ),
    "one window": ({}, (1, 3, 8, 8)),
    "less than a window": ({}, (1, 3, 5, 7)),
    "3x3 conv_first": ({"conv_first_kernel": 3, "attention_mask": None}, (2, 3, 15, 20)),
    "3x3 conv_first, masks": ({"conv_first_kernel": 3}, (2, 3, 15, 20)),
    "1conv, grey, odd window": (
        {"resi_connection": "1conv", "in_channels": 1, "image_mean": (0.0,), "window_size": 7, "image_range": 255.0},
        (2, 1, 15, 21),
    ),
    "wide MLP": ({"mlp_ratio": 3.3}, (1, 3, 16, 16)),
}


def spread(model: MaskedSwinIR, seed: int = 1) -> MaskedSwinIR:
    """Weights at which attention is far from uniform and every bias counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            if "table" in name:
                parameter.copy_(noise)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model


def all_of(words: list[str]) -> str:
    """A pattern for a message that holds every word."""
    return "".join(f"(?=.*{re.escape(word)})" for word in words)


def public_twin(model: MaskedSwinIR) -> PublicNetwork:
    config = model.config
    twin = PublicNetwork(
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        resi_connection=config.resi_connection,
        conv_first_kernel=config.conv_first_kernel,
        img_range=config.image_range,
        drop_path_rate=config.drop_path_rate,
        mask_is_diff=config.attention_mask_per_head,
        img_size=config.window_size * -(-64 // config.window_size),
        in_chans=config.in_channels,
    )
    twin.load_state_dict(public_state(model), strict=True)
    return twin.to(model.norm.weight.dtype).eval()


def public_keep(config: ModelConfig, key: MaskKey, height: int, width: int) -> list[Tensor] | None:
    """The masks the model draws, from their definition, as the public transcription takes them."""
    if config.attention_mask is None:
        return None
    window = config.window_size
    size = (-(-height // window) * window, -(-width // window) * window)
    keep, layers = [], sum(config.depths) + 1
    for depth, heads in zip(config.depths, config.num_heads, strict=True):
        for i in range(depth):
            shift = window // 2 * (i % 2)
            masked = token_mask(
                key.seed,
                key.draw * layers + len(keep) + 1,
                key.sample,
                size[0] * size[1],
                config.attention_mask,
                heads=heads if config.attention_mask_per_head else None,
                windows=Windows(*size, (window, window), (shift, shift)),
                exact=config.attention_mask_exact,
            )
            keep.append(windowed_keep(~masked, size, window, shift))
    return keep


@pytest.mark.parametrize(("changes", "shape"), PUBLIC_CASES.values(), ids=list(PUBLIC_CASES))
def test_equals_public_network(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    config = replace(SMALL, **changes)
    key = MaskKey.make(seed=2**40 + 7, draw=5, samples=torch.arange(10, 10 + shape[0]))
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = public_keep(config, key, *shape[2:])
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = spread(MaskedSwinIR(config)).to(dtype).eval()
        expected = public_twin(model)(x.to(dtype), keep)
        got = model(x.to(dtype), key=key)
        assert got.dtype == dtype
        assert got.shape == x.shape
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["masks", "masks off", "per head", "3x3 conv_first, masks", "1conv, grey, odd window"])
def test_gradients_equal_public_network(name: str) -> None:
    changes, shape = PUBLIC_CASES[name]
    config = replace(SMALL, **changes)
    key = MaskKey.make(3, samples=shape[0])
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = spread(MaskedSwinIR(config)).double().eval()
    twin = public_twin(model)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (model(x, key=key) * weight).sum().backward()
    (twin(x, public_keep(config, key, *shape[2:])) * weight).sum().backward()
    gradients = copy.deepcopy(model)
    with torch.no_grad():
        for holder, source in zip(gradients.parameters(), model.parameters(), strict=True):
            assert source.grad is not None
            holder.copy_(source.grad)
    named = public_state(gradients, buffers=False)
    for parameter_name, parameter in twin.named_parameters():
        scale = 1 + parameter.grad.abs().max().item()
        torch.testing.assert_close(named[parameter_name], parameter.grad, rtol=0, atol=1e-10 * scale)


def test_published_network() -> None:
    model = spread(MaskedSwinIR(PRESETS["published"])).eval()
    twin = public_twin(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 824_118
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in twin.named_parameters()]
    assert sorted(model.state_dict()) == sorted(names), "the state dict holds parameters only"
    key = MaskKey.make(0)
    x = torch.rand(1, 3, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            model(x, key=key), twin(x, public_keep(model.config, key, 20, 16)), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("name", ["masks", "per head", "3x3 conv_first"])
def test_loads_public_weights(name: str) -> None:
    config = replace(SMALL, **PUBLIC_CASES[name][0])
    source = spread(MaskedSwinIR(config), seed=9)
    loaded = MaskedSwinIR(config)
    load_public_state(loaded, public_twin(source).state_dict())
    for parameter_name, parameter in source.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(parameter_name)), parameter_name


def test_initial_weights_are_swinirs() -> None:
    torch.manual_seed(0)
    for name, parameter in MaskedSwinIR(PRESETS["small"]).named_parameters():
        if "norm" in name or ("residual_group" in name and name.endswith("bias")):
            assert (parameter == float("norm" in name and name.endswith("weight"))).all(), name
        elif "residual_group" in name:
            assert 0.018 < parameter.std() < 0.022, name


def test_input_mask_hides_pixels_in_training_only() -> None:
    config = replace(TINY, input_mask=(0.3, 0.7), attention_mask=None)
    model = spread(MaskedSwinIR(config))
    x = torch.rand(64, 3, 30, 29)
    key = MaskKey.make(1, samples=64)
    seen = model.mask_input(x, key)
    masked = (seen == -0.1).all(1, keepdim=True)
    assert torch.equal(seen, torch.where(masked, torch.tensor(-0.1), x))
    shares = masked.float().mean((1, 2, 3))
    assert shares.min() > 0.25
    assert shares.max() < 0.75
    assert shares.std() > 0.05, "a share is drawn per image"
    model.train()
    assert torch.equal(model(x[:2], key=MaskKey.make(1, samples=2)), model.eval()(seen[:2]))
    assert not torch.equal(model(seen[:2]), model(x[:2]))
    assert torch.equal(MaskedSwinIR(replace(config, input_mask=None)).mask_input(x, key), x)


def test_masks_depend_on_the_key_alone() -> None:
    model = spread(MaskedSwinIR(TINY)).double().train()
    x = torch.rand(3, 3, 10, 13, dtype=torch.float64)
    whole = model(x, key=MaskKey.make(5, 2, 3))
    assert torch.equal(whole, model(x, key=MaskKey.make(5, 2, 3)))
    for i in range(3):
        alone = model(x[i : i + 1], key=MaskKey.make(5, 2, torch.tensor([i])))
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-12)
    for other in (MaskKey.make(6, 2, 3), MaskKey.make(5, 3, 3), MaskKey.make(5, 2, torch.arange(3) + 1)):
        assert not torch.allclose(whole, model(x, key=other), atol=1e-4)


def test_attention_mask_can_be_left_out() -> None:
    model = spread(MaskedSwinIR(TINY)).eval()
    unmasked = MaskedSwinIR(replace(TINY, attention_mask=None)).eval()
    unmasked.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 12, 12)
    assert torch.equal(model(x, attention_mask=False), unmasked(x))
    assert not torch.allclose(model(x), unmasked(x), atol=1e-4)


def test_token_mode_starts_as_zero_mode_and_learns() -> None:
    zero = spread(MaskedSwinIR(TINY)).double().eval()
    token = MaskedSwinIR(replace(TINY, attention_mask_mode="token")).double().eval()
    missing = token.load_state_dict(zero.state_dict(), strict=False).missing_keys
    assert missing == [f"layers.0.residual_group.blocks.{i}.attn.mask_token" for i in range(2)]
    x, key = torch.rand(1, 3, 8, 8, dtype=torch.float64), MaskKey.make(0)
    torch.testing.assert_close(token(x, key=key), zero(x, key=key), rtol=0, atol=1e-12)
    token(x, key=key).sum().backward()
    assert all(token.get_parameter(name).grad.abs().max() > 0 for name in missing)


def test_drop_mode_leaves_masked_keys_out() -> None:
    zero = spread(MaskedSwinIR(TINY)).eval()
    drop = MaskedSwinIR(replace(TINY, attention_mask_mode="drop")).eval()
    drop.load_state_dict(zero.state_dict())
    x, key = torch.rand(1, 3, 8, 8), MaskKey.make(0)
    assert not torch.allclose(drop(x, key=key), zero(x, key=key), atol=1e-4)
    assert torch.equal(drop(x, attention_mask=False), zero(x, attention_mask=False))


def test_stochastic_depth_grows_linearly_and_keeps_the_mean() -> None:
    config = replace(TINY, depths=(2, 3), num_heads=(2, 2), drop_path_rate=0.4)
    model = MaskedSwinIR(config).train()
    scales = model._drop_path_scales(MaskKey.make(0, samples=4000), torch.float32)
    assert [len(group) for group in scales] == [2, 3]
    layers = [scale for group in scales for scale in group]
    assert layers[0] is None
    for scale, rate in zip(layers[1:], (0.1, 0.2, 0.3, 0.4), strict=True):
        assert scale.shape == (2, 4000)
        torch.testing.assert_close(scale.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
        assert ((scale == 0).float().mean(1) - rate).abs().max() < 0.03
        assert not torch.equal(scale[0], scale[1]), "one draw per branch"
    assert model._drop_path_scales(None, torch.float32) == [[None] * 2, [None] * 3]


def test_stochastic_depth_is_a_function_of_the_key() -> None:
    config = replace(TINY, depths=(2, 3), num_heads=(2, 2), drop_path_rate=0.4, input_mask=None, attention_mask=None)
    model = spread(MaskedSwinIR(config)).train()
    x, key = torch.rand(4, 3, 8, 8), MaskKey.make(0, samples=4)
    whole = model(x, key=key)
    assert torch.equal(whole, model(x, key=key))
    assert not torch.equal(whole, model(x, key=key._replace(draw=key.draw + 1)))
    halves = [model(x[half], key=key._replace(sample=key.sample[half])) for half in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-5)  # whatever the batching
    assert not torch.equal(model(x), model(x)), "without a key every pass draws"
    assert torch.equal(model.eval()(x), model(x))


def test_compiles_and_draws_new_masks() -> None:
    torch._dynamo.reset()
    model = spread(MaskedSwinIR(TINY)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 10, 13)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        outputs = [compiled(x) for _ in range(3)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    torch.manual_seed(3)
    ours = compiled(x)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, model(x), rtol=0, atol=1e-5)


def test_compiles_once_for_all_sizes_in_training() -> None:
    torch._dynamo.reset()
    model = spread(MaskedSwinIR(replace(TINY, input_mask=(0.1, 0.3), drop_path_rate=0.1))).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, height, width in ((2, 10, 13), (3, 11, 14), (4, 21, 9)):
            x = torch.rand(batch, 3, height, width)
            key = MaskKey.make(batch, samples=batch)
            ours, wanted = (run(x, key=key, noise_sigma=0.06) for run in (compiled, model))
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_a_schedule_of_ratios_compiles_nothing_anew() -> None:
    torch._dynamo.reset()
    model = spread(MaskedSwinIR(replace(TINY, input_mask=(0.2, 0.3), attention_mask=0.5))).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x, key = torch.rand(2, 3, 12, 16), MaskKey.make(7, 3, 2)
    compiled(x, key=key)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for pixels, tokens in (((0.4, 0.6), 0.75), ((0.8, 0.9), 0.9)):
            model.set_mask_ratios(input_mask=pixels, attention_mask=tokens)
            made_so = MaskedSwinIR(replace(TINY, input_mask=pixels, attention_mask=tokens)).train()
            made_so.load_state_dict(model.state_dict())
            torch.testing.assert_close(compiled(x, key=key), made_so(x, key=key))
            assert torch.equal(model.mask_input(x, key), made_so.mask_input(x, key))


def test_ratios_that_a_network_cannot_have_are_refused() -> None:
    model = MaskedSwinIR(replace(TINY, input_mask=None))
    with pytest.raises(ValueError, match="no input_mask whose ratio could be set"):
        model.set_mask_ratios(input_mask=0.5)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        model.set_mask_ratios(attention_mask=75)
    model.set_mask_ratios(attention_mask=(0.25, 0.5))  # a range in place of a number
    assert model(torch.rand(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_noise_of_training_is_that_of_the_key(kernel: int) -> None:
    config = replace(TINY, input_mask=0.5, conv_first_kernel=kernel)
    model, clean = spread(MaskedSwinIR(config)).train(), torch.rand(2, 3, 10, 13)
    key = MaskKey.make(3, draw=5, samples=torch.tensor([7, 8]))
    wanted = model(gaussian_noise(clean, 0.1, key), key=key)
    assert torch.equal(model(clean, key=key, noise_sigma=0.1), wanted)
    assert not torch.equal(model(clean, key=key), wanted)
    unmasked = MaskedSwinIR(replace(config, input_mask=None, attention_mask=None)).train()
    assert not torch.equal(*(unmasked(clean, noise_sigma=0.1) for _ in range(2))), "passes are counted for noise, too"


def test_noise_outside_of_training_is_refused() -> None:
    model, x = MaskedSwinIR(TINY), torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"positive in training, got -0\.1 with training=True"):
        model.train()(x, noise_sigma=-0.1)
    with pytest.raises(ValueError, match=r"got 0\.1 with training=False"):
        model.eval()(x, noise_sigma=0.1)


def test_the_reference_backend_can_be_differentiated_twice() -> None:
    model = spread(MaskedSwinIR(TINY, backend="reference")).eval()
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x, key=MaskKey.make(0)).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.abs().min() > 0


def test_autocast() -> None:
    model = spread(MaskedSwinIR(TINY)).eval()
    x, key = torch.rand(1, 3, 8, 8), MaskKey.make(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x, key=key)
    torch.testing.assert_close(half.float(), model(x, key=key), rtol=0, atol=0.1)


def test_input_layout_does_not_matter() -> None:
    model = spread(MaskedSwinIR(TINY)).eval()
    x, key = torch.rand(2, 3, 12, 20), MaskKey.make(0, samples=2)
    expected = model(x, key=key)
    assert expected.is_contiguous()
    wide = torch.rand(2, 3, 12, 40)
    wide[..., ::2] = x
    for same in (x.to(memory_format=torch.channels_last), wide[..., ::2]):
        assert torch.equal(model(same, key=key), expected)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.rand(3, 16, 16), ["(B, 3, H, W)", "(3, 16, 16)"]),
        (torch.rand(1, 4, 16, 16), ["(B, 3, H, W)", "(1, 4, 16, 16)"]),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), ["torch.uint8", "/ 255"]),
        (torch.rand(1, 3, 16, 16).double(), ["torch.float64", "torch.float32"]),
        (torch.rand(1, 3, 16, 16, device="meta"), ["meta", "cpu", "move"]),
        (torch.rand(1, 3, 16, 0), ["at least one pixel", "(1, 3, 16, 0)"]),
    ],
)
def test_bad_images(x: Tensor, words: list[str]) -> None:
    with pytest.raises(ValueError, match=all_of(words)):
        MaskedSwinIR(TINY)(x)


def test_bad_keys() -> None:
    model, x = MaskedSwinIR(TINY), torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="2 samples"):
        model(x, key=MaskKey.make(0, samples=3))
    with pytest.raises(ValueError, match=r"noise_sigma must be at most 1.* write 15 / 255"):
        model.train()(x, noise_sigma=15)
    with pytest.raises(ValueError, match="2 samples on cpu"):
        model(x, key=MaskKey.make(0, samples=2, device="meta"))
    for seed in (-1, 2**63, 1.5):
        with pytest.raises(ValueError, match="seed"):
            MaskKey.make(seed)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="seed"):
            model.seed_masks(seed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="int64"):
        MaskKey.make(0, samples=torch.zeros(2))
    with pytest.raises(ValueError, match=r"samples must be .* got list; use torch.tensor"):
        MaskKey.make(0, 0, [0, 1])  # type: ignore[arg-type]
    with pytest.raises(KeyError, match=r"no preset .big.; there are .*published"):
        PRESETS["big"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 0}, ["in_channels", "at least 1", "0"]),
        ({"embed_dim": 60.0}, ["embed_dim", "60.0"]),
        ({"depths": ()}, ["depths"]),
        ({"depths": 6}, ["depths", "6"]),
        ({"depths": (6, 0)}, ["depths", "0"]),
        ({"depths": (6, 6)}, ["depths", "num_heads", "same length"]),
        ({"num_heads": (6, 6, 6, 7)}, ["num_heads", "divide embed_dim 60", "7"]),
        ({"window_size": 0}, ["window_size", "at least 1"]),
        ({"mlp_ratio": 0}, ["mlp_ratio"]),
        ({"mlp_ratio": float("nan")}, ["mlp_ratio"]),
        ({"resi_connection": "6conv"}, ["resi_connection", "'1conv'", "'6conv'"]),
        ({"embed_dim": 2, "num_heads": (1, 1, 1, 1)}, ["3conv", "embed_dim"]),
        ({"conv_first_kernel": 5}, ["conv_first_kernel", "5"]),
        ({"image_range": 0}, ["image_range"]),
        ({"image_mean": (0.5,)}, ["image_mean", "in_channels is 3"]),
        ({"image_mean": (0.5, 0.5, "x")}, ["image_mean"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate", "below 1"]),
        ({"input_mask": (0.9, 0.8)}, ["input_mask", "low <= high"]),
        ({"input_mask": (0.8, 1.1)}, ["input_mask", "[0, 1]"]),
        ({"input_mask_value": float("inf")}, ["input_mask_value"]),
        ({"attention_mask": 75}, ["attention_mask", "[0, 1]", "0.75"]),
        ({"attention_mask": -0.1}, ["attention_mask", "[0, 1]"]),
        ({"attention_mask": 0.755}, ["attention_mask", "whole percents"]),
        ({"attention_mask": (0.1, 0.2, 0.3)}, ["attention_mask", "pair"]),
        ({"attention_mask": "most"}, ["attention_mask", "number"]),
        ({"attention_mask_mode": "sum"}, ["attention_mask_mode", "'token'", "'sum'"]),
        ({"attention_mask_mode": "drop", "attention_mask_per_head": True}, ["drop", "per_head", "zero"]),
    ],
)
def test_bad_configs(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=all_of(words)):
        ModelConfig(**changes)


def test_config_round_trip() -> None:
    for config in (*PRESETS.values(), SMALL):
        assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown model option 'emb_dim'; did you mean 'embed_dim'"):
        ModelConfig.from_dict({"emb_dim": 3})


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (4, 4), (9, 2), (16, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_small_images_are_extended_by_their_edge(size: tuple[int, int], kernel: int) -> None:
    model = spread(MaskedSwinIR(replace(SMALL, input_mask=0.5, conv_first_kernel=kernel))).eval()
    x, key = torch.rand(2, 3, *size), MaskKey.make(3, 1, 2)
    by_edge = [8 - side if 2 * side <= 8 else 0 for side in size]
    extended = torch.nn.functional.pad(x, (0, by_edge[1], 0, by_edge[0]), mode="replicate")
    out = model(x, key=key)
    assert torch.equal(out, model(extended, key=key)[..., : size[0], : size[1]])
    # A masked pixel is never seen, neither in a copy of it.
    model.train()
    hidden = model.mask_input(x, key) != x
    changed = torch.where(hidden, torch.rand_like(x), x)
    assert hidden.any() or size == (1, 1)
    assert torch.equal(model(x, key=key), model(changed, key=key))
    assert torch.equal(model(x, key=key, noise_sigma=0.1), model(gaussian_noise(x, 0.1, key), key=key))


def test_presets_run() -> None:
    for config in PRESETS.values():
        with torch.no_grad():
            assert MaskedSwinIR(config).eval()(torch.rand(1, 3, 9, 8)).isfinite().all()


PUBLIC_OPTIONS: dict[str, Any] = {
    "datasets": {"train": {"if_mask": True, "mask1": 80, "mask2": 90, "noise_level": 15}},
    "netG": {
        "net_type": "swinir", "upscale": 1, "in_chans": 3, "img_size": 64, "window_size": 8, "img_range": 1.0,
        "depths": [6, 6, 6, 6], "embed_dim": 60, "num_heads": [6, 6, 6, 6], "mlp_ratio": 2, "upsampler": None,
        "resi_connection": "3conv", "init_type": "default", "talking_heads": False, "attn_fn": "softmax",
        "head_scale": False, "on_attn": False, "use_mask": True, "mask_ratio1": 75, "mask_ratio2": 75,
        "mask_is_diff": False, "type": "stand",
    },
}  # fmt: skip


def test_public_options() -> None:
    assert config_from_public_options(PUBLIC_OPTIONS) == replace(PRESETS["published"], attention_mask=(0.75, 0.75))
    net = PUBLIC_OPTIONS["netG"]
    assert config_from_public_options(net).input_mask is None
    assert config_from_public_options({**net, "use_mask": False}).attention_mask is None
    assert config_from_public_options({**net, "mask_is_diff": True}).attention_mask_per_head
    refused = {
        "talking_heads": True,
        "head_scale": True,
        "attn_fn": "entmax15",
        "type": "sum",
        "on_attn": True,
        "upscale": 2,
    }
    for name, value in refused.items():
        with pytest.raises(ValueError, match=name):
            config_from_public_options({**net, name: value})
    with pytest.raises(ValueError, match="'embed_dim' is missing"):
        config_from_public_options({name: value for name, value in net.items() if name != "embed_dim"})
