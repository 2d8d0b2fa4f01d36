"""The public block operation on (B, H, W, C): x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)).

Fused in one kernel where there is one; else composed of PyTorch layers and `window_attention`. Either way masked tokens
are left out of the first LayerNorm and the qkv product (mode "drop" needs their q; masks per head need all).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import REGISTRY, Backend, choose
from .geometry import Windows, relative_position_bias, shift_mask, token_order
from .native import CPU_LIBRARY
from .reference import keep_per_head
from .visible import VisibleTokens
from .window_attention import not_float32, window_attention

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
    if weights.position_bias_table.dim() != 2 or weights.position_bias_table.shape[1] == 0:
        raise ValueError(f"position_bias_table must be (rows, heads), got {tuple(weights.position_bias_table.shape)}")
    channels, heads = x.shape[-1], weights.position_bias_table.shape[-1]
    for name, pair in (("window", window), ("shift", shift)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{name} must be a pair (height, width), got {pair!r}")
    windows = Windows(x.shape[1], x.shape[2], (window[0], window[1]), (shift[0], shift[1])).check()
    _check_weights(x, weights, windows)
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
    if drop_path_scale is not None:
        if drop_path_scale.shape != (2, x.shape[0]):
            raise ValueError(f"drop_path_scale must be {(2, x.shape[0])}, got {tuple(drop_path_scale.shape)}")
        if drop_path_scale.requires_grad:
            raise ValueError("drop_path_scale has no gradient; pass drop_path_scale.detach()")
    inputs = BlockInputs(x, weights, windows, visible, mode, drop_path_scale)
    return choose("swin_block", inputs, backend).run(inputs)


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
    if visible is not None and visible.heads is not None:
        return "per-head masks are not in this kernel"
    return not_float32([x, *(weight for weight in inputs.weights if weight is not None)])


def _run_cpu(inputs: BlockInputs) -> Tensor:
    x, w, windows, visible, mode, drop_path_scale = inputs
    out: Tensor = torch.ops.masked_swin.swin_block_cpu(
        x,
        [*w[:13]],
        w.mask_token if mode == "token" and visible is not None else None,
        None if visible is None else visible.image_keep,
        None if drop_path_scale is None else drop_path_scale.float(),
        *windows.window,
        *windows.shift,
        MODES.index(mode) if visible is not None else 0,
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16,
    )
    return out


REGISTRY["swin_block"] += [
    Backend("cpu", _run_cpu, _cpu_why_not, lambda: CPU_LIBRARY.why_not),
    Backend("composed", _composed, lambda inputs: None),
    Backend("reference", lambda inputs: _composed(inputs, "reference"), lambda inputs: None),
]
