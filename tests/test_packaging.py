"""What an installation relies on: no kernel library or a foreign one, pins, README. The slower proofs: tests/checks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.checks.foreign_libraries import foreign_libraries

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LIBRARY = "cpu/_cpu.abi3.so"
FOLDERS = {"masked_swin": "masked_swin", "kernels": "masked_swin/kernels", "train": "masked_swin/train"}


def run(arguments, folder, **environment):
    """Run Python with the packages below `folder` before the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environment}
    environment.pop("MASKED_SWIN_CPU_ISA", None)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def installed(tmp_path):
    """The package as a wheel lays it out, without its library."""
    for source, target in FOLDERS.items():
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def check_without_kernels(folder, reason):
    done = run([ROOT / "tests/checks/without_kernels.py", folder, reason], folder)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_no_library(installed):
    check_without_kernels(installed, "built without its C++ kernels")


@pytest.mark.parametrize("what", ["empty", "truncated", "other-machine", "other-library"])
def test_foreign_library(installed, what):
    library = ROOT / "kernels" / LIBRARY
    if not library.exists():
        pytest.skip("the kernels were not built")
    (installed / FOLDERS["kernels"] / LIBRARY).write_bytes(foreign_libraries(library)[what])
    check_without_kernels(installed, Path(LIBRARY).name)


def test_build_without_compiler(tmp_path):
    for folder in (*FOLDERS, "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    stale = tmp_path / "kernels" / LIBRARY
    stale.touch()
    build = ["setup.py", "--quiet", "build_ext", "--inplace"]
    no_compiler = {"CC": "/bin/false", "CXX": "/bin/false"}

    done = run(build, tmp_path, MASKED_SWIN_NATIVE="", **no_compiler)
    assert done.returncode == 0, done.stderr
    assert "building without native kernels" in done.stderr
    assert not stale.exists()

    assert run(build, tmp_path, MASKED_SWIN_NATIVE="1", **no_compiler).returncode != 0


def test_a_wheel_without_libraries_is_tagged_pure_python(tmp_path):
    """Else pip takes it from its cache after a compiler is installed."""
    for folder in (*FOLDERS, "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    done = run(["setup.py", "--quiet", "bdist_wheel"], tmp_path, MASKED_SWIN_NATIVE="0")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


def test_readme_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert examples
    names = {}  # one session: later examples use what earlier ones made
    for example in examples:
        exec(example, names)


def test_every_folder_of_the_package_is_listed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        tools = tomllib.load(file)["tool"]
    mapped = {ROOT / folder: name for name, folder in tools["setuptools"]["package-dir"].items()}
    sources = [(folder, name, path) for folder, name in mapped.items() for path in folder.rglob("*.py")]
    modules = {".".join([name, *path.relative_to(folder).with_suffix("").parts]) for folder, name, path in sources}
    packages = {module.removesuffix(".__init__") for module in modules if module.endswith(".__init__")}
    assert packages == set(tools["setuptools"]["packages"])
    assert {module for table in tools["mypy"]["overrides"] for module in table["module"]} <= modules


def test_every_requirement_is_pinned():
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    active = {_normal(pin.name): pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()}
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    required = project["build-system"]["requires"] + project["project"]["dependencies"]
    required += [name for extra in project["project"]["optional-dependencies"].values() for name in extra]
    for requirement in map(Requirement, required):
        if requirement.name == "masked-swin":
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            (pin,) = active[_normal(requirement.name)]
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{requirement} does not admit the pinned {pin.version}"


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()
