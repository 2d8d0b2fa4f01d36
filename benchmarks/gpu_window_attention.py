"""window_attention on a GPU beside what PyTorch has: `make bench-gpu`.

Published shape (60 channels, 6 heads, 8x8 windows, 64 images of 64x64), bf16. Prints the median, with quartiles, of
times between device events, and the peak of allocated memory. The masked forms compute the published attention mask;
dense attention computes it from full windows, as PyTorch's ways have to at any share of masked tokens.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from masked_swin.kernels import VisibleTokens, Windows, window_attention

HEADS, HEAD_DIM, BATCH = 6, 10, 64
WINDOWS = Windows(64, 64, (8, 8), (0, 0))
SCALE = HEAD_DIM**-0.5


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The public module's operators, on (windows, heads, tokens, head_dim)."""
    return ((q * SCALE) @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SCALE)


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[head, query, key]

    return flex_attention(q, k, v, score_mod=add_bias, scale=SCALE)  # type: ignore[return-value]


def dense_ways(device: str, batch: int = BATCH) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """Ways to compute dense window attention, all of the same numbers, and their differentiable inputs."""
    shape = (batch * WINDOWS.count, WINDOWS.size, HEADS, HEAD_DIM)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    bias = torch.randn(HEADS, WINDOWS.size, WINDOWS.size, device=device, dtype=torch.bfloat16).requires_grad_()
    compiled_eager, compiled_flex = torch.compile(eager), torch.compile(flex)

    def heads_first(way: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: way(*(t.transpose(1, 2) for t in (q, k, v)), bias).transpose(1, 2)

    return {
        "eager": heads_first(eager),
        "torch.compile": heads_first(compiled_eager),
        "SDPA": heads_first(sdpa),
        "FlexAttention, compiled": heads_first(compiled_flex),
        "masked_swin": lambda: window_attention(q, k, v, bias, scale=SCALE),
    }, [q, k, v, bias]


def masked_way(share: float, device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    keep = torch.rand(BATCH, WINDOWS.tokens, device=device) >= share
    plan = VisibleTokens.from_keep(keep, WINDOWS)
    rows = torch.randn(len(plan.index), 3, HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16).requires_grad_()
    masked = torch.randn(3, HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16).requires_grad_()
    bias = torch.randn(HEADS, WINDOWS.size, WINDOWS.size, device=device, dtype=torch.bfloat16).requires_grad_()
    q, k, v = masked.unbind()
    return lambda: window_attention(
        *rows.unbind(1), bias, scale=SCALE, visible=plan, masked=(q, k, v), backend="triton"
    ), [rows, masked, bias]


def measure(name: str, run: Callable[[], object], repeats: int = 50) -> None:
    for _ in range(5):
        run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    low, median, high = statistics.quantiles(times, n=4)
    memory = torch.cuda.max_memory_allocated() / 2**20
    print(f"{name:48} {median:9.0f} us [{low:.0f}, {high:.0f}] {memory:8.0f} MiB")


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench-gpu: PyTorch sees no NVIDIA or AMD device")
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    dense, inputs = dense_ways("cuda")
    ways = [(f"{name}, dense", way, inputs) for name, way in dense.items()]
    ways += [(f"masked_swin, {share:.0%} masked", *masked_way(share, "cuda")) for share in (0.5, 0.75, 0.9)]
    truth = dense["eager"]().float()
    for name, way, inputs in ways:
        if name.endswith("dense"):  # nothing is timed that computes something else
            torch.testing.assert_close(way().float(), truth, rtol=0.05, atol=0.05)
        with torch.no_grad():
            measure(f"forward, {name}", way)
        grad = torch.randn_like(way())
        measure(f"forward + backward, {name}", lambda way=way, i=inputs, g=grad: torch.autograd.grad(way(), i, g))


if __name__ == "__main__":
    main()
