"""Files that lie where the kernel library belongs but are not it, each made from the real one."""

import struct
import sys
from pathlib import Path

import numpy

OTHER_MACHINE = 0xBEEF  # no processor has this number in an ELF header


def foreign_libraries(library: Path) -> dict[str, bytes]:
    """What is wrong with the file -> its content."""
    content = library.read_bytes()
    other_machine = bytearray(content)
    struct.pack_into("<H", other_machine, 18, OTHER_MACHINE)
    return {
        "empty": b"",
        "text": b"not a library\n",
        "other-machine": bytes(other_machine),
        "truncated-header": content[:60],
        "truncated": content[: len(content) // 2],
        "other-library": next(Path(numpy.__file__).parent.rglob("*.so")).read_bytes(),
    }


if __name__ == "__main__":  # python foreign_libraries.py LIBRARY FOLDER: write them to FOLDER
    for what, content in foreign_libraries(Path(sys.argv[1])).items():
        Path(sys.argv[2], what).write_bytes(content)
