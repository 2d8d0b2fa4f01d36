from itertools import groupby

import pytest
import torch
from torch.nn import functional as F

from masked_swin.kernels import (
    SwinBlockWeights,
    VisibleTokens,
    Windows,
    relative_position_bias,
    shift_mask,
    swin_block,
    window_attention,
)
from masked_swin.kernels.geometry import token_order
from tests.support.block_cases import block_weights
from tests.support.public_network import PublicBlock, windowed_keep

CHANNELS, HEADS = 12, 3
NAMES = ("x", *SwinBlockWeights._fields[:13])


def random_block(shift, window=4, dtype=torch.float64, size=(8, 12)) -> PublicBlock:
    block = PublicBlock(CHANNELS, HEADS, window, shift, 2.0, img_size=size).to(dtype)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("share", [None, 0.0, 0.25, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_output_and_gradients_equal_the_public_block(shift, share, dtype, tolerance):
    height, width, batch = 8, 12, 2
    block = random_block(shift)
    windows = Windows(height, width, (4, 4), (shift, shift))
    keep = None if share is None else torch.rand(batch, windows.tokens) < share
    x = torch.randn(batch, height, width, CHANNELS, dtype=torch.float64, requires_grad=True)
    public_keep = None if keep is None else windowed_keep(keep, (height, width), 4, shift)
    expected = block(x.flatten(1, 2), (height, width), public_keep).view_as(x)
    plan = None if keep is None else VisibleTokens.from_keep(keep, windows)
    ours = [t.detach().to(dtype).requires_grad_() for t in (x, *block_weights(block)[:13])]
    out = swin_block(ours[0], SwinBlockWeights(*ours[1:]), window=(4, 4), shift=(shift, shift), visible=plan)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance * 10)
    cotangent = torch.randn_like(expected)
    want = torch.autograd.grad(expected, [x, *block_weights(block)[:13]], cotangent)
    got = torch.autograd.grad(out, ours, cotangent.to(dtype))
    for name, g, w in zip(NAMES, got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance * (w.abs().max().item() + 1), msg=name)


def test_per_head_masks_equal_the_public_block():
    height, width = 8, 8
    block = PublicBlock(CHANNELS, 6, 4, 2, 2.0, mask_is_diff=True, img_size=(8, 8)).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    keep = torch.rand(2, 6, 64) < 0.4
    x = torch.randn(2, height, width, CHANNELS, dtype=torch.float64)
    expected = block(x.flatten(1, 2), (height, width), windowed_keep(keep, (height, width), 4, 2)).view_as(x)
    # qkvH of the public code holds q, k, v of one head; ours holds q of all heads, then k, then v.
    parts = [getattr(block.attn, f"qkv{head + 1}") for head in range(6)]
    stack = [
        torch.stack([getattr(p, n).unflatten(0, (3, 2)) for p in parts], 1).flatten(0, 2) for n in ("weight", "bias")
    ]
    block.attn.qkv = torch.nn.Linear(CHANNELS, 3 * CHANNELS, dtype=torch.float64)
    block.attn.qkv.weight, block.attn.qkv.bias = map(torch.nn.Parameter, stack)
    plan = VisibleTokens.from_keep(keep, Windows(8, 8, (4, 4), (2, 2)))
    out = swin_block(x, block_weights(block), window=(4, 4), shift=(2, 2), visible=plan)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)


def test_token_mode_puts_a_learned_vector_in_place_of_zero():
    windows = Windows(8, 8, (4, 4), (2, 2))
    keep = torch.rand(1, 64) < 0.4
    plan = VisibleTokens.from_keep(keep, windows)
    x = torch.randn(1, 8, 8, CHANNELS, dtype=torch.float64)
    block = random_block(2, size=(8, 8))
    options = {"window": (4, 4), "shift": (2, 2), "visible": plan}
    zero = swin_block(x, block_weights(block), mode="zero", **options)
    as_zero = swin_block(x, block_weights(block, torch.zeros(CHANNELS).double()), mode="token", **options)
    torch.testing.assert_close(as_zero, zero)
    token = torch.randn(CHANNELS, dtype=torch.float64, requires_grad=True)
    out = swin_block(x, block_weights(block, token), mode="token", **options)
    # the definition: masked rows of the normalised input are the token
    weights = block_weights(block)
    normed = F.layer_norm(x, (CHANNELS,), weights.norm1_weight, weights.norm1_bias)
    normed = torch.where(keep.view(1, 8, 8, 1), normed, token)
    qkv = F.linear(normed, weights.qkv_weight, weights.qkv_bias)
    order = token_order(windows)
    q, k, v = qkv.view(64, 3, HEADS, 4)[order].unbind(2)
    bias = relative_position_bias(weights.position_bias_table, (4, 4))
    attention = window_attention(
        q, k, v, bias, scale=0.5, window_mask=shift_mask(windows).double(), backend="reference"
    )
    image = torch.empty(64, CHANNELS, dtype=torch.float64)
    image[order.flatten()] = attention.reshape(-1, CHANNELS)
    branch = F.linear(image, weights.proj_weight, weights.proj_bias)
    middle = x + branch.view_as(x)
    hidden = F.layer_norm(middle, (CHANNELS,), weights.norm2_weight, weights.norm2_bias)
    hidden = F.gelu(F.linear(hidden, weights.fc1_weight, weights.fc1_bias))
    torch.testing.assert_close(out, middle + F.linear(hidden, weights.fc2_weight, weights.fc2_bias))
    (grad,) = torch.autograd.grad(out.square().sum(), token)
    assert grad.abs().min() > 0


def visible_alone(x, weights, keep, window, shift, scale) -> torch.Tensor:
    """Mode "visible" by its definition: the visible tokens of each image, window and shift region, block by block."""
    batch, height, width, channels = x.shape
    groups = []
    for image, y0, x0 in keep.view(batch, height, width).nonzero().tolist():
        place = [(at - by) % size for at, by, size in ((y0, shift[0], height), (x0, shift[1], width))]
        came_round = y0 < shift[0], x0 < shift[1]
        in_window = [p // w for p, w in zip(place, window, strict=True)]
        groups.append(((image, in_window, came_round), (image, y0, x0), place))
    out = x.clone()
    for (image, _, _), members in groupby(sorted(groups), key=lambda member: member[0]):
        _, tokens, places = zip(*members, strict=True)
        where = torch.tensor(tokens).T.unbind()
        rows = x[where]
        normed = F.layer_norm(rows, (channels,), weights.norm1_weight, weights.norm1_bias)
        qkv = F.linear(normed, weights.qkv_weight, weights.qkv_bias)
        q, k, v = qkv.view(len(rows), 3, HEADS, -1).permute(1, 2, 0, 3)
        (down, across) = (torch.tensor(places)[:, None] - torch.tensor(places)).unbind(-1)
        entry = (down + window[0] - 1) * (2 * window[1] - 1) + across + window[1] - 1
        bias = weights.position_bias_table[entry].permute(2, 0, 1)
        attention = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v
        branch = F.linear(attention.transpose(0, 1).flatten(1), weights.proj_weight, weights.proj_bias)
        middle = rows + scale[0, image] * branch
        hidden = F.layer_norm(middle, (channels,), weights.norm2_weight, weights.norm2_bias)
        hidden = F.gelu(F.linear(hidden, weights.fc1_weight, weights.fc1_bias))
        result = middle + scale[1, image] * F.linear(hidden, weights.fc2_weight, weights.fc2_bias)
        out = out.index_put(where, result)
    return out


@pytest.mark.parametrize("exact_rows", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("window", "shift"), [((4, 4), (0, 0)), ((4, 3), (2, 1))])
def test_visible_mode_is_the_block_on_the_visible_tokens_alone(window, shift, share, exact_rows, monkeypatch):
    height, width, batch = 8, 12, 2
    weights = SwinBlockWeights(*(w.detach().requires_grad_() for w in block_weights(random_block(0))[:13]))
    if window == (4, 3):
        weights = weights._replace(position_bias_table=weights.position_bias_table[:35].detach().requires_grad_())
    x = torch.randn(batch, height, width, CHANNELS, dtype=torch.float64, requires_grad=True)
    windows = Windows(height, width, window, shift)
    keep, order = torch.rand(batch, windows.tokens) < share, token_order(windows)
    if 0 < share < 1:
        keep[0, order[1]], keep[1, order[-1]], keep[1, order[0]] = True, True, False
    if not exact_rows:  # as under torch.compile: room for every token, and rows that no window owns
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    plan = VisibleTokens.from_keep(keep, windows)
    scale = torch.tensor([[0.7, 1.0], [1.2, 0.0]], dtype=torch.float64)
    expected = visible_alone(x, weights, keep, window, shift, scale)
    options = {"window": window, "shift": shift, "visible": plan, "mode": "visible", "drop_path_scale": scale}
    out = swin_block(x, weights, **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    assert torch.equal(out.flatten(1, 2)[~keep], x.flatten(1, 2)[~keep])
    inputs, cotangent = [x, *weights[:13]], torch.randn_like(x)
    wanted = torch.autograd.grad(expected, inputs, cotangent, materialize_grads=True)
    for name, got, want in zip(NAMES, torch.autograd.grad(out, inputs, cotangent), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=name)


def test_masked_tokens_of_visible_mode_do_not_reach_the_weights(monkeypatch):
    """Whatever they hold, and also where rows that no window owns repeat one of them."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    weights = SwinBlockWeights(*(w.detach().requires_grad_() for w in block_weights(random_block(2))[:13]))
    keep = torch.rand(1, 96) < 0.5
    keep[0, 2 * 12 + 2] = False  # the first place of the first window
    x = torch.randn(1, 8, 12, CHANNELS, dtype=torch.float64).masked_fill(~keep.view(1, 8, 12, 1), float("nan"))
    plan = VisibleTokens.from_keep(keep, Windows(8, 12, (4, 4), (2, 2)))
    out = swin_block(x, weights, window=(4, 4), shift=(2, 2), visible=plan, mode="visible")
    assert torch.equal(out.isnan(), x.isnan())
    grads = torch.autograd.grad(out[~out.isnan()].sum(), weights[:13])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("mode", ["drop", "visible"])
def test_modes_without_per_head_masks_say_so(mode):
    plan = VisibleTokens.from_keep(torch.ones(1, HEADS, 96).bool(), Windows(8, 12, (4, 4), (0, 0)))
    weights = block_weights(random_block(0))
    with pytest.raises(ValueError, match=f"mode '{mode}' has no per-head masks; use 'zero' or 'token'"):
        swin_block(
            torch.zeros(1, 8, 12, CHANNELS).double(), weights, window=(4, 4), shift=(0, 0), visible=plan, mode=mode
        )


def test_drop_path_scale_weighs_each_branch_of_each_image():
    block = random_block(0)
    x = torch.randn(2, 8, 12, CHANNELS, dtype=torch.float64)
    options = {"window": (4, 4), "shift": (0, 0)}
    weights = block_weights(block)
    plain = swin_block(x, weights, **options)
    scale = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    out = swin_block(x, weights, drop_path_scale=scale, **options)
    torch.testing.assert_close(out[0], plain[0])
    assert torch.equal(out[1], x[1])
    # attention only, then MLP only, chained, give the plain block
    first = swin_block(x, weights, drop_path_scale=torch.tensor([[1.0, 1.0], [0.0, 0.0]]), **options)
    torch.testing.assert_close(
        swin_block(first, weights, drop_path_scale=torch.tensor([[0.0, 0.0], [1.0, 1.0]]), **options), plain
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(8, 12, CHANNELS)}, r"x must be \(B, H, W, C\)"),
        ({"x": torch.zeros(1, 9, 12, CHANNELS)}, "not a multiple"),
        ({"x": torch.zeros(1, 8, 12, 10)}, "norm1_weight must be"),
        ({"drop_path_scale": torch.ones(2, 1, requires_grad=True)}, "has no gradient"),
        ({"window": 4}, "pair"),
        ({"window": (16, 16)}, "larger than the image"),
        ({"shift": (4, 0)}, "smaller than the window"),
        ({"mode": "sum"}, "mode must be one of zero, token, drop, visible"),
        ({"mode": "token"}, "needs weights.mask_token"),
        ({"drop_path_scale": torch.zeros(2, 3)}, "drop_path_scale must be"),
        (
            {"visible": VisibleTokens.from_keep(torch.ones(1, 64).bool(), Windows(8, 8, (4, 4)))},
            "visible was built for",
        ),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {
        "x": torch.zeros(1, 8, 12, CHANNELS),
        "weights": block_weights(random_block(0, dtype=torch.float32)),
        "window": (4, 4),
        "shift": (0, 0),
    } | changes
    with pytest.raises(ValueError, match=message):
        swin_block(**arguments)


@pytest.mark.parametrize("name", SwinBlockWeights._fields[:13])
def test_a_weight_that_does_not_fit_is_named(name):
    weights = block_weights(random_block(0, dtype=torch.float32))
    x = torch.zeros(1, 8, 12, CHANNELS)
    for wrong in (None, getattr(weights, name)[..., None], getattr(weights, name).double()):
        if wrong is None and name in ("position_bias_table", "fc1_weight"):
            continue
        with pytest.raises(ValueError, match=name):
            swin_block(x, weights._replace(**{name: wrong}), window=(4, 4), shift=(0, 0))
