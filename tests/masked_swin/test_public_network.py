"""The witness itself, checked against method.md, brute force and torch's own attention."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.public_network import (
    RGB_MEAN,
    DropPath,
    PublicAttention,
    PublicBlock,
    PublicNetwork,
    mask_pixels,
    relative_position_index,
    shift_mask,
    window_partition,
    window_reverse,
    windowed_keep,
)

WINDOW, HEADS, DIM = 4, 6, 12
SMALL = {"embed_dim": DIM, "depths": (2, 1), "num_heads": (HEADS, HEADS), "window_size": WINDOW, "img_size": 16}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomise(module: nn.Module) -> None:
    """Leave no parameter at 0 or 1, which would hide a missing bias or norm."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def small_network(**options: object) -> PublicNetwork:
    network = PublicNetwork(**{**SMALL, **options})
    randomise(network)
    return network


def random_keep(batch: int, size: tuple[int, int], *, per_head: bool = False) -> list[Tensor]:
    """One mask for each of the three blocks of `SMALL`."""
    windows = batch * size[0] * size[1] // WINDOW**2
    return [torch.rand((windows, HEADS, WINDOW**2) if per_head else (windows, WINDOW**2)) < 0.4 for _ in range(3)]


def test_published_configuration_has_the_published_size_and_names():
    network = PublicNetwork()
    assert sum(p.numel() for p in network.parameters()) == 824_118
    buffers = dict(network.named_buffers())
    index_bytes, mask_bytes = 24 * 64 * 64 * 8, 12 * 64 * 64 * 64 * 4  # int64, 24 blocks; fp32, 12 shifted blocks
    assert sum(b.numel() * b.element_size() for b in buffers.values()) == index_bytes + mask_bytes == 13_369_344
    block_names = [
        "norm1.weight norm1.bias attn.relative_position_bias_table attn.relative_position_index",
        "attn.qkv.weight attn.qkv.bias attn.proj.weight attn.proj.bias norm2.weight norm2.bias",
        "mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias",
    ]
    expected = {f"{m}.{p}" for m in ("conv_first", "patch_embed.norm", "norm", "conv_last") for p in ("weight", "bias")}
    expected |= {f"conv_after_body.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")}
    for group in range(4):
        expected |= {f"layers.{group}.conv.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")}
        for block in range(6):
            names = " ".join(block_names).split() + ["attn_mask"] * (block % 2)
            expected |= {f"layers.{group}.residual_group.blocks.{block}.{name}" for name in names}
    state = network.state_dict()
    assert set(state) == expected
    assert state["layers.0.residual_group.blocks.0.attn.relative_position_bias_table"].shape == (225, 6)
    assert state["conv_first.weight"].shape == (60, 3, 1, 1)


def test_names_of_the_variants():
    state = small_network(mask_is_diff=True, resi_connection="1conv", conv_first_kernel=3).state_dict()
    attention = "layers.0.residual_group.blocks.0.attn."
    assert f"{attention}qkv.weight" not in state
    assert all(state[f"{attention}qkv{i}.weight"].shape == (3 * DIM // HEADS, DIM) for i in range(1, 7))
    assert {"layers.0.conv.weight", "conv_after_body.weight"} <= set(state)
    assert state["conv_first.weight"].shape == (DIM, 3, 3, 3)


def test_initial_weights_are_truncated_normal_with_zero_bias():
    for module in PublicNetwork(depths=(2,), num_heads=(6,)).modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()


def test_windows_are_row_major_and_reversible():
    y, x = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    image = torch.stack([torch.stack([torch.full_like(y, b), y, x], -1) for b in range(2)])
    windows = window_partition(image, WINDOW)
    order = [
        [b, wy * 4 + ty, wx * 4 + tx]
        for b, wy, wx, ty, tx in itertools.product(range(2), range(2), range(3), range(4), range(4))
    ]
    assert windows.reshape(-1, 3).tolist() == order
    assert torch.equal(window_reverse(windows, WINDOW, (8, 12)), image)


def test_relative_position_index_counts_rows_then_columns():
    index = relative_position_index(3)
    for query, key in itertools.product(range(9), repeat=2):
        dy, dx = query // 3 - key // 3, query % 3 - key % 3
        assert index[query, key] == (dy + 2) * 5 + dx + 2


@pytest.mark.parametrize("size", [(64, 64), (16, 24), (8, 16), (8, 8)])
def test_shift_mask_separates_tokens_brought_together_by_the_roll(size: tuple[int, int]):
    """Two tokens of a window belong together where their distance in the image is their distance in the window."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    place = torch.stack([y, x], -1).unsqueeze(0)
    before, after = window_partition(place.roll((-4, -4), (1, 2)), 8), window_partition(place, 8)
    distances = [p.unsqueeze(1) - p.unsqueeze(2) for p in (before, after)]
    together = (distances[0] == distances[1]).all(-1)
    assert torch.equal(shift_mask(size, 8, 4), torch.where(together, 0.0, -100.0))
    assert not shift_mask(size, 8, 0).any()
    if size == (64, 64):
        assert torch.equal(PublicBlock(6, 1, 8, 4, 1.0).attn_mask, shift_mask(size, 8, 4))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ratio=st.floats(0, 1), per_head=st.booleans())
def test_q_k_v_of_a_masked_token_are_the_bias(seed: int, ratio: float, per_head: bool):
    torch.manual_seed(seed)
    attention = PublicAttention(DIM, HEADS, WINDOW, mask_is_diff=per_head)
    randomise(attention)
    x = torch.randn(3, WINDOW**2, DIM)
    keep = torch.rand((3, HEADS, WINDOW**2) if per_head else (3, WINDOW**2)) >= ratio
    qkv = attention.project(x, keep)  # (3, W, H, T, D)
    unmasked = attention.project(x, None)
    if per_head:
        bias = torch.stack([getattr(attention, f"qkv{i + 1}").bias.view(3, -1) for i in range(HEADS)], dim=1)
    else:
        bias = attention.qkv.bias.view(3, HEADS, -1)
    visible = (keep if per_head else keep.unsqueeze(1)).unsqueeze(-1)
    torch.testing.assert_close(qkv, torch.where(visible, unmasked, bias[:, None, :, None]), rtol=1e-5, atol=1e-6)

    other = torch.where(visible.any(1), x, torch.randn_like(x))  # a token that no head sees may hold anything
    assert torch.equal(attention.project(other, keep), qkv)


@pytest.mark.parametrize("shift", [0, 2])
def test_block_equals_torch_attention(shift: int):
    """Float64; an independent route to the same block: gather by pixel, scaled_dot_product_attention, scatter."""
    size, batch = (8, 12), 2
    block = PublicBlock(DIM, HEADS, WINDOW, shift, 2.0).double()
    randomise(block)
    x = torch.randn(batch, size[0] * size[1], DIM, dtype=torch.float64)
    keep = torch.rand(batch, size[0] * size[1]) < 0.4
    actual = block(x, size, windowed_keep(keep, size, WINDOW, shift))

    attention, expected = block.attn, torch.empty_like(x)
    normed = F.layer_norm(x, (DIM,), block.norm1.weight, block.norm1.bias) * keep.unsqueeze(-1)
    table = attention.relative_position_bias_table.view(7, 7, HEADS)
    t = torch.arange(WINDOW**2)
    bias = table[t[:, None] // 4 - t // 4 + 3, t[:, None] % 4 - t % 4 + 3].permute(2, 0, 1)
    for top, left in itertools.product(range(0, size[0], WINDOW), range(0, size[1], WINDOW)):
        rows, columns = top + t // 4 + shift, left + t % 4 + shift
        region = 2 * (rows >= size[0]) + (columns >= size[1])
        mask = torch.where(region[:, None] == region, 0.0, -100.0)
        pixels = rows % size[0] * size[1] + columns % size[1]
        q, k, v = attention.qkv(normed[:, pixels]).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias + mask)
        expected[:, pixels] = attention.proj(out.transpose(1, 2).flatten(2))
    expected = x + expected
    normed = F.layer_norm(expected, (DIM,), block.norm2.weight, block.norm2.bias)
    hidden = normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = expected + gelu @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_per_head_network_with_equal_masks_equals_the_plain_one():
    plain, per_head = small_network(), small_network(mask_is_diff=True)
    state = per_head.state_dict()
    for name, value in plain.state_dict().items():
        if ".qkv." in name:  # rows (3, heads, head_dim), channels last in a weight
            for head, rows in enumerate(value.unflatten(0, (3, HEADS, -1)).unbind(1)):
                state[name.replace("qkv", f"qkv{head + 1}")] = rows.flatten(0, 1)
        else:
            state[name] = value
    per_head.load_state_dict(state)
    x, keep = torch.rand(2, 3, 8, 12), random_keep(2, (8, 12))
    same = [k.unsqueeze(1).expand(-1, HEADS, -1) for k in keep]
    for module in (plain, per_head):
        module.eval()
    torch.testing.assert_close(per_head(x, same), plain(x, keep), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_head(x), plain(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(per_head(x, random_keep(2, (8, 12), per_head=True)), plain(x, keep), atol=1e-3)


def test_per_head_masks_are_windowed_as_one_mask_per_head():
    keep = torch.rand(2, HEADS, 8 * 12) < 0.4
    heads = [windowed_keep(keep[:, head], (8, 12), WINDOW, 2) for head in range(HEADS)]
    assert torch.equal(windowed_keep(keep, (8, 12), WINDOW, 2), torch.stack(heads, 1))


@pytest.mark.parametrize("size", [(64, 64), (13, 10), (3, 9), (16, 16)])
def test_any_image_size_keeps_its_shape(size: tuple[int, int]):
    network = small_network().eval()
    x = torch.rand(2, 3, *size)
    padded = F.pad(x, (0, -size[1] % WINDOW, 0, -size[0] % WINDOW), mode="reflect")
    y = network(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, network(padded)[..., : size[0], : size[1]])


@pytest.mark.parametrize("img_range", [1.0, 255.0])
def test_global_residuals_only_with_a_3x3_conv_first(img_range: float):
    x = torch.rand(2, 3, 8, 8)
    masked, swinir = (small_network(conv_first_kernel=k, img_range=img_range).eval() for k in (1, 3))
    for network in (masked, swinir):
        nn.init.zeros_(network.conv_last.weight)
        nn.init.zeros_(network.conv_last.bias)
    torch.testing.assert_close(masked(x), torch.tensor(RGB_MEAN).view(1, 3, 1, 1).expand_as(x))
    torch.testing.assert_close(swinir(x), x)

    inner = small_network(conv_first_kernel=3, resi_connection="1conv").eval()
    nn.init.zeros_(inner.conv_after_body.weight)
    nn.init.zeros_(inner.conv_after_body.bias)
    mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
    torch.testing.assert_close(inner(x), x + inner.conv_last(inner.conv_first(x - mean)))


def test_order_of_the_network_around_its_blocks():
    network = small_network(depths=(1,), num_heads=(HEADS,)).eval()
    group, x, mean = network.layers[0], torch.rand(2, 3, 8, 8), torch.tensor(RGB_MEAN).view(1, 3, 1, 1)

    def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (DIM,), layer.weight, layer.bias).permute(0, 3, 1, 2)

    def three_convs(x: Tensor, convs: nn.Sequential) -> Tensor:
        x = F.leaky_relu(F.conv2d(x, convs[0].weight, convs[0].bias, padding=1), 0.2)
        x = F.leaky_relu(F.conv2d(x, convs[2].weight, convs[2].bias), 0.2)
        return F.conv2d(x, convs[4].weight, convs[4].bias, padding=1)

    first = norm(network.conv_first(x - mean), network.patch_embed["norm"])
    block = group.residual_group["blocks"][0](first.flatten(2).mT, (8, 8)).mT.unflatten(2, (8, 8))
    body = three_convs(norm(three_convs(block, group.conv) + first, network.norm), network.conv_after_body)
    torch.testing.assert_close(network(x), network.conv_last(body) + mean, rtol=1e-5, atol=1e-5)


def test_drop_path_is_off_in_eval_and_per_sample_in_training():
    network = small_network(drop_path_rate=0.9)
    rates = [m.probability for m in network.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.45, 0.9])  # linear over the three blocks; the first, at 0, has none
    x, keep = torch.rand(2, 3, 8, 8), random_keep(2, (8, 8))
    assert not torch.equal(network(x, keep), network(x, keep))
    network.eval()
    assert torch.equal(network(x, keep), network(x, keep))
    without = small_network(drop_path_rate=0.0)
    without.load_state_dict(network.state_dict())
    assert torch.equal(without(x, keep), network(x, keep))

    scales = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert torch.equal(scales, scales[:, :1, :1].expand_as(scales))
    assert scales.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert scales.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"conv_first_kernel": 3, "resi_connection": "1conv"}, {"mask_is_diff": True}])
@pytest.mark.parametrize("masked", [True, False])
def test_every_parameter_gets_a_gradient(options: dict[str, object], masked: bool):
    network = small_network(drop_path_rate=0.0, **options)
    keep = random_keep(2, (12, 16), per_head="mask_is_diff" in options) if masked else None
    network(torch.rand(2, 3, 11, 15), keep).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_image_not_larger_than_the_window_has_no_shift():
    for side in (6, 8):
        block = PublicBlock(DIM, HEADS, window=8, shift=4, mlp_ratio=2.0, img_size=(side, 16))
        assert (block.window, block.shift, block.attn_mask) == (side, 0, None)
    block = PublicBlock(DIM, HEADS, window=8, shift=4, mlp_ratio=2.0, img_size=(16, 24))
    assert (block.window, block.shift) == (8, 4)
    assert block.attn_mask is not None
    # The rule looks at img_size only: an 8x8 image in a network built for 64 is still shifted.
    shifted = PublicBlock(DIM, HEADS, 8, 4, 2.0)
    seen = []
    shifted.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    shifted(torch.randn(1, 64, DIM), (8, 8))
    assert seen[0].any()


def test_known_size_and_recomputed_mask_agree():
    known, other = (PublicBlock(DIM, HEADS, WINDOW, 2, 2.0, img_size=s) for s in ((8, 12), 16))
    randomise(known)
    other.load_state_dict({**known.state_dict(), "attn_mask": other.attn_mask})
    x = torch.randn(2, 96, DIM)
    assert torch.equal(known(x, (8, 12)), other(x, (8, 12)))


def test_masked_pixels_become_minus_a_tenth_in_all_channels():
    image, masked = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5) < 0.5
    out = mask_pixels(image, masked).permute(0, 2, 3, 1)
    assert (out[masked] == -0.1).all()
    assert torch.equal(out[~masked], image.permute(0, 2, 3, 1)[~masked])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="resi_connection must be '1conv' or '3conv', got '6conv'"):
        small_network(resi_connection="6conv")
    with pytest.raises(ValueError, match="conv_first_kernel must be 1"):
        small_network(conv_first_kernel=5)
    with pytest.raises(ValueError, match="mask_is_diff needs 6 heads"):
        small_network(num_heads=(4, 4), mask_is_diff=True)
    with pytest.raises(ValueError, match="multiple of heads"):
        small_network(num_heads=(5, 5))
    network, x = small_network(), torch.rand(1, 3, 8, 8)
    keep = random_keep(1, (8, 8))
    with pytest.raises(ValueError, match="one mask per block, 3 of them, got 2"):
        network(x, keep[:2])
    for wrong in (keep[0].float(), keep[0][:3], random_keep(1, (8, 8), per_head=True)[0]):
        with pytest.raises(ValueError, match="keep must be bool"):
            network(x, [wrong, *keep[1:]])


def test_the_witness_is_independent():
    tree = ast.parse((Path(__file__).parents[1] / "support" / "public_network.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} == {"collections", "functools", "torch"}
