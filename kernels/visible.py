"""VisibleTokens: which tokens a kernel works on, built once per mask and shared by forward and backward."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import Windows, shift_regions, token_order


@dataclass(frozen=True, eq=False)
class VisibleTokens:
    """A compact list of visible tokens, sorted by window: the plan of one mask.

    S segments are the windows of all images (image by image), or with per-head masks the heads of each window, head
    fastest. R rows are the capacity of the compact list; only the first `offsets[-1]` are used, the others repeat token
    0 and whatever they hold is ignored. On the CPU, R is exact; on devices, and under torch.compile, R is every token,
    so that no shape depends on data and nothing waits for the device.

    Attributes:
        windows: the geometry.
        batch: B, the number of images.
        heads: H with per-head masks, else None.
        index: (R,) int64, row -> token of the flattened batch, B * height * width.
        position: (R,) int32, row -> place in its window.
        offsets: (S + 1,) int32, the rows of segment s are offsets[s] .. offsets[s + 1].
        keep: (S, N) bool, True = visible, in window order.
        regions: (W, N) int32 shift regions of one image's windows, or None without a shift.
    """

    windows: Windows
    batch: int
    heads: int | None
    index: Tensor
    position: Tensor
    offsets: Tensor
    keep: Tensor
    regions: Tensor | None

    @classmethod
    def from_keep(cls, keep: Tensor, windows: Windows) -> "VisibleTokens":
        """Build the plan from a mask of image tokens.

        Args:
            keep: bool (B, L), or (B, heads, L) for per-head masks; True = visible, tokens in image order.
            windows: geometry; L = height * width.

        Raises:
            ValueError: for a mask of another shape or dtype, an empty batch, or windows that do not tile the image.
        """
        windows.check()
        if keep.dtype != torch.bool or keep.dim() not in (2, 3) or keep.shape[-1] != windows.tokens:
            raise ValueError(
                f"keep must be bool (batch, {windows.tokens}) or (batch, heads, {windows.tokens}), "
                f"got {keep.dtype} {tuple(keep.shape)}; True = visible"
            )
        if keep.shape[0] == 0:
            raise ValueError("keep has a batch of 0 images; at least 1 is needed")
        heads = keep.shape[1] if keep.dim() == 3 else None
        device, size = keep.device, windows.size
        order_WN = token_order(windows, device)
        token_BWN = order_WN + windows.tokens * torch.arange(len(keep), device=device)[:, None, None]
        keep_S = keep[..., order_WN]
        if heads is not None:
            keep_S = keep_S.transpose(1, 2)  # (B, W, H, N)
            token_BWN = token_BWN[:, :, None].expand(-1, -1, heads, -1)
        flat = keep_S.reshape(-1)
        counts = keep_S.reshape(-1, size).sum(1, dtype=torch.int32)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
        if device.type == "cpu" and not torch.compiler.is_compiling():
            slots = flat.nonzero().squeeze(1)
        else:
            row = torch.where(flat, flat.cumsum(0) - 1, flat.numel())
            slots = torch.zeros(flat.numel() + 1, dtype=torch.int64, device=device)
            slots = slots.scatter(0, row, torch.arange(flat.numel(), device=device))[:-1]
        return cls(
            windows=windows,
            batch=len(keep),
            heads=heads,
            index=token_BWN.reshape(-1)[slots],
            position=(slots % size).int(),
            offsets=offsets,
            keep=keep_S.reshape(-1, size),
            regions=None if windows.shift == (0, 0) else shift_regions(windows, device).int(),
        )

    @property
    def segments(self) -> int:
        """S: windows of the batch, times heads for per-head masks."""
        return self.keep.shape[0]

    def rows(self) -> Tensor:
        """(S, N) int64: the compact row of each visible token; masked places hold some row between -1 and the last."""
        return (self.keep.reshape(-1).cumsum(0) - 1).view_as(self.keep)
