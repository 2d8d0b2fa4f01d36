"""docs/triton-tables.md shows what the kernels of today compile to."""

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)  # without a cache of compiled kernels
def test_tables_are_those_of_todays_kernels():
    from benchmarks.tools import triton_tables

    page = triton_tables.PAGE.read_text()
    if triton_tables.VERSION not in page:
        pytest.skip(f"the page is not of this Triton: {triton_tables.VERSION}")
    assert triton_tables.page() == page, "run python -m benchmarks.tools.triton_tables --write"
