"""The fused block of the CPU library against the composed block in float64."""

import os
import subprocess
import sys

import pytest
import torch

from masked_swin.kernels import CPU_LIBRARY, SwinBlockWeights, VisibleTokens, Windows, swin_block

pytestmark = pytest.mark.skipif(not CPU_LIBRARY.loaded, reason=f"no native library: {CPU_LIBRARY.why_not}")
MODES = ("zero", "token", "drop", "visible")
NAMES = ("y", "x", *SwinBlockWeights._fields)

SHAPES = {
    "published": {},
    "unshifted, stochastic depth": {"shift": (0, 0), "drop_path": True},
    "dense": {"keep": None},
    "dense, stochastic depth": {"keep": None, "drop_path": True},
    "half visible": {"keep": 0.5},
    "almost all visible": {"keep": 0.97},
    "all visible": {"keep": 1.0},
    "none visible": {"keep": 0.0},
    "few visible": {"keep": 0.02},  # windows with none
    "rectangle": {
        "window": (3, 5),
        "shift": (1, 2),
        "channels": 14,
        "heads": 2,
        "size": (6, 10),
        "ratio": 3,
        "keep": 0.5,
    },
    "one axis shifted": {"window": (4, 2), "shift": (0, 1), "channels": 6, "heads": 6, "size": (8, 6), "keep": 0.4},
    "window 7": {"window": (7, 7), "shift": (3, 3), "channels": 96, "heads": 3, "size": (14, 14), "ratio": 4},
    "window 16, head_dim 30": {"window": (16, 16), "shift": (8, 8), "heads": 2, "size": (32, 16)},
    "180 channels": {"channels": 180, "size": (16, 8)},
    "one window": {"size": (8, 8), "batch": 1},
    "tiny": {"window": (1, 2), "shift": (0, 1), "channels": 3, "heads": 3, "size": (2, 4), "ratio": 1, "keep": 0.5},
    "large scores": {"magnitude": 3.0},
}


def run(
    mode: str,
    dtype: torch.dtype,
    backend: str,
    *,
    keep: float | None = 0.25,
    mask: torch.Tensor | None = None,  # in place of a random one
    window=(8, 8),
    shift=(4, 4),
    channels=60,
    heads=6,
    size=(16, 24),
    ratio=2,
    batch=2,
    drop_path=False,
    magnitude=0.3,
    seed=0,
    autocast=False,
    half=torch.bfloat16,  # of autocast
) -> list[torch.Tensor]:
    """y and the gradients of x and of every weight, for a fixed random cotangent."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    c, hidden, rows = channels, ratio * channels, (2 * window[0] - 1) * (2 * window[1] - 1)
    shapes = [
        (c,),
        (c,),
        (3 * c, c),
        (3 * c,),
        (rows, heads),
        (c, c),
        (c,),
        (c,),
        (c,),
        (hidden, c),
        (hidden,),
        (c, hidden),
    ]
    weights = [
        magnitude * random(*shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 1) for shape in [*shapes, (c,), (c,)]
    ]
    for norm in (0, 7):
        weights[norm] = weights[norm] + 1
    weights[4] = magnitude * random(rows, heads)
    x = 2 * random(batch, *size, c) + 0.5
    windows = Windows(*size, window, shift)
    mask = torch.rand(batch, windows.tokens, generator=generator) < (keep or 0.0) if mask is None else mask
    visible = None if keep is None else VisibleTokens.from_keep(mask, windows)
    scale = torch.tensor([[0.0, 1.1], [1.3, 0.0]])[:, :batch] if drop_path else None
    cotangent = random(*x.shape)
    inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, *weights)]
    options = {"window": window, "shift": shift, "visible": visible, "mode": mode, "drop_path_scale": scale}
    with torch.autocast("cpu", half, enabled=autocast):
        y = swin_block(inputs[0], SwinBlockWeights(*inputs[1:]), backend=backend, **options)
    grads = torch.autograd.grad(y, inputs, cotangent.to(dtype), allow_unused=True)
    return [y.detach(), *(torch.zeros_like(i) if g is None else g for g, i in zip(grads, inputs, strict=True))]


def check_errors(mode, shape, autocast, rounding, backend="cpu", seeds=2):
    """Errors against float64 are at most twice those of torch's own ops, plus one rounding; mean of seeds."""
    errors: dict[str, list[tuple[float, float]]] = {}
    options = SHAPES[shape] if isinstance(shape, str) else shape
    for seed in range(8 if shape == "tiny" else seeds):  # where sums have few terms, errors scatter
        truth = run(mode, torch.float64, "reference", seed=seed, **options)
        ours = run(mode, torch.float32, backend, seed=seed, autocast=autocast, **options)
        eager = run(mode, torch.float32, "reference", seed=seed, autocast=autocast, **options)
        largest = max(t.norm().item() for t in truth)
        for name, exact, value, yardstick in zip(NAMES, truth, ours, eager, strict=True):
            assert value.isfinite().all(), name
            norm = exact.norm().item()
            if norm < 1e-9 * largest:  # vanishes in theory
                assert value.norm() < (1e-2 if autocast else 1e-5) * largest, name
                continue
            errors.setdefault(name, []).append(
                tuple((v.double() - exact).norm().item() / norm for v in (value, yardstick))
            )
    for name, pairs in errors.items():
        ours, eager = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
        assert ours <= 2 * eager + rounding, f"{name}: {ours:.1e}, torch {eager:.1e}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_every_gradient_against_float64(mode, shape):
    check_errors(mode, shape, autocast=False, rounding=1.2e-7)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [(shape, "zero") for shape in SHAPES]
    + [("published", "token"), ("published", "drop")]
    + [(shape, "visible") for shape in ("published", "few visible", "window 7", "180 channels")],
)
def test_bf16_compute_against_float64(mode, shape):
    """Under autocast, products are of bf16; where the processor has none or sizes are odd, of fp32, which is better."""
    check_errors(mode, shape, autocast=True, rounding=0.0)


def test_autocast_changes_only_how_products_are_computed():
    exact, narrow = (run("zero", torch.float32, "cpu", autocast=autocast) for autocast in (False, True))
    bf16 = CPU_LIBRARY.instruction_set == "avx512_bf16"
    for name, a, b in zip(NAMES, exact, narrow, strict=True):
        assert b.dtype == torch.float32
        error = (a - b).norm() / a.norm().clamp(min=1e-30)
        assert (1e-5 < error < 0.02) if bf16 and name not in ("fc2_bias", "mask_token") else torch.equal(a, b), name
    odd = {"channels": 6, "heads": 2}  # head_dim 3
    exact, narrow = (run("zero", torch.float32, "cpu", autocast=autocast, **odd) for autocast in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(exact, narrow, strict=True))


def test_the_fused_kernel_is_what_runs_by_default():
    default = run("zero", torch.float32, None)
    fused = run("zero", torch.float32, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(default, fused, strict=True))


def test_same_bits_for_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run("zero", torch.float32, "cpu", size=(40, 48)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_scratch_kept_from_other_calls_leaves_no_trace(mode, autocast):
    small = {"channels": 14, "heads": 7, "window": (4, 4), "shift": (2, 1), "size": (16, 16), "autocast": autocast}
    alone = run(mode, torch.float32, "cpu", **small)
    for keep in (None, 0.25):  # a larger problem fills every buffer with NaN, which is not swallowed
        poisoned = run(mode, torch.float32, "cpu", magnitude=float("nan"), keep=keep, autocast=autocast)
        assert poisoned[0].isnan().all() or mode == "visible"  # which leaves masked tokens as they are
        after = run(mode, torch.float32, "cpu", **small)
        assert all(torch.equal(a, b) for a, b in zip(alone, after, strict=True))


def test_non_contiguous_input_and_gradient():
    weights = SwinBlockWeights(
        *(torch.randn(shape) for shape in [(12,), (12,), (36, 12), (36,), (49, 3), (12, 12), (12,), (12,), (12,)]),
        *(torch.randn(shape) for shape in [(24, 12), (24,), (12, 24), (12,)]),
    )
    options = {"window": (4, 4), "shift": (2, 2), "backend": "cpu"}
    x = torch.randn(2, 12, 8, 8).permute(0, 2, 3, 1).requires_grad_()
    grad = torch.randn(2, 12, 8, 8).permute(0, 2, 3, 1)
    y = swin_block(x, weights, **options)
    dense = x.detach().contiguous().requires_grad_()
    z = swin_block(dense, weights, **options)
    assert torch.equal(y, z)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(z, dense, grad.contiguous())[0])


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_lesser_instruction_sets(instruction_set):
    """The choice is made once, when the library is first used: force it in a process of its own."""
    code = """
import torch
from tests.kernels.cpu.test_swin_block import MODES, NAMES, run
from masked_swin.kernels import CPU_LIBRARY
rectangle = {"window": (3, 5), "shift": (1, 2), "channels": 14, "heads": 2, "size": (6, 10), "keep": 0.5}
for mode in MODES:
    for shape in ({}, {"keep": None}, rectangle):
        truth = run(mode, torch.float64, "reference", **shape)
        for name, value, exact in zip(NAMES, run(mode, torch.float32, "cpu", **shape), truth):
            assert (value - exact).norm() <= 5e-6 * exact.norm(), (mode, shape, name)
for channels in (3, 10, 17, 18):  # paddings of every kind, with scratch that another size left behind
    for mode in ("zero", "visible"):
        alone = run(mode, torch.float32, "cpu", channels=channels, heads=1)
        run(mode, torch.float32, "cpu", channels=60, magnitude=float("nan"))
        after = run(mode, torch.float32, "cpu", channels=channels, heads=1)
        assert all(torch.equal(a, b) for a, b in zip(alone, after)), (mode, channels)
print(CPU_LIBRARY.instruction_set)
"""
    env = os.environ | {"MASKED_SWIN_CPU_ISA": instruction_set}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    order = ["portable", "avx2", "avx512"]
    assert result.stdout.strip() in order[: order.index(instruction_set) + 1]
