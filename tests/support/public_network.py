"""The public masked SwinIR, op by op in eager PyTorch: the tests' witness and the benchmarks' baseline.

It imports nothing from masked_swin, optimises nothing, and has the public state dict's parameters and buffers. Only two
things differ from the public code: attention masks are given (`keep`, True = visible) instead of drawn, and dropout, of
probability 0 there, is left out. A ModuleDict stands where a module only carries a public name.
"""

# B images, Y X rows and columns, L = Y * X tokens of an image, C channels
# W windows of the batch (image by image, row by row), T tokens of a window, H heads, D head dim

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
RGB_MEAN = (0.4488, 0.4371, 0.4040)
INPUT_MASK_VALUE = -0.1
HEADS_OF_MASK_IS_DIFF = 6  # the public code spells out qkv1 .. qkv6


def window_partition(x_BYXC: Tensor, window: int) -> Tensor:
    """(B, Y, X, C) -> (W, T, C); Y and X must be multiples of `window`."""
    B, Y, X, C = x_BYXC.shape
    grid = x_BYXC.view(B, Y // window, window, X // window, window, C)
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, C)


def window_reverse(x_WTC: Tensor, window: int, size: Size) -> Tensor:
    """(W, T, C) -> (B, Y, X, C), the inverse of `window_partition`."""
    Y, X = size
    grid = x_WTC.view(-1, Y // window, X // window, window, window, x_WTC.shape[-1])
    return grid.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, Y, X, x_WTC.shape[-1])


def windowed_keep(keep: Tensor, size: Size, window: int, shift: int) -> Tensor:
    """Put a mask given per token of the padded image, (B, L) or (B, heads, L), in the order of the shifted windows:
    (W, T) or (W, heads, T), as `keep` is expected below."""
    per_head = keep if keep.dim() == 3 else keep.unsqueeze(1)
    keep_BYXH = per_head.transpose(1, 2).reshape(keep.shape[0], *size, -1)
    keep_WHT = window_partition(keep_BYXH.roll((-shift, -shift), (1, 2)), window).transpose(1, 2)
    return keep_WHT if keep.dim() == 3 else keep_WHT.squeeze(1)


def mask_pixels(image_BCYX: Tensor, masked_BYX: Tensor) -> Tensor:
    """The input mask of training: all channels of a masked pixel (True) become -0.1, in the units of the raw image."""
    return image_BCYX.masked_fill(masked_BYX.unsqueeze(1), INPUT_MASK_VALUE)


def relative_position_index(window: int) -> Tensor:
    """(T, T) int64: row of the bias table for (query, key); row offset and column offset each start from 0."""
    y_T, x_T = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy_TT = y_T.reshape(-1, 1) - y_T.reshape(1, -1) + window - 1
    dx_TT = x_T.reshape(-1, 1) - x_T.reshape(1, -1) + window - 1
    return dy_TT * (2 * window - 1) + dx_TT


def shift_mask(size: Size, window: int, shift: int) -> Tensor:
    """(windows of one image, T, T) fp32: 0 between tokens of one region of the rolled image, -100 between regions."""
    region_YX = torch.zeros(1, *size, 1)
    # Without a shift the last slice is the whole side: one region, hence a mask of zeros.
    sides = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(sides):
        for j, columns in enumerate(sides):
            region_YX[:, rows, columns] = 3 * i + j
    region_WT = window_partition(region_YX, window).squeeze(-1)
    difference_WTT = region_WT.unsqueeze(1) - region_WT.unsqueeze(2)
    return difference_WTT.masked_fill(difference_WTT != 0, -100.0)


def residual_conv(dim: int, kind: str) -> nn.Module:
    """The convolution that ends a group and the body: "1conv" or "3conv"."""
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    if kind == "3conv":
        return nn.Sequential(
            nn.Conv2d(dim, dim // 4, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim // 4, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim, 3, padding=1),
        )
    raise ValueError(f"resi_connection must be '1conv' or '3conv', got {kind!r}")


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with `probability`, or divided by its complement."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_BLC: Tensor) -> Tensor:
        if not self.training:
            return x_BLC
        scale_B11 = x_BLC.new_empty(x_BLC.shape[0], 1, 1).bernoulli_(1 - self.probability)
        return x_BLC * scale_B11.div_(1 - self.probability)


class PublicAttention(nn.Module):
    """Window attention, (W, T, C) -> (W, T, C). `keep`: (W, T), or (W, heads, T) with `mask_is_diff`."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, mask_is_diff: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {dim} and {heads} heads")
        if mask_is_diff and heads != HEADS_OF_MASK_IS_DIFF:
            raise ValueError(f"mask_is_diff needs {HEADS_OF_MASK_IS_DIFF} heads (qkv1 .. qkv6), got {heads}")
        self.heads, self.mask_is_diff, self.scale = heads, mask_is_diff, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        if mask_is_diff:
            for head in range(heads):
                self.add_module(f"qkv{head + 1}", nn.Linear(dim, 3 * dim // heads))
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def project(self, x_WTC: Tensor, keep: Tensor | None) -> Tensor:
        """Mask, then project: (3, W, H, T, D). A masked token is the zero vector, so its q, k, v are the bias."""
        W, T, C = x_WTC.shape
        expected = (W, self.heads, T) if self.mask_is_diff else (W, T)
        if keep is not None and (keep.dtype != torch.bool or keep.shape != expected):
            raise ValueError(f"keep must be bool {expected}, got {keep.dtype} {tuple(keep.shape)}")
        if not self.mask_is_diff:
            x_WTC = x_WTC if keep is None else x_WTC * keep.unsqueeze(-1)
            return self.qkv(x_WTC).reshape(W, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        copies = [x_WTC if keep is None else x_WTC * keep[:, head].unsqueeze(-1) for head in range(self.heads)]
        qkv_3WTD = [
            getattr(self, f"qkv{head + 1}")(copy).reshape(W, T, 3, C // self.heads).permute(2, 0, 1, 3)
            for head, copy in enumerate(copies)
        ]
        return torch.cat([part.unsqueeze(2) for part in qkv_3WTD], dim=2)

    def forward(self, x_WTC: Tensor, mask_WTT: Tensor | None, keep: Tensor | None = None) -> Tensor:
        W, T, C = x_WTC.shape
        q_WHTD, k_WHTD, v_WHTD = self.project(x_WTC, keep)
        q_WHTD = q_WHTD * self.scale
        s_WHTT = q_WHTD @ k_WHTD.transpose(-2, -1)
        bias_TTH = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(T, T, -1)
        s_WHTT = s_WHTT + bias_TTH.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask_WTT is not None:
            per_image = s_WHTT.view(-1, mask_WTT.shape[0], self.heads, T, T) + mask_WTT.unsqueeze(1).unsqueeze(0)
            s_WHTT = per_image.view(-1, self.heads, T, T)
        p_WHTT = F.softmax(s_WHTT, dim=-1)
        o_WTC = (p_WHTT @ v_WHTD).transpose(1, 2).reshape(W, T, C)
        return self.proj(o_WTC)


class PublicBlock(nn.Module):
    """One Swin block on (B, Y * X, C), `size` = (Y, X). The shift mask of `img_size` is a buffer; at any other size one
    is computed and added on every call, shifted or not, as in the public code: a fair benchmark passes its `img_size`.
    """

    attn_mask: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        *,
        drop_path: float = 0.0,
        mask_is_diff: bool = False,
        img_size: int | Size = 64,
    ) -> None:
        super().__init__()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(self.img_size) <= window:
            window, shift = min(self.img_size), 0
        self.window, self.shift, hidden = window, shift, int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = PublicAttention(dim, heads, window, mask_is_diff)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)))
        self.register_buffer("attn_mask", shift_mask(self.img_size, window, shift) if shift > 0 else None)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x_BLC: Tensor, size: Size, keep: Tensor | None = None) -> Tensor:
        (B, L, C), (Y, X) = x_BLC.shape, size
        x_BYXC = self.norm1(x_BLC).view(B, Y, X, C)
        if self.shift > 0:
            x_BYXC = torch.roll(x_BYXC, (-self.shift, -self.shift), (1, 2))
        x_WTC = window_partition(x_BYXC, self.window)
        known = size == self.img_size
        mask_WTT = self.attn_mask if known else shift_mask(size, self.window, self.shift).to(x_BLC)
        x_BYXC = window_reverse(self.attn(x_WTC, mask_WTT, keep), self.window, size)
        if self.shift > 0:
            x_BYXC = torch.roll(x_BYXC, (self.shift, self.shift), (1, 2))
        x_BLC = x_BLC + self.drop_path(x_BYXC.view(B, L, C))
        return x_BLC + self.drop_path(self.mlp(self.norm2(x_BLC)))


def patch_embed(x_BCYX: Tensor) -> Tensor:
    return x_BCYX.flatten(2).transpose(1, 2)


def patch_unembed(x_BLC: Tensor, size: Size) -> Tensor:
    return x_BLC.transpose(1, 2).view(x_BLC.shape[0], x_BLC.shape[2], *size)


class Group(nn.Module):
    """SwinIR's RSTB: blocks, a convolution, and the group's input added."""

    def __init__(self, blocks: list[PublicBlock], conv: nn.Module) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        self.conv = conv

    def forward(self, x_BLC: Tensor, size: Size, keep: Sequence[Tensor | None]) -> Tensor:
        body_BLC = x_BLC
        for block, block_keep in zip(self.residual_group["blocks"].children(), keep, strict=True):
            body_BLC = block(body_BLC, size, block_keep)
        return patch_embed(self.conv(patch_unembed(body_BLC, size))) + x_BLC


class PublicNetwork(nn.Module):
    """(B, in_chans, Y, X) -> the same shape, for any image that reflection can pad to a multiple of the window.

    `keep`: one bool tensor per block, True = visible, (W, T), or (W, heads, T) with `mask_is_diff`, in the order of the
    block's shifted windows of the padded image; None = masks off. `conv_first_kernel` 1 is the masked network, with no
    global residual, 3 is SwinIR, with both. Raises ValueError for other options and for masks that do not fit.
    """

    def __init__(
        self,
        embed_dim: int = 60,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        resi_connection: str = "3conv",
        conv_first_kernel: int = 1,
        img_range: float = 1.0,
        drop_path_rate: float = 0.1,
        mask_is_diff: bool = False,
        img_size: int | Size = 64,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if conv_first_kernel not in (1, 3):
            raise ValueError(f"conv_first_kernel must be 1 (masked network) or 3 (SwinIR), got {conv_first_kernel}")
        self.window, self.img_range, self.depths = window_size, img_range, tuple(depths)
        self.global_residuals = conv_first_kernel == 3
        self.mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1) if in_chans == 3 else torch.zeros(1, 1, 1, 1)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, conv_first_kernel, padding=conv_first_kernel // 2)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)})
        block = partial(PublicBlock, embed_dim, window=window_size, mlp_ratio=mlp_ratio, mask_is_diff=mask_is_diff)
        self.layers = nn.ModuleList()
        drop_path = iter(torch.linspace(0, drop_path_rate, sum(self.depths)).tolist())
        for depth, heads in zip(self.depths, num_heads, strict=True):
            blocks = [
                block(heads=heads, shift=window_size // 2 * (i % 2), drop_path=next(drop_path), img_size=img_size)
                for i in range(depth)
            ]
            self.layers.append(Group(blocks, residual_conv(embed_dim, resi_connection)))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        self.conv_last = nn.Conv2d(embed_dim, in_chans, 3, padding=1)

    def features(self, x_BCYX: Tensor, keep: Sequence[Tensor] | None) -> Tensor:
        masks = [None] * sum(self.depths) if keep is None else list(keep)
        if len(masks) != sum(self.depths):
            raise ValueError(f"keep must hold one mask per block, {sum(self.depths)} of them, got {len(masks)}")
        size = (x_BCYX.shape[2], x_BCYX.shape[3])
        x_BLC = self.patch_embed["norm"](patch_embed(x_BCYX))
        for layer, depth in zip(self.layers, self.depths, strict=True):
            x_BLC, masks = layer(x_BLC, size, masks[:depth]), masks[depth:]
        return patch_unembed(self.norm(x_BLC), size)

    def forward(self, x_BCYX: Tensor, keep: Sequence[Tensor] | None = None) -> Tensor:
        Y, X = x_BCYX.shape[2:]
        x_BCYX = F.pad(x_BCYX, (0, -X % self.window, 0, -Y % self.window), "reflect")
        mean = self.mean.type_as(x_BCYX)
        x_BCYX = (x_BCYX - mean) * self.img_range
        first_BCYX = self.conv_first(x_BCYX)
        body_BCYX = self.conv_after_body(self.features(first_BCYX, keep))
        out_BCYX = self.conv_last(body_BCYX + first_BCYX if self.global_residuals else body_BCYX)
        out_BCYX = x_BCYX + out_BCYX if self.global_residuals else out_BCYX
        return (out_BCYX / self.img_range + mean)[:, :, :Y, :X]
