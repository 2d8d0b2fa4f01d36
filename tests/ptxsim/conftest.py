"""Fixtures: the CUDA module compiled once, and the package on the path."""

import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture(scope="session")
def cuda(tmp_path_factory):
    """kernels.cu as a ptxsim module."""
    from tests.support import ptxsim

    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not pathlib.Path(nvcc).exists():
        pytest.skip("nvcc is not installed")
    out = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    command = [nvcc, "-ptx", "-arch=sm_80", "-lineinfo", "-w", "-o", out, HERE / "kernels.cu"]
    subprocess.run(command, check=True)
    return ptxsim.load(out.read_text())
