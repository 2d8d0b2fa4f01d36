"""Builds a library of each folder of LIBRARIES on torch's stable ABI. All other metadata is in pyproject.toml.

A library that cannot be built, as without torch or a working C++ compiler, is left out: PyTorch and Triton remain.
MASKED_SWIN_NATIVE=0 leaves all libraries out; =1 makes a failure an error. MASKED_SWIN_CXXFLAGS and MASKED_SWIN_LDFLAGS
add flags.
"""

import os
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MACHINE = platform.machine().lower() if sys.maxsize > 2**32 else ""
X86, ARM = MACHINE in ("x86_64", "amd64"), MACHINE in ("aarch64", "arm64")
# No -march=native: the library chooses among these when it is loaded.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
X86_SETS = {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
ARM_SETS = {"neon_bf16": ["-march=armv8.2-a+bf16"]}
INSTRUCTION_SETS = {"portable": []} | (X86_SETS if X86 else ARM_SETS if ARM else {})
FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
FLAGS += [
    "-Wall",
    "-Wno-psabi",
    "-Wno-unused-function",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-Wno-unknown-pragmas",
]
FLAGS += os.environ.get("MASKED_SWIN_CXXFLAGS", "").split()
LDFLAGS = os.environ.get("MASKED_SWIN_LDFLAGS", "").split()
NATIVE = os.environ.get("MASKED_SWIN_NATIVE", "")
TORCH_2_10 = "0x020a000000000000"


class CompileJob(NamedTuple):
    """One source, compiled into a folder of objects."""

    source: str
    folder: str
    macros: list[tuple[str, str | None]]
    flags: tuple[str, ...] = ()


def build_cpu(command: "BuildNative", ext: Extension) -> None:
    """Compile csrc/cpu once and csrc/cpu/kernels once per instruction set."""
    import torch

    home = Path(torch.__file__).parent
    macros: list[tuple[str, str | None]] = [("TORCH_TARGET_VERSION", TORCH_2_10), ("TORCH_STABLE_ONLY", None)]
    macros += [("MASKED_SWIN_X86", None)] * X86 + [("MASKED_SWIN_ARM_BF16", None)] * ARM
    jobs = [CompileJob(source, "base", macros) for source in ext.sources]
    for isa, flags in INSTRUCTION_SETS.items():
        jobs += [CompileJob(kernel, isa, [("MASKED_SWIN_ISA", isa)], tuple(flags)) for kernel in sources("cpu/kernels")]

    def compile_one(job: CompileJob) -> list[str]:
        return command.compiler.compile(
            [job.source],
            output_dir=str(Path(command.build_temp, job.folder)),
            macros=job.macros,
            include_dirs=["csrc", str(home / "include")],
            extra_postargs=[*FLAGS, *job.flags],
            depends=ext.depends,
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [name for names in pool.map(compile_one, jobs) for name in names]
    target = command.get_ext_fullpath(ext.name)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    # No run path: torch is imported first, and its library found by name among those already loaded.
    command.compiler.link_shared_object(
        objects,
        target,
        libraries=["torch_cpu"],
        library_dirs=[str(home / "lib")],
        extra_postargs=LDFLAGS,
        target_lang="c++",
    )


# csrc/FOLDER becomes masked_swin/kernels/FOLDER/_FOLDER.abi3.so.
LIBRARIES = {"cpu": build_cpu}


def sources(folder: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", folder).glob("*.cpp"))


def extension(folder: str) -> Extension:
    headers = [str(path) for path in Path("csrc").rglob("*.h")]
    return Extension(f"masked_swin.kernels.{folder}._{folder}", sources(folder), depends=headers, py_limited_api=True)


@contextmanager
def leaving_out(what: str) -> Iterator[None]:
    """Report a failure to build and go on, unless MASKED_SWIN_NATIVE=1."""
    try:
        yield
    except (Exception, SystemExit) as error:  # whatever a missing or broken tool chain throws
        if NATIVE == "1":
            raise
        print(f"masked_swin: building without native kernels ({what}): {error!r}", file=sys.stderr)


class BuildNative(build_ext):
    """Builds each library apart, and removes the file of an earlier build of one that is left out."""

    def run(self) -> None:
        targets = [(ext, Path(self.get_ext_fullpath(ext.name))) for ext in self.extensions]
        self.built: list[Extension] = []
        if NATIVE != "0":
            with leaving_out("all"):
                super().run()
        self.extensions = self.built  # an editable install looks for the files of these
        for ext, target in targets:
            if ext not in self.built:
                target.unlink(missing_ok=True)

    def build_extensions(self) -> None:
        for ext in self.extensions:
            folder = ext.name.split(".")[-2]
            with leaving_out(folder):
                LIBRARIES[folder](self, ext)
                self.built.append(ext)
        self.extensions = self.built


class Wheel(bdist_wheel):
    """The libraries use no Python API: one wheel serves every CPython. Without libraries it is tagged pure Python.

    pip would take a pure wheel with the tag of this machine from its cache after a compiler is installed.
    """

    def finalize_options(self) -> None:
        self.py_limited_api = "cp310"
        super().finalize_options()

    def run(self) -> None:
        self.run_command("build")
        if not self.get_finalized_command("build_ext").extensions:
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()


if __name__ == "__main__":  # tests/checks/portable.sh imports the flags
    setup(
        ext_modules=[extension(folder) for folder in LIBRARIES],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    )
