"""Runs the Triton backend on CPU tensors: kernels compiled for a GPU that need not be there, executed by ptxsim."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ptxsim import Stats, launch_triton
from torch import Tensor

SIGNATURES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def compile_kernel(kernel: Any, arguments: tuple, num_warps: int, constants: dict[str, Any], target: Any) -> Any:
    """What Triton compiles for these arguments, on any machine. None arguments are constants, as at run time."""
    from triton import compile as triton_compile
    from triton.compiler import ASTSource

    from masked_swin.kernels.triton_launch import NUM_STAGES

    signature, attributes = {}, {}
    constants = dict(constants)
    for position, name in enumerate(kernel.arg_names):
        if name in constants or arguments[position] is None:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
        elif isinstance(arguments[position], Tensor):
            signature[name] = SIGNATURES[arguments[position].dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(arguments[position], float) else "i32"
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton_compile(source, target=target, options={"num_warps": num_warps, "num_stages": NUM_STAGES})


@dataclass
class Emulator:
    """Takes the place of `triton_launch.launch`; keeps the counters of every launch."""

    checks: bool = True
    capability: int = 80
    launches: list[tuple[str, Any, Stats]] = field(default_factory=list)
    sample: int | None = None  # run only so many programs of a grid, evenly spaced

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
        from triton.backends.compiler import GPUTarget

        compiled = compile_kernel(kernel, arguments, num_warps, constants, GPUTarget("cuda", self.capability, 32))
        given = [argument for argument in arguments if argument is not None]
        programs = grid[0] * (grid[1] if len(grid) > 1 else 1) * (grid[2] if len(grid) > 2 else 1)
        options: dict[str, Any] = {"initcheck": self.checks, "racecheck": self.checks}
        if self.sample is not None and programs > self.sample:
            options["ctas"] = [programs * i // self.sample for i in range(self.sample)]
        stats = launch_triton(compiled, grid, given, **options)
        self.launches.append((kernel.fn.__name__, compiled, stats))


@contextmanager
def on_ptxsim(**options: Any) -> Iterator[Emulator]:
    """Within, backend="triton" takes CPU tensors and every kernel runs on the emulator."""
    from masked_swin.kernels import triton_launch, window_attention  # noqa: F401
    import sys

    emulator = Emulator(**options)
    module = sys.modules["masked_swin.kernels.window_attention"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRITON_INTERPRETS", True)
        patch.setattr(triton_launch, "launch", emulator.launch)
        yield emulator
