"""The public block operation on (B, H, W, C): x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)).

Fused in one kernel where there is one; else composed of PyTorch layers and `window_attention`. Either way masked tokens
are left out of the first LayerNorm and the qkv product (mode "drop" needs their q; masks per head need all); in mode
"visible" they are left out of the whole block.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import REGISTRY, Backend, choose, not_float32, triton_unavailable
from .cpu.library import CPU_LIBRARY
from .geometry import Windows, relative_position_bias, shift_mask, token_order
from .reference import keep_per_head
from .triton.launch import exact_products
from .visible import VisibleTokens
from .window_attention import triton_cannot_attend, window_attention

MODES = ("zero", "token", "drop", "visible")
EPSILON = 1e-5
MAX_TRITON_CHANNELS = 256  # a row is held in registers
MAX_EXACT_TRITON_CHANNELS = 64  # with exact float32 products; PyTorch is faster at more (TRITON.md)


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
            "token": the learned `weights.mask_token`; "drop": no keys at all. "visible": masked tokens do not exist for
            the block, which returns them as they are (the encoder of masked image modelling). "drop" and "visible" have
            no per-head masks.
        drop_path_scale: (2, B), factor of the attention and of the MLP branch per image (stochastic depth); None = 1.
        backend: "cpu", "triton" (fused), "composed" (with the best `window_attention`), "reference" (composed, with the
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
    if visible is not None and visible.heads is not None and mode in ("drop", "visible"):
        raise ValueError(f"mode {mode!r} has no per-head masks; use 'zero' or 'token', or one mask for all heads")
    if visible is not None and mode == "visible":
        return _composed_of_visible(inputs, visible, backend)
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
            keep = keep_per_head(visible)[..., None]
            q, k, v = (torch.where(keep, full, fill) for full, fill in zip((q, k, v), masked, strict=True))
        out = window_attention(q, k, v, bias, scale=scale, window_mask=mask, backend=backend)
    elif mode == "drop":
        split = (channels, 2 * channels)
        (q_weight, kv_weight), (q_bias, kv_bias) = w.qkv_weight.split(split), w.qkv_bias.split(split)
        rows = normed(tokens)
        q = windowed(F.linear(rows[places], q_weight, q_bias).view(-1, heads, head_dim))
        k, v = F.linear(rows[visible.token_index], kv_weight, kv_bias).view(-1, 2, heads, head_dim).unbind(1)
        out = window_attention(q, k, v, bias, scale=scale, visible=visible, backend=backend)
    else:
        qkv = F.linear(normed(tokens[visible.token_index]), w.qkv_weight, w.qkv_bias).view(-1, 3, heads, head_dim)
        q, k, v = qkv.unbind(1)
        out = window_attention(
            *(q, k, v, bias),
            scale=scale,
            visible=visible,
            shared_qkv=(masked[0], masked[1], masked[2]),
            backend=backend,
        )
    branch = F.linear(out.reshape(-1, channels), w.proj_weight, w.proj_bias)
    back = (first_token + order.argsort()).flatten()  # token of the batch -> window place
    scales = None if drop_path_scale is None else drop_path_scale.view(2, -1, 1, 1, 1)
    return _add_mlp(x + _scaled(branch[back].view_as(x), scales, 0), w, scales)


def _composed_of_visible(inputs: BlockInputs, visible: VisibleTokens, backend: str | None) -> Tensor:
    """Mode "visible": the block on compact rows, which then replace their tokens."""
    x, w, windows, _, _, drop_path_scale = inputs
    channels, heads = x.shape[-1], w.position_bias_table.shape[-1]
    tokens = x.reshape(-1, channels)
    # Rows that no window owns hold a copy of some token: they become 0 here, and a spare token receives them.
    owned = torch.arange(len(visible.token_index), device=x.device) < visible.offsets[-1]
    rows = tokens[visible.token_index].masked_fill(~owned[:, None], 0.0)
    normed = F.layer_norm(rows, (channels,), w.norm1_weight, w.norm1_bias, EPSILON)
    q, k, v = F.linear(normed, w.qkv_weight, w.qkv_bias).view(-1, 3, heads, channels // heads).unbind(1)
    scale = (channels // heads) ** -0.5
    out = window_attention(q, k, v, w.position_bias_table, scale=scale, visible=visible, backend=backend)
    branch = F.linear(out.flatten(1), w.proj_weight, w.proj_bias)
    scales = None if drop_path_scale is None else drop_path_scale[:, visible.token_index // windows.tokens, None]
    rows = _add_mlp(rows + _scaled(branch, scales, 0), w, scales)
    to = torch.where(owned, visible.token_index, len(tokens))
    return torch.cat([tokens, tokens.new_zeros(1, channels)]).index_copy(0, to, rows)[:-1].view_as(x)


def _add_mlp(x: Tensor, w: SwinBlockWeights, scales: Tensor | None) -> Tensor:
    hidden = F.layer_norm(x, x.shape[-1:], w.norm2_weight, w.norm2_bias, EPSILON)
    hidden = F.gelu(F.linear(hidden, w.fc1_weight, w.fc1_bias))
    return x + _scaled(F.linear(hidden, w.fc2_weight, w.fc2_bias), scales, 1)


def _scaled(branch: Tensor, scales: Tensor | None, which: int) -> Tensor:
    return branch if scales is None else branch * scales[which].to(branch.dtype)


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


def _triton_why_not(inputs: BlockInputs) -> str | None:
    channels = inputs.x.shape[-1]
    if channels > MAX_TRITON_CHANNELS:
        return f"x has {channels} channels, at most {MAX_TRITON_CHANNELS} fit"
    if channels > MAX_EXACT_TRITON_CHANNELS and exact_products(_product_dtype(inputs.x)):
        return (
            f"exact float32 products of {channels} channels, more than {MAX_EXACT_TRITON_CHANNELS}, are faster in "
            "PyTorch; torch.autocast or torch.set_float32_matmul_precision('high') allows others"
        )
    head_dim = channels // inputs.weights.position_bias_table.shape[-1]
    return triton_cannot_attend(inputs.x, inputs.visible, head_dim, inputs.windows.size)


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _run_triton(inputs: BlockInputs) -> Tensor:
    x, w, windows, visible, mode, drop_path_scale = inputs
    out: Tensor = torch.ops.masked_swin.swin_block_triton(
        x,
        [*w[:13]],
        w.mask_token if mode == "token" and visible is not None else None,
        None if visible is None else visible.image_keep,
        drop_path_scale,
        *windows.window,
        *windows.shift,
        MODES.index(mode) if visible is not None else 0,
        _product_dtype(x),
    )
    return out


REGISTRY["swin_block"] += [
    Backend("cpu", _run_cpu, _cpu_why_not, lambda: CPU_LIBRARY.why_not),
    Backend("triton", _run_triton, _triton_why_not, triton_unavailable),
    Backend("composed", _composed, lambda inputs: None),
    Backend("reference", lambda inputs: _composed(inputs, "reference"), lambda inputs: None),
]
