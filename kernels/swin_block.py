"""The operation `swin_block` on (B, H, W, C): x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x))."""

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import choose, run_empty
from .checks import require_tensor
from .geometry import Windows
from .visible import VisibleTokens

MODES = ("zero", "token", "drop", "visible")


class SwinBlockWeights(NamedTuple):
    """Parameters of a block in torch.nn's layouts; C channels, M hidden units of the MLP."""

    norm1_weight: Tensor  # (C,)
    norm1_bias: Tensor
    qkv_weight: Tensor  # (3C, C)
    qkv_bias: Tensor  # (3C,)
    position_bias_table: Tensor  # ((2h-1)*(2w-1), heads)
    proj_weight: Tensor  # (C, C)
    proj_bias: Tensor
    norm2_weight: Tensor  # (C,)
    norm2_bias: Tensor
    fc1_weight: Tensor  # (M, C)
    fc1_bias: Tensor
    fc2_weight: Tensor  # (C, M)
    fc2_bias: Tensor
    mask_token: Tensor | None = None  # (C,), for mode "token"


class BlockInputs(NamedTuple):
    """The inputs of the operation."""

    x: Tensor
    weights: SwinBlockWeights
    windows: Windows
    visible: VisibleTokens | None
    mode: str
    drop_path_scale: Tensor | None

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of the operands of matrix products: that of autocast or, outside of it, of x."""
        device = self.x.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.x.dtype

    def arguments(self) -> tuple[object, ...]:
        *weights, mask_token = self.weights
        masked = self.visible is not None
        return (
            self.x,
            weights,
            mask_token if masked and self.mode == "token" else None,
            None if self.visible is None else self.visible.image_keep,
            None if self.drop_path_scale is None else self.drop_path_scale.float(),
            *self.windows.window,
            *self.windows.shift,
            MODES.index(self.mode) if masked else 0,
            self.product_dtype,
        )


def swin_block(
    x: Tensor,
    weights: SwinBlockWeights,
    *,
    window: tuple[int, int],
    shift: tuple[int, int],
    visible: VisibleTokens | None = None,
    mode: str = "zero",
    drop_path_scale: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """One Swin transformer block (pre-norm, exact GELU, LayerNorm epsilon 1e-5).

    Args:
        x: (B, H, W, C), H and W multiples of the window.
        weights: the parameters. The number of heads is that of the position bias table.
        window, shift: (height, width) in tokens. The shift is cyclic, 0 <= shift < window.
        visible: the tokens that the attention mask leaves visible, made for this geometry; None = all (dense).
        mode: how the block treats masked tokens. "zero": zero vectors before the qkv product (the published mask).
            "token": the learned `weights.mask_token` instead of zero. "drop": not used as keys. "visible": they do not
            exist for the block, which returns them as they are (the encoder of masked image modelling). "drop" and
            "visible" have no per-head masks.
        drop_path_scale: (2, B), factors of the attention and the MLP branch per image (stochastic depth); None = 1.
        backend: a name, or None for the first that can run; `backend_report()` lists them.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: for sizes, modes or visible tokens that do not fit, or if the backend cannot run.
    """
    require_tensor("x", x, "(B, H, W, C)")
    if x.dim() != 4:
        raise ValueError(f"x must be (B, H, W, C), got {tuple(x.shape)}")
    if not isinstance(weights, SwinBlockWeights):
        raise ValueError(f"weights must be SwinBlockWeights, got {type(weights).__name__}")
    require_tensor("position_bias_table", weights.position_bias_table, "(rows, heads)")
    require_tensor("fc1_weight", weights.fc1_weight, "(M, C)")
    if weights.position_bias_table.dim() != 2 or weights.position_bias_table.shape[1] == 0:
        raise ValueError(f"position_bias_table must be (rows, heads), got {tuple(weights.position_bias_table.shape)}")
    channels, heads = x.shape[-1], weights.position_bias_table.shape[-1]
    windows = Windows(x.shape[1], x.shape[2], window, shift)
    _check_weights(x, weights, windows)
    if channels % heads:
        raise ValueError(f"{heads} heads of the position bias table do not divide the {channels} channels")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "token" and weights.mask_token is None:
        raise ValueError("mode 'token' needs weights.mask_token, of shape (channels,)")
    if visible is not None and (visible.windows != windows or visible.batch != x.shape[0]):
        raise ValueError(
            f"visible was built for {visible.batch} x {visible.windows}, but x needs {x.shape[0]} x {windows}"
        )
    if visible is not None and visible.heads is not None and mode in ("drop", "visible"):
        raise ValueError(f"mode {mode!r} has no per-head masks; use 'zero' or 'token', or one mask for all heads")
    if drop_path_scale is not None:
        if drop_path_scale.shape != (2, x.shape[0]):
            raise ValueError(f"drop_path_scale must be {(2, x.shape[0])}, got {tuple(drop_path_scale.shape)}")
        if drop_path_scale.requires_grad:
            raise ValueError("drop_path_scale has no gradient; pass drop_path_scale.detach()")
    inputs = BlockInputs(x, weights, windows, visible, mode, drop_path_scale)
    run = choose("swin_block", inputs, backend).run
    y: Tensor = run(inputs) if len(x) else run_empty("swin_block", inputs)
    return y


def _check_weights(x: Tensor, weights: SwinBlockWeights, windows: Windows) -> None:
    """Raise ValueError naming the first weight that does not fit x or the window."""
    c, hidden = x.shape[-1], weights.fc1_weight.shape[0]
    rows = (2 * windows.window[0] - 1) * (2 * windows.window[1] - 1)
    expected: dict[str, tuple[int, ...]] = {
        "qkv_weight": (3 * c, c),
        "qkv_bias": (3 * c,),
        "position_bias_table": (rows, weights.position_bias_table.shape[1]),
        "proj_weight": (c, c),
        "fc1_weight": (hidden, c),
        "fc1_bias": (hidden,),
        "fc2_weight": (c, hidden),
    }
    for name, weight in weights._asdict().items():
        if weight is None and name == "mask_token":
            continue
        shape = expected.get(name, (c,))
        if not isinstance(weight, Tensor) or weight.shape != shape:
            found = tuple(weight.shape) if isinstance(weight, Tensor) else weight
            raise ValueError(f"{name} must be {shape} for x with {c} channels, got {found}")
        if weight.device != x.device:
            raise ValueError(f"{name} is on {weight.device} but x is on {x.device}; move one of them")
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} is {weight.dtype} but x is {x.dtype}; convert one, or use torch.autocast")
