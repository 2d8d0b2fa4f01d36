import os

# Before torch. Results must not depend on it, run times do: one worker of several gets one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import pytest
import torch

# Triton has no wheels for some platforms; ptxsim's own tests look for themselves.
collect_ignore_glob = [] if find_spec("triton") else ["kernels/triton/*", "benchmarks/test_triton_tables.py"]


@pytest.fixture(autouse=True)
def _reproducible_and_poisoned():
    """Same random numbers for every test, and memory from `empty` filled with NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _compiled_kernels_of_this_run(tmp_path_factory):
    """Triton keeps what it compiles in the home folder, which may be read-only or hold another version's.

    The workers of a run share a folder.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    os.environ["TRITON_CACHE_DIR"] = str(base / "triton")


@pytest.fixture(scope="session")
def interpreted():
    """Calls a function in a process whose Triton interprets; Triton decides that when it is imported."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            process.submit(int).result()  # starts it
        yield lambda function, *args, **options: process.submit(function, *args, **options).result()
