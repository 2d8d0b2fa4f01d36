import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from masked_swin.kernels import Windows, ratio_tensor, token_mask
from masked_swin.kernels.geometry import token_order
from masked_swin.kernels.philox import philox
from masked_swin.kernels.token_mask import random_words
from tests.support.examples import names_here

# Known answers of Random123 1.14 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def tensor(value):
    return torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = philox(tuple(map(tensor, counter)), tuple(map(tensor, key)))
    assert tuple(word.item() for word in words) == expected


@pytest.mark.parametrize("backend", names_here("token_mask"))
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.75, 1.0, (0.3, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("heads", [None, 3])
def test_every_backend_draws_the_same_bits(seed, ratio, heads, backend):
    sample = [0, 7, 2**32 + 7, 123456789]
    for draw, per_sample in ((0, False), (2**31 + 5, True)):
        key = tensor(seed), tensor(draw), tensor(sample)
        options = {"heads": heads, "ratio_per_sample": per_sample}
        ours, wanted = (token_mask(*key, 150, ratio, backend=name, **options) for name in (backend, "reference"))
        assert torch.equal(ours, wanted)


def test_a_drawn_ratio_is_a_word_of_its_own():
    """The percentage of an image and head: low + word * (high - low + 1) / 2^32, of the reserved index."""
    seed, draw, sample = tensor(5), tensor(9), tensor([3, 4])
    words = [
        philox((tensor(0xFFFFFFFF), tensor(i), draw, tensor(h)), (seed, tensor(0)))[0] for i in (3, 4) for h in (0, 1)
    ]
    percents = [20 + (word.item() * 61 >> 32) for word in words]
    mask = token_mask(seed, draw, sample, 4096, (0.2, 0.8), heads=2, ratio_per_sample=True)
    tokens = philox((torch.arange(4096), sample[:, None, None], draw, torch.arange(2)[:, None]), (seed, tensor(0)))[0]
    thresholds = tensor([percent * 2**32 // 100 for percent in percents]).view(2, 2, 1)
    assert torch.equal(mask, tokens < thresholds)


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("ratio", [0.75, (0.3, 0.6)])
def test_a_ratio_in_a_tensor_gives_the_same_mask(ratio, exact, heads):
    options = {"heads": heads, "windows": Windows(8, 8, (4, 4)), "exact": exact, "ratio_per_sample": True}
    key = tensor(5), tensor(9), tensor([3, 4, 5])
    number, data = (token_mask(*key, 64, given, **options) for given in (ratio, ratio_tensor(ratio)))
    assert torch.equal(number, data)


def test_values_of_a_tensor_are_clamped():
    key = tensor(5), tensor(9), tensor([3, 4])
    for given, ratio in (
        (tensor(130), 1.0),
        (tensor(-7), 0.0),
        (tensor([40, 20]), 0.4),
        (tensor([-5, 300]), (0.0, 1.0)),
    ):
        assert torch.equal(token_mask(*key, 500, given), token_mask(*key, 500, ratio))


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_of_ratios_compiles_nothing_anew():
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(token_mask, fullgraph=True, backend=counter)
    key, shares = (tensor(5), tensor(9), torch.arange(8)), []
    for percent in range(0, 101, 20):
        mask = compiled(*key, 512, tensor(percent))
        assert torch.equal(mask, token_mask(*key, 512, percent / 100))
        shares.append(mask.double().mean().item())
    assert shares == sorted(shares)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", [*names_here("random_words"), "reference"])
def test_words_are_those_of_philox(backend):
    seed, draw, sample = tensor(2**62 + 12345), tensor(2**31 + 5), tensor([0, 2**32 + 7])
    words = random_words(seed, draw, sample, 9, first=0xFFFFFFFC, first_head=0xFFFFFFFE, heads=3, backend=backend)
    index, head = (torch.arange(9) + 0xFFFFFFFC) % 2**32, (torch.arange(3) + 0xFFFFFFFE) % 2**32
    counter = (index, (sample % 2**32)[:, None, None], draw, head[:, None])
    assert torch.equal(words, philox(counter, (seed % 2**32, seed >> 32))[0].expand(2, 3, 9))


def test_first_word_decides_at_its_threshold():
    # The first known answer is 0x6627E8D5 = 0.39905 * 2^32.
    zero, sample = tensor(0), tensor([0])
    assert not token_mask(zero, zero, sample, 1, 0.39).item()
    assert token_mask(zero, zero, sample, 1, 0.40).item()


def test_a_mask_does_not_depend_on_the_batch():
    seed, draw = tensor(5), tensor(9)
    together = token_mask(seed, draw, tensor([3, 4, 5, 6]), 64, (0.2, 0.8), ratio_per_sample=True)
    apart = [token_mask(seed, draw, tensor([i]), 64, (0.2, 0.8), ratio_per_sample=True) for i in (3, 4, 5, 6)]
    assert torch.equal(together, torch.cat(apart))


def test_masks_differ_by_seed_draw_sample_and_head():
    base = token_mask(tensor(1), tensor(1), tensor([1]), 256, 0.5)[0]
    assert not torch.equal(base, token_mask(tensor(2), tensor(1), tensor([1]), 256, 0.5)[0])
    assert not torch.equal(base, token_mask(tensor(1), tensor(2), tensor([1]), 256, 0.5)[0])
    assert not torch.equal(base, token_mask(tensor(1), tensor(1), tensor([2]), 256, 0.5)[0])
    per_head = token_mask(tensor(1), tensor(1), tensor([1]), 256, 0.5, heads=2)[0]
    assert torch.equal(base, per_head[0])  # head 0 of a per-head mask is the shared mask
    assert not torch.equal(base, per_head[1])


def test_ratios_and_independence():
    mask = token_mask(tensor(3), tensor(0), torch.arange(400), 1024, 0.75).double()
    assert abs(mask.mean().item() - 0.75) < 5 * (0.75 * 0.25 / mask.numel()) ** 0.5
    neighbours = ((mask[:, 1:] - 0.75) * (mask[:, :-1] - 0.75)).mean().item()
    assert abs(neighbours) < 5 * 0.75 * 0.25 / mask.numel() ** 0.5
    assert token_mask(tensor(3), tensor(0), torch.arange(4), 99, 1.0).all()
    assert not token_mask(tensor(3), tensor(0), torch.arange(4), 99, 0.0).any()


def test_a_range_is_drawn_per_call_or_per_sample():
    sample = torch.arange(300)
    per_call = torch.stack([token_mask(tensor(0), tensor(i), sample[:8], 4096, (0.2, 0.6)) for i in range(40)])
    shares = per_call.double().mean(-1)
    assert (shares.max(1).values - shares.min(1).values).max() < 0.06  # one ratio in a call ...
    assert shares.mean(1).max() - shares.mean(1).min() > 0.25  # ... another in the next
    shares = token_mask(tensor(0), tensor(0), sample, 4096, (0.2, 0.6), ratio_per_sample=True).double().mean(-1)
    assert 0.16 < shares.min() < 0.25
    assert 0.55 < shares.max() < 0.64


@pytest.mark.parametrize("windows", [Windows(8, 12, (4, 4), (2, 2)), Windows(6, 10, (3, 5), (1, 2))])
def test_exact_masks_the_smallest_words_of_each_window(windows):
    seed, draw, sample = tensor(11), tensor(2), tensor([4, 5])
    mask = token_mask(seed, draw, sample, windows.tokens, 0.75, windows=windows, exact=True)
    order = token_order(windows)
    masked = (75 * windows.size + 50) // 100
    assert (mask[:, order].sum(-1) == masked).all()
    words = philox((torch.arange(windows.tokens), sample[:, None], draw, tensor(0)), (seed, tensor(0)))[0]
    words, mask = words[:, order], mask[:, order]
    largest_masked = words.masked_fill(~mask, -1).max(-1).values
    smallest_kept = words.masked_fill(mask, 2**33).min(-1).values
    assert (largest_masked < smallest_kept).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.5}, r"must lie in \[0, 1\]"),
        ({"ratio": 75}, "75 % is written 0.75"),
        ({"ratio": float("nan")}, r"must lie in \[0, 1\]"),
        ({"ratio": (0.5, 0.2)}, "low <= high"),
        ({"ratio": 0.755}, "whole percents"),
        ({"ratio": (0.1, 0.2, 0.3)}, "pair"),
        ({"seed": 3}, "seed must be an int64 tensor"),
        ({"sample": torch.zeros(2)}, "sample must be an int64 tensor"),
        ({"exact": True}, "exact masks need the windows"),
        ({"heads": 0}, "heads"),
        ({"ratio": torch.tensor(0.5)}, r"int64 percents of shape \(\) or \(2,\).*use ratio_tensor"),
        ({"ratio": torch.tensor([1, 2, 3])}, r"got torch.int64 \(3,\)"),
        ({"backend": "gpu9"}, "has no backend 'gpu9'"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"seed": tensor(0), "draw": tensor(0), "sample": tensor([0]), "tokens": 16, "ratio": 0.5} | change
    with pytest.raises(ValueError, match=message):
        token_mask(**arguments)
