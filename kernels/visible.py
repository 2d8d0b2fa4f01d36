"""VisibleTokens: which tokens a kernel works on, made once per mask and shared by forward and backward."""

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import choose, run_empty
from .checks import require_tensor
from .geometry import Windows


class VisibleTokensInputs(NamedTuple):
    """The inputs of the operation `visible_tokens`: keep is bool (B, L) or (B, heads, L)."""

    keep: Tensor
    windows: Windows

    def arguments(self) -> tuple[object, ...]:
        return (self.keep, *self.windows.sizes)


class CompactList(NamedTuple):
    """The result of the operation `visible_tokens`: fields as of VisibleTokens, but regions empty without a shift."""

    token_index: Tensor
    position: Tensor
    offsets: Tensor
    keep: Tensor
    regions: Tensor


class VisibleTokens:
    """The visible tokens of one mask: a compact list, sorted by window.

    S segments are the windows of all images, image by image. With per-head masks they are the heads of each window, the
    head fastest. R is the capacity of the compact list. Only the first `offsets[-1]` entries are used; the others
    repeat the first, and kernels ignore what they hold. On the CPU, R is the exact number. On devices, and under
    torch.compile, R is every token: no shape depends on data and nothing waits for the device.

    Attributes:
        image_keep: bool (B, L) or (B, heads, L), True = visible, in image order.
        windows: the geometry.
        batch: B, the number of images.
        heads: H with per-head masks, else None.

    The list is made when it is first asked for: a kernel that walks through the image does without it. The mask is not
    copied: do not change it while this object is in use.
    """

    def __init__(self, image_keep: Tensor, windows: Windows, backend: str | None = None) -> None:
        self.image_keep = image_keep
        self.windows = windows
        self.batch = image_keep.shape[0]
        self.heads = image_keep.shape[1] if image_keep.dim() == 3 else None
        self._backend = backend
        self._list: CompactList | None = None

    @classmethod
    def from_keep(cls, keep: Tensor, windows: Windows, *, backend: str | None = None) -> "VisibleTokens":
        """Make the visible tokens from a mask of image tokens.

        Args:
            keep: bool (B, L), or (B, heads, L) for per-head masks; True = visible, tokens in image order.
            windows: geometry; L = height * width.
            backend: makes the list; a name, or None for the first that can run.

        Raises:
            ValueError: for a mask of another shape or dtype, or windows that do not tile the image.
        """
        require_tensor("keep", keep, "bool (B, L)")
        if keep.dtype != torch.bool or keep.dim() not in (2, 3) or keep.shape[-1] != windows.tokens:
            raise ValueError(
                f"keep must be bool (batch, {windows.tokens}) or (batch, heads, {windows.tokens}), "
                f"got {keep.dtype} {tuple(keep.shape)}; True = visible"
            )
        return cls(keep, windows, backend)

    @property
    def token_index(self) -> Tensor:
        """(R,) int64: the token of the flattened batch, B * height * width, of each entry."""
        return self._compact().token_index

    @property
    def position(self) -> Tensor:
        """(R,) int32: the position in its window of each entry."""
        return self._compact().position

    @property
    def offsets(self) -> Tensor:
        """(S + 1,) int32: the entries of segment s are offsets[s] .. offsets[s + 1]."""
        return self._compact().offsets

    @property
    def keep(self) -> Tensor:
        """(S, N) bool, True = visible, in window order."""
        return self._compact().keep

    @property
    def regions(self) -> Tensor | None:
        """(W, N) int32 shift regions of one image's windows, or None without a shift."""
        return None if self.windows.shift == (0, 0) else self._compact().regions

    def compact_index(self) -> Tensor:
        """(S, N) int64: the entry of each visible token. Masked positions hold a number between -1 and the last."""
        return (self.keep.reshape(-1).cumsum(0) - 1).view_as(self.keep)

    def keep_by_head(self) -> Tensor:
        """`keep` as (W, N, H), or (W, N, 1) for a mask that the heads share; W windows of the batch."""
        if self.heads is None:
            return self.keep[:, :, None]
        return self.keep.unflatten(0, (-1, self.heads)).transpose(1, 2)

    def _compact(self) -> CompactList:
        if self._list is not None:
            return self._list
        inputs = VisibleTokensInputs(self.image_keep, self.windows)
        run = choose("visible_tokens", inputs, self._backend).run
        if not self.batch:
            return CompactList(*run_empty("visible_tokens", inputs))
        if torch.compiler.is_compiling():
            return CompactList(*run(inputs))  # a traced list must not outlive its graph
        with torch.inference_mode(False):  # the list may be needed for training later
            self._list = CompactList(*run(inputs))
        return self._list
