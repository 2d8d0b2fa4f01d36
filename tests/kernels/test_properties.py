"""Random shapes, shifts and masks against the specification: a few in every run, many in `make check`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.attention_cases import USES, make_case
from tests.support.block_cases import MODES, NAMES, run
from tests.support.native import needs_native

pytestmark = needs_native

FEW = settings(max_examples=15, deadline=None, derandomize=True, database=None)
MANY = settings(max_examples=400, deadline=None, derandomize=True, database=None)


@st.composite
def geometries(draw):
    window = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    shift = draw(st.integers(0, window[0] - 1)), draw(st.integers(0, window[1] - 1))
    grid = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return window, shift, grid


shares = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])


def check(names, truth, ours, eager):
    """Each result within 4 times that of torch (one draw, not a mean), plus roundings of the largest."""
    largest = max(t.abs().max().item() if t.numel() else 0.0 for t in truth)
    for name, exact, value, yardstick in zip(names, truth, ours, eager, strict=True):
        error = (value.double() - exact).norm().item()
        allowed = 4 * (yardstick.double() - exact).norm().item() + 1e-6 * (exact.norm().item() + largest)
        assert error <= allowed, f"{name}: {error:.1e}, allowed {allowed:.1e}"


@st.composite
def attention_cases(draw):
    window, shift, grid = draw(geometries())
    return make_case(
        draw(st.sampled_from(USES)),
        window=window,
        shift=shift,
        grid=grid,
        heads=draw(st.integers(1, 4)),
        head_dim=draw(st.integers(1, 40)),
        keep=draw(shares),
        batch=draw(st.integers(1, 3)),
        scale=draw(st.sampled_from([-0.5, 0.1, 0.37, 1.0])),
        magnitude=draw(st.sampled_from([0.1, 1.0, 3.0])),
        seed=draw(st.integers(0, 9)),
    )


def attention_equals_the_specification(case):
    results = [case.run(dtype, backend) for dtype, backend in ((torch.float64, "reference"), (torch.float32, "cpu"))]
    results.append(case.run(torch.float32, "reference"))
    check(("out", *case.tensors), *([out, *grads.values()] for out, grads in results))


@st.composite
def block_cases(draw):
    window, shift, grid = draw(geometries())
    heads = draw(st.integers(1, 4))
    return draw(st.sampled_from(MODES)), {
        "window": window,
        "shift": shift,
        "size": (window[0] * grid[0], window[1] * grid[1]),
        "heads": heads,
        "channels": heads * draw(st.integers(1, 20)),
        "ratio": draw(st.integers(1, 4)),
        "keep": draw(st.one_of(st.none(), shares)),
        "drop_path": draw(st.booleans()),
        "magnitude": draw(st.sampled_from([0.1, 0.5])),
        "seed": draw(st.integers(0, 9)),
    }


def block_equals_the_specification(case):
    mode, options = case
    pairs = ((torch.float64, "reference"), (torch.float32, "cpu"), (torch.float32, "reference"))
    check(NAMES, *(run(mode, dtype, backend, **options) for dtype, backend in pairs))


@FEW
@given(attention_cases())
def test_attention(case):
    attention_equals_the_specification(case)


@FEW
@given(block_cases())
def test_block(case):
    block_equals_the_specification(case)


@pytest.mark.slow
@MANY
@given(attention_cases())
def test_attention_deep(case):
    attention_equals_the_specification(case)


@pytest.mark.slow
@MANY
@given(block_cases())
def test_block_deep(case):
    block_equals_the_specification(case)
