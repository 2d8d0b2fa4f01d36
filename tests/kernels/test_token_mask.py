import pytest
import torch

from masked_swin.kernels import CPU_LIBRARY, Windows, token_mask
from masked_swin.kernels.geometry import token_order
from masked_swin.kernels.token_mask import _token_mask_torch, percent_range, philox

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


def python_mask(seed, draw, sample, tokens, ratio, heads=None, per_sample=False):
    mask = _token_mask_torch(
        tensor(seed), tensor(draw), tensor(sample), tokens, heads or 1, percent_range(ratio), per_sample, None
    )
    return mask if heads else mask[:, 0]


@pytest.mark.skipif(not CPU_LIBRARY.loaded, reason=f"no native library: {CPU_LIBRARY.why_not}")
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.75, 1.0, (0.3, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("heads", [None, 3])
def test_same_bits_in_cpp(seed, ratio, heads):
    sample = [0, 7, 2**32 + 7, 123456789]
    for draw, per_sample in ((0, False), (2**31 + 5, True)):
        options = {"heads": heads, "ratio_per_sample": per_sample}
        native = token_mask(tensor(seed), tensor(draw), tensor(sample), 150, ratio, **options)
        assert torch.equal(native, python_mask(seed, draw, sample, 150, ratio, heads, per_sample))


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
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"seed": tensor(0), "draw": tensor(0), "sample": tensor([0]), "tokens": 16, "ratio": 0.5} | change
    with pytest.raises(ValueError, match=message):
        token_mask(**arguments)
