"""Random masks as a pure function of (seed, draw, sample, token): the same bits on every backend, nothing stored.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Key = the 64-bit seed; counter =
(token index in the padded image, global sample id, draw number, head or 0), each modulo 2^32; the first of the four
output words decides: a token is masked where word < floor(percent * 2^32 / 100).
"""

import torch
from torch import Tensor

from . import mask_ops  # noqa: F401  (registers the operators)
from .backends import TRITON_INSTALLED
from .cpu.library import CPU_LIBRARY
from .geometry import Windows, token_order

Ratio = float | tuple[float, float]

RESERVED = 0xFFFFFFFF  # token index (and, for a whole call, sample id) of the word that draws a ratio from a range
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 on int64 tensors that hold 32-bit words (broadcast together); returns four such tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product may wrap around in int64, but its 64 bits are right, and the shift's sign bits are cut off.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def random_words(index: Tensor, sample: Tensor, draw: Tensor, head: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    """The four words of a counter, each of whose parts counts modulo 2^32."""
    return philox((index, sample & _LOW, draw & _LOW, head), (seed & _LOW, (seed >> 32) & _LOW))


def percent_range(ratio: Ratio, name: str = "ratio") -> tuple[int, int]:
    """The whole percents (low, high) of a ratio in [0, 1] or a pair of them.

    Raises ValueError for a ratio outside [0, 1], one that is no whole percent, or a pair out of order.
    """
    pair = ratio if isinstance(ratio, (tuple, list)) else (ratio, ratio)
    if len(pair) != 2:
        raise ValueError(f"{name} must be a number or a pair (low, high), got {ratio!r}")
    low, high = (float(value) for value in pair)
    if not (0.0 <= low <= high <= 1.0):
        raise ValueError(f"{name} must lie in [0, 1], with low <= high, got {ratio!r}; 75 % is written 0.75")
    percents = round(low * 100), round(high * 100)
    if max(abs(low * 100 - percents[0]), abs(high * 100 - percents[1])) > 1e-6:
        raise ValueError(f"{name} must be whole percents, as 0.75, got {ratio!r}")
    return percents


def token_mask(
    seed: Tensor,
    draw: Tensor,
    sample: Tensor,
    tokens: int,
    ratio: Ratio,
    *,
    heads: int | None = None,
    windows: Windows | None = None,
    exact: bool = False,
    ratio_per_sample: bool = False,
) -> Tensor:
    """Draw a mask over the tokens of padded images.

    Args:
        seed, draw: int64 tensors of no dimension, on the device of the result. Tensors, not numbers: a compiled graph
            or a captured CUDA graph then draws a new mask at each call.
        sample: (B,) int64, the global id of each image: a mask does not depend on how images are batched or
            distributed.
        tokens: L, the number of tokens of one padded image.
        ratio: share of masked tokens in [0, 1], a whole percent; a pair (low, high) is a range of whole percents from
            which one is drawn per call, or per image with `ratio_per_sample`, and per head if there are heads.
        heads: draw an independent mask per head (`mask_is_diff` of the public code).
        exact: mask ratio * N tokens of every window, halves rounded up: those with the smallest words, ties by token
            place; needs `windows`.
        windows: geometry for `exact`.

    Returns:
        bool (B, L), or (B, heads, L) with heads; True = masked.

    Raises:
        ValueError: for a ratio outside [0, 1], tensors of another dtype or shape, or `exact` without fitting `windows`.
    """
    percents = percent_range(ratio)
    for name, tensor, dim in (("seed", seed, 0), ("draw", draw, 0), ("sample", sample, 1)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.dim() != dim:
            raise ValueError(f"{name} must be an int64 tensor with {dim} dimensions, got {tensor!r}")
    if exact and (windows is None or windows.tokens != tokens):
        raise ValueError(f"exact masks need the windows of an image of {tokens} tokens, got {windows}")
    if tokens < 0:
        raise ValueError(f"tokens must be at least 0, got {tokens}")
    if exact and windows is not None:
        windows.check()
    if heads is not None and heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    ops, device = torch.ops.masked_swin, sample.device.type
    share = (heads or 1, *percents, ratio_per_sample)
    if device == "cpu" and not exact and CPU_LIBRARY.loaded:
        mask = ops.token_mask_cpu(seed, draw, sample, tokens, *share)
    elif device == "cuda" and TRITON_INSTALLED:
        if exact and windows is not None:
            sizes = (windows.height, windows.width, *windows.window, *windows.shift)
            mask = ops.exact_token_mask_triton(seed, draw, sample, *sizes, *share)
        else:
            mask = ops.token_mask_triton(seed, draw, sample, tokens, *share)
    else:
        mask = _token_mask_torch(
            seed, draw, sample, tokens, heads or 1, percents, ratio_per_sample, windows if exact else None
        )
    return mask if heads is not None else mask.squeeze(1)


def sample_uniform(seed: Tensor, draw: Tensor, sample: Tensor, count: int) -> Tensor:
    """Uniform numbers of each image that no mask uses: float32 (B, count) in [0, 1], from the words of head 2^32 - 1.

    The arguments are those of `token_mask`; a number does not depend on how images are batched or distributed either.
    """
    index = torch.arange(count, device=sample.device)
    head = torch.full((), RESERVED, dtype=torch.int64, device=sample.device)
    return random_words(index, sample[:, None], draw, head, seed)[0] / 2.0**32


def _token_mask_torch(
    seed: Tensor,
    draw: Tensor,
    sample: Tensor,
    tokens: int,
    heads: int,
    percents: tuple[int, int],
    ratio_per_sample: bool,
    windows: Windows | None,
) -> Tensor:
    device = sample.device
    sample_B11 = sample[:, None, None]
    head_H1 = torch.arange(heads, device=device)[:, None]
    low, high = percents
    percent: Tensor | int = low
    if high > low:
        reserved = torch.full((), RESERVED, dtype=torch.int64, device=device)
        word = random_words(reserved, sample_B11 if ratio_per_sample else reserved, draw, head_H1, seed)[0]
        percent = low + ((word * (high - low + 1)) >> 32)
    token_L = torch.arange(tokens, device=device)
    word_BHL = random_words(token_L, sample_B11, draw, head_H1, seed)[0].expand(len(sample), heads, tokens)
    if windows is None:
        return word_BHL < (percent << 32) // 100
    order_WN = token_order(windows, device)
    rank_BHWN = word_BHL[:, :, order_WN].sort(dim=-1, stable=True).indices.argsort(dim=-1)
    masked = (percent * windows.size + 50) // 100
    masked_BHWN = rank_BHWN < (masked[..., None] if isinstance(masked, Tensor) else masked)
    mask = torch.zeros(len(sample), heads, tokens, dtype=torch.bool, device=device)
    return mask.index_copy(2, order_WN.flatten(), masked_BHWN.flatten(2))
