"""The fused block of the CPU library against the composed block in float64."""

import os
import subprocess
import sys

import pytest
import torch

from masked_swin.kernels import CPU_LIBRARY, SwinBlockWeights, swin_block
from tests.support.block_cases import MODES, NAMES, SHAPES, check_errors, run
from tests.support.native import needs_native

pytestmark = needs_native


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
    bf16 = CPU_LIBRARY.bfloat16
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
from tests.support.block_cases import MODES, NAMES, run
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
