"""Builds csrc/ into one library on torch's stable ABI. All other metadata is in pyproject.toml.

Without torch or a working C++ compiler the package is built without it: pure Python + Triton.
MASKED_SWIN_NATIVE=0 leaves the library out, =1 makes a failure to build it an error.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
# No -march=native: the library chooses among these when it is loaded.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
X86_SETS = {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
INSTRUCTION_SETS = {"portable": []} | (X86_SETS if X86 else {})
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
TORCH_2_10 = "0x020a000000000000"
SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))


class BuildNative(build_ext):
    """Compiles csrc/*.cpp once and csrc/cpu/*.cpp once per instruction set; a failure leaves the library out."""

    def run(self) -> None:
        wanted = os.environ.get("MASKED_SWIN_NATIVE", "")
        targets = [Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions]
        try:
            if wanted != "0":
                return super().run()
        except (Exception, SystemExit) as error:  # whatever a missing or broken tool chain throws
            if wanted == "1":
                raise
            print(f"masked_swin: building without native kernels: {type(error).__name__}: {error}", file=sys.stderr)
        self.extensions = []  # an editable install would look for the file
        for target in targets:
            target.unlink(missing_ok=True)  # of an earlier build, perhaps of other sources

    def build_extension(self, ext: Extension) -> None:
        import torch

        home = Path(torch.__file__).parent
        common = {"include_dirs": ["csrc", str(home / "include")], "depends": ext.depends}
        macros = [("TORCH_TARGET_VERSION", TORCH_2_10), ("TORCH_STABLE_ONLY", None)]
        macros += [("MASKED_SWIN_X86", None)] * X86
        jobs = [(source, "base", macros, []) for source in SOURCES]
        for isa, flags in INSTRUCTION_SETS.items():
            for source in sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")):
                jobs.append((source, isa, [("MASKED_SWIN_ISA", isa)], flags))

        def compile_one(job: tuple[str, str, list[tuple[str, str | None]], list[str]]) -> list[str]:
            source, folder, defines, flags = job
            folder = str(Path(self.build_temp, folder))
            flags = FLAGS + flags
            return self.compiler.compile([source], output_dir=folder, macros=defines, extra_postargs=flags, **common)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(compile_one, jobs) for name in names]
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        # No run path: torch is imported first, and its library found by name among those already loaded.
        torch_cpu = {"libraries": ["torch_cpu"], "library_dirs": [str(home / "lib")]}
        self.compiler.link_shared_object(objects, target, extra_postargs=LDFLAGS, target_lang="c++", **torch_cpu)


class AbiWheel(bdist_wheel):
    """The library uses no Python API at all: one wheel serves every CPython."""

    def finalize_options(self) -> None:
        self.py_limited_api = "cp310"
        super().finalize_options()


if __name__ == "__main__":  # tests/checks/portable.sh imports the flags
    setup(
        ext_modules=[
            Extension(
                "masked_swin.kernels.cpu._cpu",
                sources=SOURCES,
                depends=[str(path) for path in Path("csrc").rglob("*.h")],
                py_limited_api=True,
            )
        ],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": AbiWheel},
    )
