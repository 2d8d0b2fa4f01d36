import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch: results must not depend on it, run times do

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible_and_poisoned():
    """Same random numbers for every test, and memory from `empty` filled with NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
