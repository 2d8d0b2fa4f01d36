"""The layers of SwinIR (arXiv 2108.10257), with its parameter names. Features are (B, H, W, C)."""

import torch
from torch import Tensor, nn

from masked_swin.config import ModelConfig
from masked_swin.kernels import SwinBlockWeights, convolution, swin_block
from masked_swin.masking import AttentionMasks


class AttentionParameters(nn.Module):
    """The parameters of one window attention, which the kernels compute.

    qkv has (3, heads, head_dim) rows, with per-head masks too; checkpoint.py splits them for the public code.
    """

    def __init__(self, config: ModelConfig, heads: int) -> None:
        super().__init__()
        dim, window = config.embed_dim, config.window_size
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        if config.attention_mask_mode == "token":
            self.mask_token = nn.Parameter(torch.zeros(dim))
        else:
            self.register_parameter("mask_token", None)


class MLPParameters(nn.Module):
    """The two linear layers of the MLP, which the kernels compute."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)


class SwinLayer(nn.Module):
    """One Swin transformer layer. `number` counts the layers of the network from 1, and is part of the masks' key."""

    def __init__(self, config: ModelConfig, heads: int, number: int, shift: int, backend: str | None) -> None:
        super().__init__()
        self.heads, self.number, self.shift, self.backend = heads, number, shift, backend
        self.window = config.window_size
        self.mode = config.attention_mask_mode
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = AttentionParameters(config, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPParameters(dim, config.mlp_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def weights(self) -> SwinBlockWeights:
        attn, mlp = self.attn, self.mlp
        return SwinBlockWeights(
            norm1_weight=self.norm1.weight,
            norm1_bias=self.norm1.bias,
            qkv_weight=attn.qkv.weight,
            qkv_bias=attn.qkv.bias,
            position_bias_table=attn.relative_position_bias_table,
            proj_weight=attn.proj.weight,
            proj_bias=attn.proj.bias,
            norm2_weight=self.norm2.weight,
            norm2_bias=self.norm2.bias,
            fc1_weight=mlp.fc1.weight,
            fc1_bias=mlp.fc1.bias,
            fc2_weight=mlp.fc2.weight,
            fc2_bias=mlp.fc2.bias,
            mask_token=attn.mask_token,
        )

    def forward(self, x: Tensor, masks: AttentionMasks | None, drop_path_scale: Tensor | None) -> Tensor:
        """Compute x (B, H, W, C), of whole windows; drop_path_scale (2, B) has factors of both branches."""
        return swin_block(
            x,
            self.weights(),
            window=(self.window, self.window),
            shift=(self.shift, self.shift),
            visible=None if masks is None else masks.visible(self.number, self.heads, self.shift),
            mode=self.mode,
            drop_path_scale=drop_path_scale,
            backend=self.backend,
        )


class SwinLayers(nn.Module):
    """The Swin layers of one group. Every second one shifts its windows by half a window."""

    def __init__(self, config: ModelConfig, group: int, backend: str | None) -> None:
        super().__init__()
        first = sum(config.depths[:group]) + 1
        shifts = (0, config.window_size // 2)
        self.blocks = nn.ModuleList(
            SwinLayer(config, config.num_heads[group], first + i, shifts[i % 2], backend)
            for i in range(config.depths[group])
        )

    def forward(self, x: Tensor, masks: AttentionMasks | None, drop_path_scales: list[Tensor | None]) -> Tensor:
        for layer, scale in zip(self.blocks, drop_path_scales, strict=True):
            x = layer(x, masks, scale)
        return x


class ResidualGroup(nn.Module):
    """SwinIR's RSTB: x + convolutions(Swin layers(x))."""

    def __init__(self, config: ModelConfig, group: int, backend: str | None) -> None:
        super().__init__()
        self.backend = backend
        self.residual_group = SwinLayers(config, group, backend)
        self.conv = residual_conv(config)

    def forward(self, x: Tensor, masks: AttentionMasks | None, drop_path_scales: list[Tensor | None]) -> Tensor:
        """Compute x (B, H, W, C). Each layer has a drop-path scale (2, B) or None."""
        return x + channels_last(self.conv, self.residual_group(x, masks, drop_path_scales), self.backend)


def around_blocks(backend: str | None) -> str | None:
    """Return the backend of the operations around the blocks. `backend` names that of the blocks."""
    return "reference" if backend == "reference" else None


def residual_conv(config: ModelConfig) -> nn.Module:
    """Make the convolutions before a residual sum: one 3x3, or three through a quarter of the channels."""
    dim = config.embed_dim
    if config.resi_connection == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim, 3, padding=1),
    )


def channels_last(module: nn.Module, x: Tensor, backend: str | None) -> Tensor:
    """Apply convolutions, and the activations between them, to (B, H, W, C). `backend` is the network's."""
    if isinstance(module, nn.Sequential):
        for layer in module:
            x = channels_last(layer, x, backend)
        return x
    if isinstance(module, nn.Conv2d):
        assert module.bias is not None
        return convolution(x, module.weight, module.bias, backend=around_blocks(backend))
    y: Tensor = module(x)
    return y
