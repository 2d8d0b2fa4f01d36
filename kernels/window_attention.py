"""The operation `window_attention`: contract, checks and the choice of a backend."""

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import choose, run_empty
from .checks import require_tensor
from .geometry import relative_position_bias
from .visible import VisibleTokens


class AttentionInputs(NamedTuple):
    """The inputs of the operation; `bias` is dense."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    scale: float
    visible: VisibleTokens | None
    shared_qkv: tuple[Tensor, Tensor, Tensor] | None
    window_mask: Tensor | None

    def arguments(self) -> tuple[object, ...]:
        compact = self.visible if self.k.dim() == 3 else None
        return (
            self.q,
            self.k,
            self.v,
            self.bias,
            None if self.shared_qkv is None else torch.stack(self.shared_qkv),
            None if compact is None else compact.offsets,
            None if compact is None else compact.position,
            None if self.visible is None else self.visible.regions,
            self.window_mask,
            self.scale,
        )


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float,
    visible: VisibleTokens | None = None,
    shared_qkv: tuple[Tensor, Tensor, Tensor] | None = None,
    window_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v in every window, for all tokens or for the visible ones only.

    Tensors are windowed, (W, tokens, heads, head_dim) for all W windows of the batch, or compact, (R, heads, head_dim)
    with the entries of `visible`. The layout of q, k and v selects what is computed:

    | q | k, v | shared_qkv | use |
    |---|---|---|---|
    | windowed | windowed | - | dense attention; T queries and S keys may differ |
    | compact | compact | given | attention mask: masked tokens share one q, k, v and receive an output |
    | windowed | compact | - | drop: masked keys are left out; a query without any key gets 0 |
    | compact | compact | - | visible-only: masked tokens do not exist |

    With per-head masks (`visible.heads`), compact tensors are (R, head_dim), one entry per token and head.

    Args:
        q, k, v: one floating dtype, one device.
        bias: (heads, T, S), or with `visible` a position bias table ((2h-1)*(2w-1), heads). Has a gradient. Without
            `visible`, expand a table with `relative_position_bias(table, (h, w))` first.
        scale: factor of q k^T, usually head_dim ** -0.5.
        visible: the visible tokens of the mask, with the shift regions of their windows. Pairs of different regions
            get -100 added to the score if masked tokens take part (SwinIR's numbers). Else they are left out.
        shared_qkv: q, k, v of every masked token, each (heads, head_dim). The published mask shares the qkv bias.
        window_mask: (M, T, S), added to the score of window w as window_mask[w % M], for nets that bring one. M divides
            W, and windows are ordered image by image. Has no gradient. Entries at or below -1e30, as -inf, exclude the
            key. A query without any key gets 0.
        backend: a name, or None for the first that can run; `backend_report()` lists them.

    Returns:
        The shape of q; (W, T, heads, head_dim) with shared_qkv. The dtype is that of q. Under autocast each backend
        documents its own: C++ computes and returns float32, device kernels the autocast dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, or if the backend cannot run.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v), ("bias", bias)):
        require_tensor(name, tensor, "of the layout in the docstring")
    if bias.dim() == 2:
        if visible is None:
            raise ValueError(
                "a position bias table needs `visible` for its window: expand it with relative_position_bias(...)"
            )
        bias = relative_position_bias(bias, visible.windows.window)
    inputs = AttentionInputs(q, k, v, bias, scale, visible, shared_qkv, window_mask)
    windows = _check(inputs)
    run = choose("window_attention", inputs, backend).run
    out: Tensor = run(inputs) if windows else run_empty("window_attention", inputs)
    return out


def _check(inputs: AttentionInputs) -> int:
    """Return the number of windows of the batch; raise ValueError for what does not fit."""
    q, k, v, bias, _, visible, shared_qkv, window_mask = inputs
    compact_dim = 3 if visible is None or visible.heads is None else 2
    named = {"q": q, "k": k, "v": v, "bias": bias}
    if shared_qkv is not None:
        if visible is None or k.dim() == 4:
            raise ValueError("shared q, k, v need `visible` and compact k, v")
        named |= dict(zip(("shared q", "shared k", "shared v"), shared_qkv, strict=True))
    if window_mask is not None:
        named["window_mask"] = window_mask
    for name, tensor in named.items():
        require_tensor(name, tensor, "of the layout in the docstring")
        if not tensor.is_floating_point() or tensor.device != q.device:
            raise ValueError(
                f"{name} must be floating and on {q.device} as q is, got {tensor.dtype} on {tensor.device}"
            )
        if tensor.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise ValueError(f"{name} is {tensor.dtype} but q is {q.dtype}; convert one, or use torch.autocast")
    if bias.dim() != 3:
        raise ValueError(f"bias must be (heads, queries, keys) or a table (rows, heads), got {tuple(bias.shape)}")
    heads, queries, keys = bias.shape
    per_head = () if compact_dim == 2 else (heads,)
    head_dim = q.shape[-1]
    if visible is not None and (queries, keys) != (visible.windows.size,) * 2:
        raise ValueError(f"bias has {queries} queries and {keys} keys, but a window has {visible.windows.size} tokens")
    if visible is not None and visible.heads not in (None, heads):
        raise ValueError(f"visible has masks for {visible.heads} heads, but bias has {heads} heads")
    windows = q.shape[0] if visible is None else visible.batch * visible.windows.count
    for name, tensor, tokens in (("q", q, queries), ("k", k, keys), ("v", v, keys)):
        expected: tuple[int, ...] = (windows, tokens, heads, head_dim)
        if tensor.dim() != 4 and visible is not None:
            expected = (len(visible.token_index), *per_head, head_dim)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {expected} to fit q and bias, got {tuple(tensor.shape)}")
    if k.dim() != v.dim() or (q.dim() < 4 and k.dim() == 4):
        raise ValueError("k and v must both be windowed or both compact, and compact if q is")
    for name, tensor in zip(("q", "k", "v"), shared_qkv or (), strict=False):
        if tuple(tensor.shape) != (heads, head_dim):
            raise ValueError(f"shared {name} must be {(heads, head_dim)}, got {tuple(tensor.shape)}")
    if window_mask is not None:
        if (
            window_mask.dim() != 3
            or tuple(window_mask.shape[1:]) != (queries, keys)
            or windows % max(len(window_mask), 1)
        ):
            raise ValueError(
                f"window_mask must be (M, {queries}, {keys}) with M dividing {windows}, got {tuple(window_mask.shape)}"
            )
        if window_mask.requires_grad:
            raise ValueError(
                "window_mask has no gradient; put what is learned into `bias`, or pass window_mask.detach()"
            )
    return windows
