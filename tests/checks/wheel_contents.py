"""What a wheel file holds, and what it says that it runs on.

python wheel_contents.py WHEEL, with the environment variable MANYLINUX: its tag, or empty.
"""

import os
import sys
import sysconfig
import zipfile
from pathlib import Path

wheel = Path(sys.argv[1])
platform = os.environ["MANYLINUX"] or sysconfig.get_platform().replace("-", "_").replace(".", "_")
tag = wheel.stem.split("-", 2)[2]
assert tag == f"cp310-abi3-{platform}", f"{wheel.name} has the tag {tag}"

with zipfile.ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if not name.endswith("/")]  # auditwheel adds folders
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
info = metadata.split("/")[0]

tops = {name.split("/")[0] for name in names} - {info}
assert tops == {"masked_swin"}, f"top-level names {sorted(tops)}"
for name in (
    "kernels/cpu/_cpu.abi3.so",
    "kernels/triton/tuned.json",
    "py.typed",
    "train/commands/report.html.j2",
    "kernels/reference.py",
    "train/cli.py",
):
    assert f"masked_swin/{name}" in names, f"{name} is missing"
foreign = [
    name for name in names if name.split("/")[0] == "masked_swin" and Path(name).suffix not in {".py", ".so", ".j2"}
]
assert sorted(foreign) == ["masked_swin/kernels/triton/tuned.json", "masked_swin/py.typed"], foreign
assert f"{info}/licenses/LICENSE" in names
assert "\nLicense-Expression: Apache-2.0\n" in text
assert "\nRequires-Python: >=3.10\n" in text

print(f"{wheel.name}, {wheel.stat().st_size / 1024:.0f} KiB, {len(names)} files, top-level names: {', '.join(tops)}")
