import os

# Before torch. Results must not depend on it, run times do: the workers of a run share the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # a worker inherits the setting of the process that started it
    cores, workers = os.cpu_count() or 1, int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // workers))
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")

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
