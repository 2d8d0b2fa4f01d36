"""What the compiled Triton kernels are, read without a GPU: registers, spills, instructions, and memory traffic.

    python benchmarks/triton_tables.py           # print the tables
    python benchmarks/triton_tables.py --write   # replace them in kernels/TRITON.md

`make check` compares the file with them (tests/test_triton_tables.py). Nothing here is a time.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the emulator, and inputs

from attention_cases import make_case
from triton_on_ptxsim import Compiler, Emulator, Launch, in_place_of_launch, on_ptxsim

from masked_swin.kernels import VisibleTokens, Windows, token_mask, triton_backend, window_attention

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "kernels" / "TRITON.md"
START, END = "<!-- written by benchmarks/triton_tables.py -->\n", "<!-- end -->\n"
TARGETS = [
    GPUTarget("cuda", 80, 32),
    GPUTarget("cuda", 90, 32),
    GPUTarget("cuda", 100, 32),
    GPUTarget("hip", "gfx942", 64),
]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

WINDOW_8 = {"heads": 2, "grid": (2, 1), "batch": 1}
WINDOW_16 = {"heads": 2, "head_dim": 30, "window": (16, 16), "shift": (8, 8), "grid": (2, 1), "batch": 1}
COMPILED = [
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
INSTRUCTIONS = {
    "mma.sync": r"\bmma\.sync\.",
    "wgmma": r"\bwgmma\.mma_async\.",
    "tcgen05": r"\btcgen05\.mma\.",
    "mfma": r"\bv_mfma_",
}

BATCH, HEADS, HEAD_DIM = 64, 6, 10
EVERY = 64  # ptxsim runs one window of so many


def resources(launch: Launch, target: GPUTarget) -> tuple[int, int]:
    """Registers of a thread, and bytes (NVIDIA: of stack) or registers (AMD) that it spills."""
    if target.backend == "hip":
        assembly = launch.compiled.asm["amdgcn"]
        registers, spills = (
            int(re.search(rf"\.{name}: +(\d+)", assembly)[1])  # type: ignore[index]
            for name in ("vgpr_count", "vgpr_spill_count")
        )
        return registers, spills
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups()  # type: ignore[union-attr]
    return int(registers), int(stack)


def compiled_table() -> list[str]:
    lines = [
        "| use | dtype | head_dim | window | kernel | " + " | ".join(str(t.arch) for t in TARGETS) + " |",
        "|---|---|---|---|---|" + "---|" * len(TARGETS),
    ]
    for use, dtype, shape in COMPILED:
        columns: dict[str, list[str]] = {}
        for target in TARGETS:
            with pytest.MonkeyPatch.context() as patch, in_place_of_launch(Compiler(target)) as compiler:
                patch.setattr(triton_backend, "ENOUGH_WINDOWS", 1)  # what many windows get:
                patch.setattr(triton_backend, "BIAS_CHUNKS", 1)  # all heads in a program, chunks of several windows
                make_case(use, **shape).run(dtype, "triton")
            for launch in compiler.launches:
                registers, spills = resources(launch, target)
                assembly = launch.compiled.asm["amdgcn" if target.backend == "hip" else "ptx"]
                matrix = [name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, assembly)]
                text = " ".join([f"{registers} / {launch.compiled.metadata.shared / 1024:.1f}", *matrix])
                columns.setdefault(launch.kernel, []).append(text + (f" **spills {spills}**" if spills else ""))
        window = "x".join(str(side) for side in shape.get("window", (8, 8)))  # type: ignore[attr-defined]
        for kernel in ("forward_kernel", "inputs_kernel", "bias_kernel"):
            cells = " | ".join(columns[kernel])
            row = f"{use} | {str(dtype)[6:]} | {shape.get('head_dim', 10)} | {window} | {kernel[:-7]} | {cells}"
            lines.append(f"| {row} |")
    return lines


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


def launches() -> list[tuple[str, Launch, float]]:
    """(name, launch, visible keys of a window) of every kernel, a sample of the windows run."""
    found = []
    for exact in (False, True):
        qkv, bias, arguments = inputs(exact)
        keys = len(qkv[0]) / (BATCH * 64)
        rows = [tensor.requires_grad_() for tensor in qkv]
        with on_ptxsim(every=EVERY) as emulator:
            out = window_attention(*rows, bias, **arguments)
            if not exact:
                torch.autograd.grad(out, rows, torch.randn(out.shape).bfloat16())
        name = "exact" if exact else "75 % masked"
        forward_and_backward = (x for x in emulator.launches if x.kernel != "rows_of_places_kernel")
        found += [(f"{x.kernel[:-7]}, {name}", x, keys) for x in forward_and_backward]
    windows = BATCH * 64
    qkv = torch.randn(windows, 64, 3, HEADS, HEAD_DIM).bfloat16()
    out = torch.empty(windows, 64, HEADS, HEAD_DIM).bfloat16()
    emulator = Emulator(every=EVERY)
    constants = {"HEADS": HEADS, "HEAD_DIM": HEAD_DIM, "TOKENS": 64, "BLOCK_D": 16}
    emulator.launch(dense_kernel, (windows, HEADS), *qkv.unbind(2), bias, out, 0.3, num_warps=4, **constants)
    return [*found, ("plain dense, for comparison", emulator.launches[0], 64.0)]


ACTIVATIONS = {"q_ptr", "k_ptr", "v_ptr", "out_ptr", "grad_ptr", "dq_ptr", "dk_ptr", "dv_ptr"}
PRODUCTS = {"forward": 2, "inputs": 7, "bias": 2, "plain": 2}  # matrix products of a kernel's formulas


def traffic_row(name: str, launch: Launch, keys: float) -> str:
    stats = launch.stats
    assert stats is not None
    of = {launch.arguments[int(a.name.split()[1])]: a for a in stats.arguments}
    activations = [a for n, a in of.items() if n in ACTIVATIONS]
    others = [a for n, a in of.items() if n not in ACTIVATIONS]
    asked = sum(a.requested_read + a.requested_written for a in activations)
    distinct = sum(a.sectors_read + a.sectors_written for a in activations)
    again = sum(a.requested_read + a.requested_written for a in others)
    per_window = BATCH * 64 / (stats.ctas_total / stats.ctas_run)  # windows' worth of work that was run
    useful = PRODUCTS[re.split("[, ]", name)[0]] * 2 * HEADS * 64 * keys * HEAD_DIM * per_window
    kib = 32 / 1024 / per_window
    cells = [
        f"{stats.ctas_total}",
        f"{distinct * kib:.1f}",
        f"{asked / distinct:.2f}",
        f"{again * kib:.1f}",
        f"{stats.conflict_rate:.1%}",
        f"{stats.mma_flops / useful:.2f}",
        f"{stats.issued_instructions / per_window:.0f}",
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


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


def traffic_table() -> list[str]:
    return [
        "| kernel | programs | activations, KiB | asked for / distinct | other arguments, KiB | bank conflicts "
        "| matrix FLOPs / useful | instructions |",
        "|---|---|---|---|---|---|---|---|",
        *(traffic_row(*launch) for launch in launches()),
        "",
        f"PyTorch's eager operators move {eager_bytes():.0f} KiB a window for the same forward pass, each operator's "
        "inputs and outputs counted once.",
    ]


def tables() -> str:
    head = f"With Triton {triton.__version__}."  # the test looks for this line
    return "\n".join([head, "", *compiled_table(), "", *traffic_table(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {PAGE.relative_to(ROOT)}")
    if not parser.parse_args().write:
        print(tables())
        return
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + tables() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
