"""What the compiled Triton kernels are, read without a GPU: registers, spills, instructions, and memory traffic.

    python benchmarks/triton_tables.py           # print the tables
    python benchmarks/triton_tables.py --write   # replace them in kernels/TRITON.md

`make check` compares the file with them (tests/test_triton_tables.py). Nothing here is a time.
"""

import argparse
from pathlib import Path

import triton

from benchmarks.tools import triton_attention, triton_masks, triton_mlp, triton_swin_block
from benchmarks.tools.triton_resources import compiled_table, counted_table, tiles_of
from tests.support.triton_on_ptxsim import SM_80

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "kernels" / "triton" / "README.md"
START, END = "<!-- written by benchmarks/triton_tables.py -->\n", "<!-- end -->\n"
# Modules with a TITLE, compiled(), counted() and notes().
PARTS = [triton_attention, triton_masks, triton_mlp, triton_swin_block]


def tables() -> str:
    lines = [f"With Triton {triton.__version__}."]  # the test looks for this line
    for part in PARTS:
        compiled = compiled_table(part.compiled())
        with tiles_of(SM_80):
            counted = counted_table(part.counted())
        lines += ["", f"### {part.TITLE}", "", *compiled, "", *counted, "", *part.notes()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace the tables in {PAGE.relative_to(ROOT)}")
    if not parser.parse_args().write:
        print(tables())
        return
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(before + START + tables() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
