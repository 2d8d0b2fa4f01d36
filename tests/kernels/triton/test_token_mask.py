"""Words, masks and visible tokens in Triton, bit for bit those of PyTorch: interpreted, and compiled and executed."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from masked_swin.kernels import VisibleTokens, Windows, token_mask
from masked_swin.kernels.backends import choose
from masked_swin.kernels.token_mask import RandomWordsInputs, TokenMaskInputs
from masked_swin.kernels.visible import CompactList, VisibleTokensInputs
from tests.support.triton_on_ptxsim import on_ptxsim

SEEDS = (0, -1, 2**62 + 12345)
DRAW = 2**31 + 5
SAMPLES = (0, 7, 2**32 + 7, 123456789)
PERCENTS = (0, 1, 75, 100, 130, -7)  # the last two are clamped
WINDOWS = (
    Windows(8, 12, (4, 4), (2, 2)),
    Windows(6, 10, (3, 5), (1, 2)),
    Windows(6, 10, (3, 5), (0, 2)),
    Windows(16, 32, (8, 8), (0, 0)),
    Windows(32, 16, (16, 16), (8, 8)),
    Windows(1, 4, (1, 2), (0, 0)),
    Windows(4, 1, (2, 1), (1, 0)),
)


def percents(heads):
    """One percentage, one for each image or head, and one for each of both."""
    values = torch.tensor(PERCENTS)
    yield from values.view(-1, 1, 1)
    for of_images, of_heads in ((len(SAMPLES), 1), (1, heads), (len(SAMPLES), heads)):
        numbers = torch.arange(of_images * heads).view(of_images, heads)[:, :of_heads]  # a view with other strides
        yield values[numbers % len(values)]


def same_as_reference(operation, inputs):
    ours = getattr(torch.ops.masked_swin, f"{operation}_triton")(*inputs.arguments())
    wanted = choose(operation, inputs, "reference").run(inputs)
    assert ours.dtype == wanted.dtype
    assert torch.equal(ours, wanted)


def same_words(seeds=SEEDS):
    for seed, (first, count, first_head, heads) in itertools.product(
        seeds, ((0, 1100, 0, 3), (1, 5, 1, 1), (2**32 - 3, 7, 2**32 - 2, 3), (2**31 - 2, 4, 2**31 - 1, 2), (0, 0, 0, 1))
    ):
        inputs = RandomWordsInputs(
            torch.tensor(seed), torch.tensor(DRAW), torch.tensor(SAMPLES), first, count, first_head, heads
        )
        same_as_reference("random_words", inputs)


def same_masks(tokens, seeds=SEEDS, heads=(1, 3)):
    sample, draw, windows = torch.tensor(SAMPLES), torch.tensor(DRAW), Windows(1, tokens, (1, 1))
    for seed, count in itertools.product(seeds, heads):
        for percent in percents(count):
            inputs = TokenMaskInputs(torch.tensor(seed), draw, sample, percent, windows, count, False)
            same_as_reference("token_mask", inputs)


def same_exact_masks(shapes):
    seed, draw, sample = torch.tensor(-3), torch.tensor(DRAW), torch.tensor(SAMPLES)
    for windows, heads in itertools.product(shapes, (1, 2)):
        for percent in percents(heads):
            same_as_reference("token_mask", TokenMaskInputs(seed, draw, sample, percent, windows, heads, True))


def same_lists(shapes, shares=(0.0, 0.3, 1.0), batch=3):
    for windows, share, heads in itertools.product(shapes, shares, (None, 2)):
        shape = (batch, windows.tokens) if heads is None else (batch, heads, windows.tokens)
        keep = torch.rand(shape) < share
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)  # room for every token, as on a device
            inputs = VisibleTokensInputs(keep, windows)
            wanted = choose("visible_tokens", inputs, "reference").run(inputs)
        found = torch.ops.masked_swin.visible_tokens_triton(*inputs.arguments())
        for name, ours, theirs in zip(CompactList._fields, found, wanted, strict=True):
            assert ours.dtype == theirs.dtype, name
            assert torch.equal(ours, theirs), name


def list_of_many_programs():
    from masked_swin.kernels.triton import visible

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visible, "TOTALS_EACH", 4)
        same_lists([Windows(64, 64, (8, 8), (4, 4))], shares=(0.25,), batch=4)


def test_interpreted(interpreted):
    interpreted(same_words, SEEDS[:1])
    interpreted(same_masks, 1100, SEEDS[:1], (3,))
    interpreted(same_exact_masks, WINDOWS[1:2])
    interpreted(same_lists, WINDOWS[:2])
    interpreted(list_of_many_programs)


@pytest.mark.slow
def test_interpreted_in_every_shape(interpreted):
    interpreted(same_words)
    interpreted(same_masks, 2500)
    interpreted(same_exact_masks, WINDOWS)
    interpreted(same_lists, WINDOWS)


def test_compiled_masks():
    with on_ptxsim():
        same_words(SEEDS[:1])
        same_masks(1500, seeds=SEEDS[:1], heads=(3,))


def test_compiled_exact_masks():
    with on_ptxsim():
        same_exact_masks(WINDOWS[1:2])


def test_compiled_lists():
    with on_ptxsim():
        same_lists(WINDOWS[1:2])
        list_of_many_programs()


@pytest.mark.slow
def test_millions_of_words():
    with on_ptxsim(checks=False):
        same_masks(300_000, seeds=SEEDS[1:2])


@pytest.mark.slow
def test_compiled_in_every_shape():
    with on_ptxsim():
        same_exact_masks(WINDOWS)
        same_lists(WINDOWS)


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
def test_a_device_gets_these_operators_and_nothing_else(exact, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    windows = Windows(16, 16, (8, 8), (4, 4))
    with FakeTensorMode():
        seed, draw = torch.empty(2, dtype=torch.int64, device="cuda").unbind()
        sample = torch.empty(5, dtype=torch.int64, device="cuda")
        with Operators() as operators:
            mask = token_mask(seed, draw, sample, 256, 0.75, windows=windows, exact=exact)
            visible = VisibleTokens.from_keep(mask, windows)
            shapes = visible.token_index.shape, visible.offsets.shape, visible.regions.shape
            assert shapes == ((5 * 256,), (5 * 4 + 1,), (4, 64))
    assert operators.names == ["aten::full", "masked_swin::token_mask_triton", "masked_swin::visible_tokens_triton"]


def test_a_schedule_of_ratios_compiles_nothing_anew():
    key, windows = (torch.tensor(1), torch.tensor(2), torch.arange(3)), Windows(8, 8, (4, 4), (2, 2))
    for exact in (False, True):
        with on_ptxsim() as emulator:
            for percent in (0, 16, 75, 100):
                arguments = TokenMaskInputs(*key, torch.tensor([[percent]]), windows, 2, exact).arguments()
                torch.ops.masked_swin.token_mask_triton(*arguments)
        assert len({launch.compiled.hash for launch in emulator.launches}) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
def test_opcheck():
    key, windows = (torch.tensor(1), torch.tensor(2), torch.arange(3)), Windows(6, 10, (3, 5), (1, 2))
    operators, percent = torch.ops.masked_swin, torch.tensor([[30, 70]])
    with on_ptxsim():
        for exact in (False, True):
            arguments = TokenMaskInputs(*key, percent, windows, 2, exact).arguments()
            torch.library.opcheck(operators.token_mask_triton.default, arguments)
        torch.library.opcheck(operators.random_words_triton.default, (*key, 5, 40, 1, 2))
        keep = torch.rand(2, 60) < 0.5
        torch.library.opcheck(operators.visible_tokens_triton.default, (keep, *windows.sizes))
