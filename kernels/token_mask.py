"""Random masks as a pure function of (seed, draw, sample id, token): the same bits on every backend, nothing stored.

A mask is made in three steps. `random_words` draws one Philox word a token (philox.py). `masked_percent` draws the
percentage, where the ratio is a range. A token is masked where its word is below floor(percent * 2^32 / 100).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import choose
from .geometry import Windows
from .philox import RESERVED

Ratio = float | tuple[float, float] | Tensor


class RandomWordsInputs(NamedTuple):
    """The inputs of the operation `random_words`."""

    seed: Tensor
    draw: Tensor
    sample: Tensor
    first: int
    words: int  # how many
    first_head: int
    heads: int

    def arguments(self) -> tuple[object, ...]:
        return tuple(self)


class TokenMaskInputs(NamedTuple):
    """The inputs of the operation `token_mask`; percent is int64 (1 or B, 1 or heads), to be clamped to [0, 100]."""

    seed: Tensor
    draw: Tensor
    sample: Tensor
    percent: Tensor
    windows: Windows
    heads: int
    exact: bool

    def arguments(self) -> tuple[object, ...]:
        return (self.seed, self.draw, self.sample, self.percent, *self.windows.sizes, self.heads, self.exact)


def percent_range(ratio: float | tuple[float, float], name: str = "ratio") -> tuple[int, int]:
    """The whole percents (low, high) of a ratio in [0, 1] or a pair of them.

    Raises:
        ValueError: for a ratio outside [0, 1], one that is no whole percent, or a pair out of order.
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


def ratio_tensor(ratio: float | tuple[float, float], device: torch.device | str | None = None) -> Tensor:
    """A ratio as `token_mask` takes it in a tensor: int64 percents, without dimension or, for a range, (low, high).

    Raises:
        ValueError: as `percent_range`.
    """
    low, high = percent_range(ratio)
    return torch.tensor(low if low == high else (low, high), device=device)


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
    backend: str | None = None,
) -> Tensor:
    """Draw a mask over the tokens of padded images.

    Args:
        seed, draw: int64 tensors without dimension, on the device of the result. A compiled graph or a captured CUDA
            graph then draws a new mask at each call.
        sample: (B,) int64, the global id of each image. A mask does not depend on how images are batched or
            distributed.
        tokens: L, the number of tokens of one padded image.
        ratio: share of masked tokens in [0, 1], a whole percent. A pair (low, high) is a range of whole percents from
            which one is drawn per call, or per image with `ratio_per_sample`, and per head if there are heads. An
            int64 tensor of percents, `ratio_tensor(ratio)`, is data: a change of its value compiles nothing anew. Its
            values are not checked: backends clamp them to [0, 100], and high to at least low.
        heads: draw an independent mask per head (`mask_is_diff` of the public code).
        exact: mask ratio * N tokens of every window, halves rounded up: those with the smallest words, ties by position
            in the window. Needs `windows`.
        windows: geometry for `exact`.
        backend: a name, or None for the first that can run.

    Returns:
        bool (B, L), or (B, heads, L) with heads; True = masked.

    Raises:
        ValueError: for a ratio outside [0, 1], tensors of another dtype or shape, `exact` without fitting `windows`, or
            if the backend cannot run.
    """
    _check_key(seed, draw, sample)
    if exact and (windows is None or windows.tokens != tokens):
        raise ValueError(f"exact masks need the windows of an image of {tokens} tokens, got {windows}")
    if tokens < 0:
        raise ValueError(f"tokens must be at least 0, got {tokens}")
    if heads is not None and heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    geometry = windows if exact and windows is not None else Windows(1, tokens, (1, 1))
    percent = masked_percent(ratio, seed, draw, sample, heads or 1, ratio_per_sample)
    inputs = TokenMaskInputs(seed, draw, sample, percent, geometry, heads or 1, exact)
    mask: Tensor = choose("token_mask", inputs, backend).run(inputs)
    return mask if heads is not None else mask.squeeze(1)


def masked_percent(
    ratio: Ratio, seed: Tensor, draw: Tensor, sample: Tensor, heads: int, ratio_per_sample: bool
) -> Tensor:
    """The percentage of each image and head, int64 (1 or B, 1 or heads); drawn where the ratio is a range."""
    if isinstance(ratio, Tensor):
        if ratio.dtype != torch.int64 or ratio.shape not in ((), (2,)) or ratio.device != sample.device:
            raise ValueError(
                f"a ratio in a tensor must be int64 percents of shape () or (2,) on {sample.device}, "
                f"got {ratio.dtype} {tuple(ratio.shape)} on {ratio.device}; use ratio_tensor(ratio)"
            )
        if ratio.dim() == 0:
            return ratio.view(1, 1)
        low, high = ratio.clamp(0, 100).unbind()
    else:
        first, last = percent_range(ratio)
        if first == last:
            return torch.full((1, 1), first, dtype=torch.int64, device=sample.device)
        low, high = (torch.full((), percent, dtype=torch.int64, device=sample.device) for percent in (first, last))
    of_call = torch.full((1,), RESERVED, dtype=torch.int64, device=sample.device)
    word = random_words(seed, draw, sample if ratio_per_sample else of_call, 1, first=RESERVED, heads=heads)[..., 0]
    return low + ((word * ((high - low).clamp(min=0) + 1)) >> 32)


def random_words(
    seed: Tensor,
    draw: Tensor,
    sample: Tensor,
    count: int,
    *,
    first: int = 0,
    first_head: int = 0,
    heads: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Uniform words in [0, 2^32): int64 (B, heads, count), of the indices from `first` and the heads from `first_head`.

    `seed`, `draw`, `sample` and `backend` are as of `token_mask`.
    """
    _check_key(seed, draw, sample)
    inputs = RandomWordsInputs(seed, draw, sample, first, count, first_head, heads)
    words: Tensor = choose("random_words", inputs, backend).run(inputs)
    return words


def sample_uniform(seed: Tensor, draw: Tensor, sample: Tensor, count: int) -> Tensor:
    """Uniform numbers of each image that no mask uses: float32 (B, count) in [0, 1], from the words of a reserved head.

    The arguments are as of `token_mask`. A number does not depend on how images are batched or distributed.
    """
    return random_words(seed, draw, sample, count, first_head=RESERVED)[:, 0] / 2.0**32


def _check_key(seed: Tensor, draw: Tensor, sample: Tensor) -> None:
    for name, tensor, dim in (("seed", seed, 0), ("draw", draw, 0), ("sample", sample, 1)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.dim() != dim:
            raise ValueError(f"{name} must be an int64 tensor with {dim} dimensions, got {tensor!r}")
