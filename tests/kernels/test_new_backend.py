"""A new backend is a module and one line: the tests of its operations appear, and pass, by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from masked_swin.kernels import window_attention

ROOT = Path(__file__).parents[2]
TESTS = [f"tests/kernels/test_{name}.py" for name in ("window_attention", "backends", "transforms", "ops")]


def run_with_toy(*arguments):
    """pytest with the BACKENDS of `tests.support.toy_backend` collected, as `kernels/__init__.py` does it."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.toy_backend", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_its_tests_appear_and_pass():
    ids = [line for line in run_with_toy("--collect-only", *TESTS).splitlines() if "toy" in line]
    assert sum("test_output_and_every_gradient_against_float64" in test for test in ids) == 4 * 13  # uses, shapes
    assert sum("test_every_backend_computes_what_the_reference_does" in test for test in ids) == 4
    assert "passed" in run_with_toy(*TESTS, "-k", "toy and not test_output_and_every_gradient")


def test_it_is_not_there_otherwise():
    with pytest.raises(ValueError, match="has no backend 'toy'"):
        window_attention(*torch.zeros(3, 1, 4, 1, 2).unbind(), torch.zeros(1, 4, 4), scale=1.0, backend="toy")
