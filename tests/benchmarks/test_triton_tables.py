"""kernels/TRITON.md says what the kernels of today compile to."""

import pytest
import triton


@pytest.mark.slow
@pytest.mark.timeout(1800)  # without a cache of compiled kernels
def test_tables_are_those_of_todays_kernels():
    from benchmarks.tools import triton_tables

    page = triton_tables.PAGE.read_text()
    if f"With Triton {triton.__version__}." not in page:
        pytest.skip(f"the tables were made with another Triton than {triton.__version__}")
    assert triton_tables.tables() in page, "run benchmarks/triton_tables.py --write"
