"""Masks and plans in Triton, bit for bit those of PyTorch: interpreted, and compiled for sm_80 and executed."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from masked_swin.kernels import VisibleTokens, Windows, token_mask
from masked_swin.kernels.token_mask import _token_mask_torch
from tests.support.triton_on_ptxsim import on_ptxsim

SEEDS = (0, -1, 2**62 + 12345)
DRAW = 2**31 + 5
SAMPLES = (0, 7, 2**32 + 7, 123456789)
PERCENTS = ((0, 0), (1, 1), (75, 75), (100, 100), (30, 50), (0, 100))
WINDOWS = (
    Windows(8, 12, (4, 4), (2, 2)),
    Windows(6, 10, (3, 5), (1, 2)),
    Windows(6, 10, (3, 5), (0, 2)),
    Windows(16, 32, (8, 8), (0, 0)),
    Windows(32, 16, (16, 16), (8, 8)),
    Windows(1, 4, (1, 2), (0, 0)),
    Windows(4, 1, (2, 1), (1, 0)),
)


def same_masks(tokens, seeds=SEEDS, heads=(1, 3)):
    sample, draw = torch.tensor(SAMPLES), torch.tensor(DRAW)
    for seed, percents, count, per_sample in itertools.product(seeds, PERCENTS, heads, (False, True)):
        arguments = (torch.tensor(seed), draw, sample, tokens, count)
        ours = torch.ops.masked_swin.token_mask_triton(*arguments, *percents, per_sample)
        assert torch.equal(ours, _token_mask_torch(*arguments, percents, per_sample, None))


def same_exact_masks(shapes):
    seed, draw, sample = torch.tensor(-3), torch.tensor(DRAW), torch.tensor(SAMPLES)
    ranges = itertools.product((1, 2), ((0, 0), (75, 75), (100, 100), (10, 90)), (False, True))
    for windows, (heads, percents, per_sample) in itertools.product(shapes, ranges):
        sizes = (windows.height, windows.width, *windows.window, *windows.shift)
        ours = torch.ops.masked_swin.exact_token_mask_triton(seed, draw, sample, *sizes, heads, *percents, per_sample)
        wanted = _token_mask_torch(seed, draw, sample, windows.tokens, heads, percents, per_sample, windows)
        assert torch.equal(ours, wanted)


def same_plans(shapes, shares=(0.0, 0.3, 1.0), batch=3):
    for windows, share, heads in itertools.product(shapes, shares, (None, 2)):
        shape = (batch, windows.tokens) if heads is None else (batch, heads, windows.tokens)
        keep = torch.rand(shape) < share
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)  # rows for every token, as on a device
            plan = VisibleTokens.from_keep(keep, windows)
            wanted = (plan.token_index, plan.position, plan.offsets, plan.keep, plan.regions)
        sizes = (windows.height, windows.width, *windows.window, *windows.shift)
        found = torch.ops.masked_swin.visible_tokens_triton(keep, *sizes)
        for name, ours, theirs in zip(("index", "position", "offsets", "keep", "regions"), found, wanted, strict=True):
            theirs = torch.empty(0, windows.size, dtype=torch.int32) if theirs is None else theirs
            assert ours.dtype == theirs.dtype, name
            assert torch.equal(ours, theirs), name


def plan_of_many_programs():
    from masked_swin.kernels.triton import visible

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visible, "TOTALS_EACH", 4)
        same_plans([Windows(64, 64, (8, 8), (4, 4))], shares=(0.25,), batch=4)


def test_interpreted(interpreted):
    interpreted(same_masks, 1100, SEEDS[:1], (3,))
    interpreted(same_exact_masks, WINDOWS[1:2])
    interpreted(same_plans, WINDOWS[:2])
    interpreted(plan_of_many_programs)


@pytest.mark.slow
def test_interpreted_in_every_shape(interpreted):
    interpreted(same_masks, 2500)
    interpreted(same_exact_masks, WINDOWS)
    interpreted(same_plans, WINDOWS)


def test_compiled_masks():
    with on_ptxsim():
        same_masks(1500, seeds=SEEDS[:1], heads=(3,))


def test_compiled_exact_masks():
    with on_ptxsim():
        same_exact_masks(WINDOWS[1:2])


def test_compiled_plans():
    with on_ptxsim():
        same_plans(WINDOWS[1:2])
        plan_of_many_programs()


@pytest.mark.slow
def test_millions_of_words():
    with on_ptxsim(checks=False):
        same_masks(300_000, seeds=SEEDS[1:2])


@pytest.mark.slow
def test_compiled_in_every_shape():
    with on_ptxsim():
        same_exact_masks(WINDOWS)
        same_plans(WINDOWS)


class Operators(TorchDispatchMode):
    """Names of the operators that compute something."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function.namespace != "prim":
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("exact", [False, True])
def test_a_device_gets_these_operators_and_nothing_else(exact):
    windows = Windows(16, 16, (8, 8), (4, 4))
    with FakeTensorMode():
        seed, draw = torch.empty(2, dtype=torch.int64, device="cuda").unbind()
        sample = torch.empty(5, dtype=torch.int64, device="cuda")
        with Operators() as operators:
            mask = token_mask(seed, draw, sample, 256, 0.75, windows=windows, exact=exact)
            plan = VisibleTokens.from_keep(mask, windows)
            assert [*plan.token_index.shape, *plan.offsets.shape, *plan.regions.shape] == [5 * 256, 5 * 4 + 1, 4, 64]
    drawing = "exact_token_mask_triton" if exact else "token_mask_triton"
    assert operators.names == [f"masked_swin::{drawing}", "masked_swin::visible_tokens_triton"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck():
    key = torch.tensor(1), torch.tensor(2), torch.arange(3)
    operators = torch.ops.masked_swin
    with on_ptxsim():
        torch.library.opcheck(operators.token_mask_triton.default, (*key, 40, 2, 30, 70, True))
        sizes = (6, 10, 3, 5, 1, 2)
        exact = (*key, *sizes, 2, 30, 70, True)
        torch.library.opcheck(operators.exact_token_mask_triton.default, exact)
        keep = torch.rand(2, 60) < 0.5
        torch.library.opcheck(operators.visible_tokens_triton.default, (keep, *sizes))
