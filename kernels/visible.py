"""VisibleTokens: which tokens a kernel works on, built once per mask and shared by forward and backward."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import mask_ops  # noqa: F401  (registers the operators)
from .backends import TRITON_INSTALLED
from .geometry import Windows, shift_regions, token_order


class VisibleTokens:
    """The plan of one mask: which tokens are visible, and the compact list of them, sorted by window.

    S segments are the windows of all images (image by image), or with per-head masks the heads of each window, head
    fastest. R rows are the capacity of the compact list; only the first `offsets[-1]` are used, the others repeat the
    first and whatever they hold is ignored. On the CPU, R is exact; on devices, and under torch.compile, R is every
    token, so that no shape depends on data and nothing waits for the device.

    Attributes:
        image_keep: bool (B, L) or (B, heads, L), True = visible, in image order.
        windows: the geometry.
        batch: B, the number of images.
        heads: H with per-head masks, else None.

    The list itself is made when it is first asked for: a kernel that walks through the image does without it. The mask
    is not copied: do not change it while the plan is in use.
    """

    def __init__(self, image_keep: Tensor, windows: Windows) -> None:
        self.image_keep = image_keep
        self.windows = windows
        self.batch = image_keep.shape[0]
        self.heads = image_keep.shape[1] if image_keep.dim() == 3 else None
        self._rows: _CompactRows | None = None

    @classmethod
    def from_keep(cls, keep: Tensor, windows: Windows) -> "VisibleTokens":
        """Build the plan from a mask of image tokens.

        Args:
            keep: bool (B, L), or (B, heads, L) for per-head masks; True = visible, tokens in image order.
            windows: geometry; L = height * width.

        Raises:
            ValueError: for a mask of another shape or dtype, an empty batch, or windows that do not tile the image.
        """
        windows = windows.check()
        if keep.dtype != torch.bool or keep.dim() not in (2, 3) or keep.shape[-1] != windows.tokens:
            raise ValueError(
                f"keep must be bool (batch, {windows.tokens}) or (batch, heads, {windows.tokens}), "
                f"got {keep.dtype} {tuple(keep.shape)}; True = visible"
            )
        if keep.shape[0] == 0:
            raise ValueError("keep has a batch of 0 images; at least 1 is needed")
        return cls(keep, windows)

    @property
    def token_index(self) -> Tensor:
        """(R,) int64: row -> token of the flattened batch, B * height * width."""
        return self._compact().token_index

    @property
    def position(self) -> Tensor:
        """(R,) int32: row -> place in its window."""
        return self._compact().position

    @property
    def offsets(self) -> Tensor:
        """(S + 1,) int32: the rows of segment s are offsets[s] .. offsets[s + 1]."""
        return self._compact().offsets

    @property
    def keep(self) -> Tensor:
        """(S, N) bool, True = visible, in window order."""
        return self._compact().keep

    @property
    def regions(self) -> Tensor | None:
        """(W, N) int32 shift regions of one image's windows, or None without a shift."""
        return self._compact().regions

    def compact_index(self) -> Tensor:
        """(S, N) int64: the compact row of each visible token; masked places hold some row between -1 and the last."""
        return (self.keep.reshape(-1).cumsum(0) - 1).view_as(self.keep)

    def _compact(self) -> "_CompactRows":
        if self._rows is not None:
            return self._rows
        if torch.compiler.is_compiling():
            return _compact_rows(self.image_keep, self.windows)  # a traced list must not outlive its graph
        with torch.inference_mode(False):  # the list may be needed for training later
            self._rows = _compact_rows(self.image_keep, self.windows)
        return self._rows


@dataclass(frozen=True)
class _CompactRows:
    token_index: Tensor
    position: Tensor
    offsets: Tensor
    keep: Tensor
    regions: Tensor | None


def _compact_rows(image_keep: Tensor, windows: Windows) -> _CompactRows:
    device, size, batch = image_keep.device, windows.size, image_keep.shape[0]
    shifted = windows.shift != (0, 0)
    if device.type == "cuda" and TRITON_INSTALLED:
        sizes = (windows.height, windows.width, *windows.window, *windows.shift)
        index, position, offsets, keep, regions = torch.ops.masked_swin.visible_tokens_triton(image_keep, *sizes)
        return _CompactRows(index, position, offsets, keep, regions if shifted else None)
    order_WN = token_order(windows, device)
    token_BWN = order_WN + windows.tokens * torch.arange(batch, device=device)[:, None, None]
    keep_S = image_keep[..., order_WN]
    if image_keep.dim() == 3:
        keep_S = keep_S.transpose(1, 2)  # (B, W, H, N)
        token_BWN = token_BWN[:, :, None].expand(-1, -1, image_keep.shape[1], -1)
    flat = keep_S.reshape(-1)
    counts = keep_S.reshape(-1, size).sum(1, dtype=torch.int32)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
    if device.type == "cpu" and not torch.compiler.is_compiling():
        slots = flat.nonzero().squeeze(1)
    else:
        row = torch.where(flat, flat.cumsum(0) - 1, flat.numel())
        slots = torch.zeros(flat.numel() + 1, dtype=torch.int64, device=device)
        slots = slots.scatter(0, row, torch.arange(flat.numel(), device=device))[:-1]
    return _CompactRows(
        token_index=token_BWN.reshape(-1)[slots],
        position=(slots % size).int(),
        offsets=offsets,
        keep=keep_S.reshape(-1, size),
        regions=shift_regions(windows, device).int() if shifted else None,
    )
