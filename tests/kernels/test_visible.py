import pytest
import torch

from masked_swin.kernels import VisibleTokens, Windows
from masked_swin.kernels.geometry import token_order
from masked_swin.kernels.reference import compress, expand

WINDOWS = Windows(6, 10, (3, 5), (1, 2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_are_the_visible_tokens_window_by_window(share):
    keep = torch.rand(3, WINDOWS.tokens) < share
    plan = VisibleTokens.from_keep(keep, WINDOWS)
    order = token_order(WINDOWS)
    expected = [
        (image * WINDOWS.tokens + token, position)
        for image in range(3)
        for window in order.tolist()
        for position, token in enumerate(window)
        if keep[image, token]
    ]
    assert plan.token_index.tolist() == [token for token, _ in expected]
    assert plan.position.tolist() == [position for _, position in expected]
    assert plan.offsets[-1] == len(expected)
    assert plan.offsets.diff().tolist() == [int(keep[i, w].sum()) for i in range(3) for w in order]


def test_compiled_plan_has_room_for_every_token_and_the_same_rows(monkeypatch):
    keep = torch.rand(2, WINDOWS.tokens) < 0.4
    exact = VisibleTokens.from_keep(keep, WINDOWS)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    roomy = VisibleTokens.from_keep(keep, WINDOWS)
    rows = len(exact.token_index)
    assert len(roomy.token_index) == 2 * WINDOWS.tokens
    for name in ("token_index", "position"):
        assert torch.equal(getattr(roomy, name)[:rows], getattr(exact, name))
    assert torch.equal(roomy.offsets, exact.offsets)


@pytest.mark.parametrize("heads", [None, 3])
def test_expand_and_compress_are_inverse(heads):
    shape = (2, WINDOWS.tokens) if heads is None else (2, heads, WINDOWS.tokens)
    plan = VisibleTokens.from_keep(torch.rand(shape) < 0.5, WINDOWS)
    rows = torch.randn(len(plan.token_index), *((3, 4) if heads is None else (4,)))
    full = expand(rows, plan, torch.full((3, 4), 7.0))
    assert full.shape == (2 * WINDOWS.count, WINDOWS.size, 3, 4)
    assert (full == 7.0).sum() == full.numel() - rows.numel()
    assert torch.equal(compress(full, plan), rows)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.ones(2, WINDOWS.tokens), "must be bool"),
        (torch.ones(2, 59, dtype=torch.bool), "must be bool"),
    ],
)
def test_bad_masks_are_refused(keep, message):
    with pytest.raises(ValueError, match=message):
        VisibleTokens.from_keep(keep, WINDOWS)
