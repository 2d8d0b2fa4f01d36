"""Writes docs/triton-tables.md: registers, spills, instructions and memory traffic of the kernels, without a GPU.

    python -m benchmarks.tools.triton_tables           # print the page
    python -m benchmarks.tools.triton_tables --write   # replace it

`make check` compares the page with the kernels (tests/benchmarks/test_triton_tables.py). Nothing in it is a time.
"""

import argparse
from pathlib import Path

import triton

from benchmarks.tools import triton_attention, triton_masks, triton_mlp, triton_swin_block
from benchmarks.tools.triton_resources import compiled_table, counted_table, tiles_of
from tests.support.triton_on_ptxsim import SM_80

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "triton-tables.md"
VERSION = f"With Triton {triton.__version__}."  # the test looks for this line
INTRODUCTION = """# The compiled Triton kernels

Registers, shared memory and counters of every kernel, read without a GPU. [The Triton
page](../kernels/triton/README.md) explains them. `python -m benchmarks.tools.triton_tables --write` writes this page.
"""
# Modules with a TITLE, compiled(), counted() and notes().
PARTS = [triton_attention, triton_masks, triton_mlp, triton_swin_block]


def page() -> str:
    lines = [INTRODUCTION, VERSION]
    for part in PARTS:
        compiled = compiled_table(part.compiled())
        with tiles_of(SM_80):
            counted = counted_table(part.counted())
        lines += ["", f"## {part.TITLE}", "", *compiled, "", *counted]
        for note in part.notes():
            lines += ["", note]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace {PAGE.relative_to(ROOT)}")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
