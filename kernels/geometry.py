"""Windows, cyclic shift and relative positions: pure functions of sizes.

Shape legend: B images, L tokens of one (padded) image, W windows, N tokens of a window.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NORM_EPSILON = 1e-5  # of every LayerNorm, as in the public code


class _Sizes(NamedTuple):  # of which torch.compile can compare two with symbolic sizes
    height: int
    width: int
    window: tuple[int, int]
    shift: tuple[int, int]


class Windows(_Sizes):
    """How one padded image is cut into windows.

    Window `w` of the shifted image holds the image token `token_order(windows)[w, n]` at its position `n`. No rolled
    copy of the image is needed. `shift` moves the windows down and right by that many tokens, with wrap-around: Swin's
    cyclic shift, `torch.roll(x, (-shift_h, -shift_w))` followed by a partition.

    Args:
        height, width: sides of the padded image, in tokens.
        window, shift: pairs (height, width), in tokens.

    Raises:
        ValueError: if the windows do not tile the image, or the shift is not smaller than the window.
    """

    __slots__ = ()

    def __new__(cls, height: int, width: int, window: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> "Windows":
        for name, pair in (("window", window), ("shift", shift)):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"{name} must be a pair (height, width), got {pair!r}")
        _check_side("height", height, window, shift, 0)
        _check_side("width", width, window, shift, 1)
        return super().__new__(cls, height, width, (window[0], window[1]), (shift[0], shift[1]))

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return self.height * self.width

    @property
    def size(self) -> int:
        """Tokens of one window."""
        return self.window[0] * self.window[1]

    @property
    def count(self) -> int:  # type: ignore[override]
        """Windows of one image."""
        return (self.height // self.window[0]) * (self.width // self.window[1])

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """(height, width, window height, window width, shift height, shift width): the arguments of operators."""
        return (self.height, self.width, *self.window, *self.shift)


def _check_side(name: str, extent: int, window: tuple[int, int], shift: tuple[int, int], axis: int) -> None:
    side = window[axis]
    if side < 1:
        raise ValueError(f"window {window}: sides must be at least 1")
    if 0 < extent < side:
        raise ValueError(
            f"window {window} is larger than the image: {name} is {extent}; pad the image or use a smaller window"
        )
    if extent % side:
        raise ValueError(
            f"image {name} {extent} is not a multiple of the window side {side}; pad it to {-(-extent // side) * side}"
        )
    if not 0 <= shift[axis] < side:
        raise ValueError(f"shift {shift} must be at least 0 and smaller than the window {window}")


def _combine(rows: Tensor, columns: Tensor, windows: Windows, stride: int) -> Tensor:
    """Combine a value per image row and one per column to a (W, N) table: `stride * rows + columns`."""
    rows = rows.view(-1, 1, windows.window[0], 1)
    columns = columns.view(1, -1, 1, windows.window[1])
    return (stride * rows + columns).reshape(windows.count, windows.size)


def token_order(windows: Windows, device: torch.device | str | None = None) -> Tensor:
    """(W, N) int64: the image token, y * width + x, at each position of each window."""
    rows = (torch.arange(windows.height, device=device) + windows.shift[0]) % windows.height
    columns = (torch.arange(windows.width, device=device) + windows.shift[1]) % windows.width
    return _combine(rows, columns, windows, windows.width)


def shift_regions(windows: Windows, device: torch.device | str | None = None) -> Tensor:
    """(W, N) int64: the shift region, 0 to 8, of each position. Tokens of different regions were no neighbours."""
    # SwinIR cuts the shifted image at -window and at -shift: only the last window of a row or column is mixed.
    rows, columns = (
        (line >= extent - window).long() + ((line >= extent - shift) & (shift > 0)).long()
        for line, extent, window, shift in (
            (torch.arange(windows.height, device=device), windows.height, windows.window[0], windows.shift[0]),
            (torch.arange(windows.width, device=device), windows.width, windows.window[1], windows.shift[1]),
        )
    )
    return _combine(rows, columns, windows, 3)


def shift_mask(windows: Windows, device: torch.device | str | None = None) -> Tensor:
    """(W, N, N) float32: -100 between positions of different shift regions, else 0; SwinIR's `attn_mask` buffer."""
    regions = shift_regions(windows, device)
    return (regions[:, :, None] != regions[:, None, :]).float() * -100.0


def relative_position_index(window: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """(N, N) int64: the row of the position bias table for (query, key): SwinIR's `relative_position_index` buffer."""
    height, width = window
    y = torch.arange(height, device=device).repeat_interleave(width)
    x = torch.arange(width, device=device).repeat(height)
    return (y[:, None] - y[None, :] + height - 1) * (2 * width - 1) + (x[:, None] - x[None, :] + width - 1)


def relative_position_bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Expand a table ((2h-1)*(2w-1), heads) to the dense bias (heads, N, N), differentiably.

    Raises ValueError if the number of rows does not fit the window (h, w).
    """
    rows = (2 * window[0] - 1) * (2 * window[1] - 1)
    if table.dim() != 2 or table.shape[0] != rows:
        raise ValueError(
            f"position bias table of window {window} needs shape ({rows}, heads), got {tuple(table.shape)}"
        )
    size = window[0] * window[1]
    index = relative_position_index(window, table.device)
    return table.index_select(0, index.flatten()).view(size, size, -1).permute(2, 0, 1).contiguous()
