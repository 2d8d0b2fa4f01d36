"""What of window_attention is in the tables of kernels/TRITON.md."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from attention_cases import make_case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_on_ptxsim import Emulator, on_ptxsim
from triton_resources import Compiled, Counted

from masked_swin.kernels import VisibleTokens, Windows, token_mask, triton_backend, window_attention

TITLE = "Attention"
WINDOW_8 = {"heads": 2, "grid": (2, 1), "batch": 1}
WINDOW_16 = {"heads": 2, "head_dim": 30, "window": (16, 16), "shift": (8, 8), "grid": (2, 1), "batch": 1}
CASES: list[tuple[str, torch.dtype, dict[str, Any]]] = [
    ("zero", torch.bfloat16, WINDOW_8),
    ("drop", torch.bfloat16, WINDOW_8),
    ("visible", torch.bfloat16, WINDOW_8),
    ("dense", torch.bfloat16, WINDOW_8),
    ("zero", torch.float32, WINDOW_8),
    ("dense", torch.float32, WINDOW_8),
    ("zero", torch.bfloat16, WINDOW_8 | {"head_dim": 30}),
    ("dense", torch.bfloat16, WINDOW_8 | {"head_dim": 32}),
    ("zero", torch.bfloat16, WINDOW_16),
    ("dense", torch.bfloat16, WINDOW_16),
]
BATCH, HEADS, HEAD_DIM = 64, 6, 10
EVERY = 64  # ptxsim runs one window of so many
ACTIVATIONS = {"q_ptr", "k_ptr", "v_ptr", "out_ptr", "grad_ptr", "dq_ptr", "dk_ptr", "dv_ptr"}
PRODUCTS = {"forward": 2, "inputs": 7, "bias": 2}  # matrix products of a kernel's formulas


def start(use: str, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    """Forward and backward as with many windows: all heads in a program, chunks of several windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_backend, "ENOUGH_WINDOWS", 1)
        patch.setattr(triton_backend, "BIAS_CHUNKS", 1)
        make_case(use, **shape).run(dtype, "triton")


def compiled() -> list[Compiled]:
    found = []
    for use, dtype, shape in CASES:
        window = "x".join(str(side) for side in shape.get("window", (8, 8)))
        case = f"{use}, {str(dtype)[6:]}, head_dim {shape.get('head_dim', 10)}, {window}"
        found.append(Compiled(case, lambda *, case=(use, dtype, shape): start(*case)))
    return found


@triton.jit
def dense_kernel(
    q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The kernel one would write first, for comparison: a program attends all keys for a window and a head."""
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token, dim = tl.arange(0, TOKENS), tl.arange(0, BLOCK_D)
    in_head = (dim < HEAD_DIM)[None, :]
    row = (window * TOKENS + token)[:, None]
    tile = row * (3 * HEADS * HEAD_DIM) + head * HEAD_DIM + dim[None, :]
    q = tl.load(q_ptr + tile, mask=in_head, other=0.0)
    k = tl.load(k_ptr + tile, mask=in_head, other=0.0)
    v = tl.load(v_ptr + tile, mask=in_head, other=0.0)
    bias = tl.load(bias_ptr + head * TOKENS * TOKENS + token[:, None] * TOKENS + token[None, :])
    score = tl.dot(q, tl.trans(k)) * scale + bias
    p = tl.exp(score - tl.max(score, 1)[:, None])
    out = tl.dot(p.to(v.dtype), v) / tl.sum(p, 1)[:, None]
    out_tile = row * (HEADS * HEAD_DIM) + head * HEAD_DIM + dim[None, :]
    tl.store(out_ptr + out_tile, out.to(out_ptr.dtype.element_ty), mask=in_head)


def inputs(exact: bool) -> tuple[tuple[Tensor, ...], Tensor, dict[str, Any]]:
    """Compact q, k, v (views of one tensor), bias and the other arguments, at 75 % of the tokens masked."""
    torch.manual_seed(0)
    windows = Windows(64, 64, (8, 8), (4, 4))
    key = torch.tensor(1), torch.tensor(0), torch.arange(BATCH)
    masked = token_mask(*key, windows.tokens, 0.75, windows=windows, exact=exact)
    plan = VisibleTokens.from_keep(~masked, windows)
    qkv = torch.randn(len(plan.index), 3, HEADS, HEAD_DIM).bfloat16()
    shared = torch.randn(3, HEADS, HEAD_DIM).bfloat16().unbind()
    arguments = {"scale": HEAD_DIM**-0.5, "visible": plan, "masked": shared, "backend": "triton"}
    return qkv.unbind(1), torch.randn(HEADS, windows.size, windows.size).bfloat16(), arguments


def counted() -> list[Counted]:
    """Every kernel at the published size, a sample of the windows run."""
    found = []
    windows = BATCH * 64
    for exact in (False, True):
        qkv, bias, arguments = inputs(exact)
        keys = len(qkv[0]) / windows
        rows = [tensor.requires_grad_() for tensor in qkv]
        with on_ptxsim(every=EVERY) as emulator:
            out = window_attention(*rows, bias, **arguments)
            if not exact:
                torch.autograd.grad(out, rows, torch.randn(out.shape).bfloat16())
        for launch in emulator.launches:
            kernel = launch.kernel.removesuffix("_kernel")
            if kernel in PRODUCTS:
                flops = PRODUCTS[kernel] * windows * product_flops(keys)
                case = f"{kernel}, {'exact' if exact else '75 % masked'}"
                found.append(Counted(case, launch, windows, ACTIVATIONS, flops))
    return [*found, plain_dense()]


def product_flops(keys: float) -> float:
    """Of one of a window's products of queries and keys, all heads."""
    return 2 * HEADS * 64 * keys * HEAD_DIM


def plain_dense() -> Counted:
    windows = BATCH * 64
    qkv = torch.randn(windows, 64, 3, HEADS, HEAD_DIM).bfloat16()
    bias = torch.randn(HEADS, 64, 64).bfloat16()
    out = torch.empty(windows, 64, HEADS, HEAD_DIM).bfloat16()
    emulator = Emulator(every=EVERY)
    constants = {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM, "TOKENS": 64, "BLOCK_D": 16}
    emulator.launch(dense_kernel, (windows, HEADS), *qkv.unbind(2), bias, out, 0.3, num_warps=4, **constants)
    flops = 2 * windows * product_flops(64)
    return Counted("plain dense, for comparison", emulator.launches[0], windows, {"q_ptr", "out_ptr"}, flops)


class _Bytes(TorchDispatchMode):
    """Adds up what eager operators read and write; views are free."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def eager_bytes() -> float:
    """KiB of a window that PyTorch's operators move for the same attention, each counted as read and written once."""
    windows = BATCH * 64
    with _Bytes() as counted, torch.device("meta"):
        q, k, v = torch.empty(3, windows, HEADS, 64, HEAD_DIM, dtype=torch.bfloat16).unbind()
        counted.total = 0
        score = (q * 0.3) @ k.transpose(-2, -1) + torch.empty(HEADS, 64, 64, dtype=torch.bfloat16)
        score = score.view(-1, 64, HEADS, 64, 64) + torch.empty(64, 1, 64, 64, dtype=torch.bfloat16)  # shift mask
        out = score.view(windows, HEADS, 64, 64).softmax(-1) @ v
        out.transpose(1, 2).contiguous()
    return counted.total / 1024 / windows


def notes() -> list[str]:
    return [
        f"PyTorch's eager operators move {eager_bytes():.0f} KiB a window for the same forward pass, each operator's "
        "inputs and outputs counted once."
    ]
