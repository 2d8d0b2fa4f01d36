"""The rows of window_attention in docs/triton-tables.md."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tools.triton_resources import Compiled, Counted
from masked_swin.kernels import VisibleTokens, Windows, token_mask
from masked_swin.kernels.triton import window_attention as triton_backend
from tests.support.triton_on_ptxsim import Emulator, on_ptxsim

TITLE = "Attention"
CASES = [  # use, dtype, head_dim, side of the window, heads padded to whole sectors
    ("zero", torch.bfloat16, 10, 8, True),
    ("drop", torch.bfloat16, 10, 8, True),
    ("visible", torch.bfloat16, 10, 8, True),
    ("dense", torch.bfloat16, 10, 8, True),
    ("zero", torch.bfloat16, 10, 8, False),
    ("dense", torch.bfloat16, 10, 8, False),
    ("zero", torch.float32, 10, 8, True),
    ("dense", torch.float32, 10, 8, True),
    ("zero", torch.bfloat16, 30, 8, True),
    ("dense", torch.bfloat16, 32, 8, True),
    ("zero", torch.bfloat16, 30, 16, True),
    ("dense", torch.bfloat16, 30, 16, True),
]
BATCH, HEADS, HEAD_DIM = 64, 6, 10
EVERY = 64  # ptxsim runs one program of so many
ACTIVATIONS = {"q_ptr", "k_ptr", "v_ptr", "out_ptr", "grad_ptr", "dq_ptr", "dk_ptr", "dv_ptr"}
# Matrix products of a kernel's formulas; the scores and dp are made in both kernels of large windows.
PRODUCTS = {"forward": 2, "backward": 5, "backward_queries": 3, "backward_keys": 4}


def attend(
    use: str, dtype: torch.dtype, heads: int, head_dim: int, plan: VisibleTokens, padded: bool, backward: bool = True
) -> None:
    """Start every kernel of a call, as the block does, on numbers that do not matter."""
    windows, size = plan.batch * plan.windows.count, plan.windows.size
    width = triton_backend.padded_head_dim(head_dim, dtype) if padded else head_dim
    torch.manual_seed(0)

    def buffer(parts: int, compact: bool) -> list[Tensor]:
        rows = (len(plan.token_index),) if compact else (windows, size)
        tensor = torch.zeros(*rows, parts, heads, width, dtype=dtype)
        tensor[..., :head_dim].normal_()
        return list(tensor[..., :head_dim].unbind(-3))

    def qkv() -> list[Tensor]:
        return [*buffer(1, False), *buffer(2, True)] if use == "drop" else buffer(3, use != "dense")

    def output() -> Tensor:
        return buffer(1, use == "visible")[0]

    masked = torch.randn(3, heads, head_dim).to(dtype) if use == "zero" else None
    bias = torch.randn(heads, size, size).to(dtype)
    lists = (None, None) if use == "dense" else (plan.offsets, plan.position)
    call = triton_backend.prepare(*(*qkv(), bias, masked, *lists, plan.regions, None, head_dim**-0.5), padded=padded)
    out = output()
    stats = torch.empty(heads, 3, out.numel() // (heads * head_dim))
    triton_backend.run_forward(call, out, stats)
    if backward:
        triton_backend.run_backward(call, output(), out, stats, *qkv())


def compiled() -> list[Compiled]:
    found = []
    for use, dtype, head_dim, side, padded in CASES:
        windows = Windows(2 * side, 2 * side, (side, side), (side // 2, side // 2))
        plan = VisibleTokens.from_keep(torch.arange(windows.tokens)[None] % 4 == 0, windows)
        case = f"{use}, {str(dtype)[6:]}, head_dim {head_dim}{' padded' * padded}, {side}x{side}"
        found.append(Compiled(case, partial(attend, use, dtype, 2, head_dim, plan, padded)))
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


def visible_tokens(masked: float, exact: bool) -> VisibleTokens:
    """This share of the tokens masked, in shifted windows."""
    windows = Windows(64, 64, (8, 8), (4, 4))
    key = torch.tensor(1), torch.tensor(0), torch.arange(BATCH)
    return VisibleTokens.from_keep(~token_mask(*key, windows.tokens, masked, windows=windows, exact=exact), windows)


def counted() -> list[Counted]:
    """Every kernel at the published size, and with two heads of 32, a sample of the windows run."""
    found = []
    for name, use, masked, exact, padded, heads, head_dim in [
        ("75 % masked", "zero", 0.75, False, True, HEADS, HEAD_DIM),
        ("exact", "zero", 0.75, True, True, HEADS, HEAD_DIM),
        ("75 % masked, heads not padded", "zero", 0.75, False, False, HEADS, HEAD_DIM),
        ("75 % masked, 2 heads of 32, not padded", "zero", 0.75, False, False, 2, 32),
        ("only visible, 75 % masked", "visible", 0.75, False, True, HEADS, HEAD_DIM),
        ("only visible, 90 % masked", "visible", 0.9, False, True, HEADS, HEAD_DIM),
        ("dense", "dense", 0.75, False, True, HEADS, HEAD_DIM),
    ]:
        plan = visible_tokens(masked, exact)
        windows = BATCH * plan.windows.count
        keys = plan.offsets.diff().double()
        pairs = {"dense": 64.0 * 64, "zero": 64 * keys.mean().item(), "visible": keys.square().mean().item()}[use]
        with on_ptxsim(every=EVERY, checks=False) as emulator:
            attend(use, torch.bfloat16, heads, head_dim, plan, padded)
        for launch in emulator.launches:
            kernel = launch.kernel.removesuffix("_kernel")
            flops = PRODUCTS.get(kernel, 0) * windows * 2 * heads * pairs * head_dim
            if kernel in PRODUCTS or name == "75 % masked":
                found.append(Counted(f"{kernel}, {name}", launch, windows, ACTIVATIONS, flops))
    return [*found, plain_dense()]


def plain_dense() -> Counted:
    windows = BATCH * 64
    qkv = torch.randn(windows, 64, 3, HEADS, HEAD_DIM).bfloat16()
    bias = torch.randn(HEADS, 64, 64).bfloat16()
    out = torch.empty(windows, 64, HEADS, HEAD_DIM).bfloat16()
    emulator = Emulator(every=EVERY)
    constants = {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM, "TOKENS": 64, "BLOCK_D": 16}
    emulator.launch(dense_kernel, (windows, HEADS), *qkv.unbind(2), bias, out, 0.3, num_warps=4, **constants)
    flops = 2 * windows * 2 * HEADS * 64 * 64 * HEAD_DIM
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
