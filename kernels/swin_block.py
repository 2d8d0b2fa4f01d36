"""The public block operation on (B, H, W, C): x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)).

Fused in one kernel where there is one; else composed of PyTorch layers and `window_attention`. Either way only visible
tokens go through the first LayerNorm and the qkv product.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import REGISTRY, Backend, choose
from .geometry import Windows, relative_position_bias, shift_mask, shift_regions, token_order
from .native import CPU_LIBRARY
from .reference import keep_per_head
from .visible import VisibleTokens
from .window_attention import window_attention

MODES = ("zero", "token", "drop")
EPSILON = 1e-5


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
    """What a backend is asked to compute."""

    x: Tensor
    weights: SwinBlockWeights
    windows: Windows
    visible: VisibleTokens | None
    mode: str
    drop_path_scale: Tensor | None


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
        weights: the parameters; the number of heads is that of the bias table.
        window, shift: (height, width) in tokens; the shift is cyclic, 0 <= shift < window.
        visible: the tokens that the attention mask leaves visible, built for this geometry; None = all (dense).
        mode: what masked tokens are to the attention. "zero": zero vectors before the qkv product (the published mask);
            "token": the learned `weights.mask_token`; "drop": no keys at all.
        drop_path_scale: (2, B), factor of the attention and of the MLP branch per image (stochastic depth); None = 1.
        backend: "cpu" (fused), "composed" (with the best `window_attention`), "reference" (composed, with the
            specification of `window_attention`), or None for the first that can run.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: for sizes, modes or plans that do not fit, or if the backend cannot run.
    """
    if x.dim() != 4 or x.shape[0] == 0:
        raise ValueError(f"x must be (B, H, W, C) with at least one image, got {tuple(x.shape)}")
    channels, heads = x.shape[-1], weights.position_bias_table.shape[-1]
    windows = Windows(x.shape[1], x.shape[2], tuple(window), tuple(shift)).check()  # type: ignore[arg-type]
    if weights.qkv_weight.shape != (3 * channels, channels):
        raise ValueError(f"qkv_weight must be {(3 * channels, channels)} for x, got {tuple(weights.qkv_weight.shape)}")
    if channels % heads:
        raise ValueError(f"{heads} heads of the bias table do not divide the {channels} channels")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "token" and weights.mask_token is None:
        raise ValueError("mode 'token' needs weights.mask_token, of shape (channels,)")
    if visible is not None and (visible.windows != windows or visible.batch != x.shape[0]):
        raise ValueError(
            f"visible was built for {visible.batch} x {visible.windows}, but x needs {x.shape[0]} x {windows}"
        )
    if drop_path_scale is not None and drop_path_scale.shape != (2, x.shape[0]):
        raise ValueError(f"drop_path_scale must be {(2, x.shape[0])}, got {tuple(drop_path_scale.shape)}")
    inputs = BlockInputs(x, weights, windows, visible, mode, drop_path_scale)
    return choose("swin_block", inputs, backend).run(inputs)


def _composed(inputs: BlockInputs, backend: str | None = None) -> Tensor:
    x, w, windows, visible, mode, drop_path_scale = inputs
    batch, channels, heads = x.shape[0], x.shape[-1], w.position_bias_table.shape[-1]
    head_dim = channels // heads
    scale = head_dim**-0.5
    bias = relative_position_bias(w.position_bias_table, windows.window)
    tokens = x.reshape(-1, channels)
    first_token = windows.tokens * torch.arange(batch, device=x.device)[:, None]
    order = token_order(windows, x.device).flatten()
    places = (first_token + order).flatten()  # window place -> token of the batch

    def normed(rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (channels,), w.norm1_weight, w.norm1_bias, EPSILON)

    def windowed(rows: Tensor) -> Tensor:
        return rows.view(-1, windows.size, *rows.shape[1:])

    # Masked tokens are zero, or a learned vector, behind the LayerNorm.
    token = w.mask_token if mode == "token" else None
    masked = (w.qkv_bias if token is None else F.linear(token, w.qkv_weight, w.qkv_bias)).view(3, heads, head_dim)
    if visible is None or visible.heads is not None:
        q, k, v = windowed(
            F.linear(normed(tokens[places]), w.qkv_weight, w.qkv_bias).view(-1, 3, heads, head_dim)
        ).unbind(2)
        mask = None if windows.shift == (0, 0) else shift_mask(windows, x.device).to(x.dtype)
        if visible is not None:
            if mode == "drop":
                raise ValueError("mode 'drop' has no per-head masks; use 'zero' or 'token', or one mask for all heads")
            keep = keep_per_head(visible)[..., None]
            q, k, v = (torch.where(keep, full, fill) for full, fill in zip((q, k, v), masked, strict=True))
        out = window_attention(q, k, v, bias, scale=scale, window_mask=mask, backend=backend)
    elif mode == "drop":
        split = (channels, 2 * channels)
        (q_weight, kv_weight), (q_bias, kv_bias) = w.qkv_weight.split(split), w.qkv_bias.split(split)
        rows = normed(tokens)
        q = windowed(F.linear(rows[places], q_weight, q_bias).view(-1, heads, head_dim))
        k, v = F.linear(rows[visible.index], kv_weight, kv_bias).view(-1, 2, heads, head_dim).unbind(1)
        out = window_attention(q, k, v, bias, scale=scale, visible=visible, backend=backend)
    else:
        qkv = F.linear(normed(tokens[visible.index]), w.qkv_weight, w.qkv_bias).view(-1, 3, heads, head_dim)
        q, k, v = qkv.unbind(1)
        out = window_attention(
            *(q, k, v, bias), scale=scale, visible=visible, masked=(masked[0], masked[1], masked[2]), backend=backend
        )
    branch = F.linear(out.reshape(-1, channels), w.proj_weight, w.proj_bias)
    back = (first_token + order.argsort()).flatten()  # token of the batch -> window place
    x = x + _scaled(branch[back].view_as(x), drop_path_scale, 0)
    hidden = F.layer_norm(x, (channels,), w.norm2_weight, w.norm2_bias, EPSILON)
    hidden = F.gelu(F.linear(hidden, w.fc1_weight, w.fc1_bias))
    return x + _scaled(F.linear(hidden, w.fc2_weight, w.fc2_bias), drop_path_scale, 1)


def _scaled(branch: Tensor, drop_path_scale: Tensor | None, which: int) -> Tensor:
    return branch if drop_path_scale is None else branch * drop_path_scale[which].to(branch.dtype).view(-1, 1, 1, 1)


def _cpu_why_not(inputs: BlockInputs) -> str | None:
    x, visible = inputs.x, inputs.visible
    if x.device.type != "cpu":
        return f"needs a CPU tensor, got {x.device}"
    if x.dtype != torch.float32 and not torch.is_autocast_enabled("cpu"):
        return f"needs float32, got {x.dtype}"
    if visible is not None and visible.heads is not None:
        return "per-head masks are not in this kernel"
    return None


def _run_cpu(inputs: BlockInputs) -> Tensor:
    x, w, windows, visible, mode, drop_path_scale = inputs
    bias = relative_position_bias(w.position_bias_table, windows.window)
    regions = None if windows.shift == (0, 0) else shift_regions(windows, x.device).int()
    out: Tensor = torch.ops.masked_swin.swin_block_cpu(
        x,
        [*w[:4], bias, *w[5:13]],
        w.mask_token if mode == "token" and visible is not None else None,
        None if visible is None else visible.image_keep,
        regions,
        drop_path_scale,
        *windows.window,
        *windows.shift,
        MODES.index(mode) if visible is not None else 0,
    )
    return out


REGISTRY["swin_block"] += [
    Backend("cpu", _run_cpu, _cpu_why_not, lambda: CPU_LIBRARY.why_not),
    Backend("composed", _composed, lambda inputs: None),
    Backend("reference", lambda inputs: _composed(inputs, "reference"), lambda inputs: None),
]
