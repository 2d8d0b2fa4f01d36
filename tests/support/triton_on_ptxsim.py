"""Runs the Triton backend on CPU tensors: kernels compiled for a GPU that need not be there, executed by ptxsim."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from masked_swin.kernels import triton as triton_backend
from masked_swin.kernels.triton import launch
from masked_swin.kernels.triton.attention_pairs import compact_index_kernel
from tests.support.ptxsim import Stats, launch_triton

SM_80 = GPUTarget("cuda", 80, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class Launch(NamedTuple):
    kernel: str
    arguments: list[str]  # names of those that are not None
    compiled: Any
    stats: Stats | None


def is_constant(argument: Any) -> bool:
    """Triton makes constants of None and of 1."""
    return argument is None or (isinstance(argument, int) and argument == 1)


def compile_kernel(kernel: Any, arguments: tuple, num_warps: int, constants: dict[str, Any], target: GPUTarget) -> Any:
    """What Triton compiles for these arguments at run time, for any GPU and on any machine.

    constants: with `maxnreg`, if it is given.
    """
    signature, attributes = {}, {}
    constants = dict(constants)
    options = launch.compile_options(num_warps, constants.pop("maxnreg", None), target.backend == "cuda")
    for position, name in enumerate(kernel.arg_names):
        argument = arguments[position] if position < len(arguments) else constants[name]
        if position >= len(arguments) or is_constant(argument):
            signature[name] = "constexpr"
            constants[name] = argument
        elif isinstance(argument, Tensor):
            signature[name] = POINTERS[argument.dtype]
        else:
            signature[name] = "fp32" if isinstance(argument, float) else "i32"
        aligned = isinstance(argument, Tensor) or (isinstance(argument, int) and argument % 16 == 0)
        if signature[name] != "constexpr" and aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target, options)


def given_names(kernel: Any, arguments: tuple) -> list[str]:
    pairs = zip(kernel.arg_names, arguments, strict=False)
    return [name for name, argument in pairs if not is_constant(argument)]


def with_padding(argument: Any) -> Any:
    """A view with what lies behind its last dimension until the next begins: padding that kernels may read."""
    if not isinstance(argument, Tensor) or argument.is_contiguous() or argument.stride(-1) != 1:
        return argument
    padded = max(argument.shape[-1], argument.stride(-2))
    return argument.as_strided((*argument.shape[:-1], padded), argument.stride())


@dataclass
class Emulator:
    """Takes the place of `launch.launch`.

    Attributes:
        checks: for uninitialised reads and races, besides the bounds that are always checked.
        every: run only every so-manyth program along the longest axis of a grid; the results are then incomplete.
            The table of rows is always made: other kernels follow it.
        launches: what was started, with its counters.
    """

    checks: bool = True
    every: int = 1
    launches: list[Launch] = field(default_factory=list)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
        compiled = compile_kernel(kernel, arguments, num_warps, constants, SM_80)
        given = [with_padding(argument) for argument in arguments if not is_constant(argument)]
        chosen = None
        if self.every > 1 and kernel is not compact_index_kernel:
            axes = [range(extent) for extent in (*grid, 1, 1)[:3]]
            longest = max(range(len(grid)), key=lambda axis: grid[axis])
            axes[longest] = axes[longest][:: self.every]
            chosen = list(product(*axes))
        stats = launch_triton(compiled, grid, given, ctas=chosen, initcheck=self.checks, racecheck=self.checks)
        self.launches.append(Launch(kernel.fn.__name__, given_names(kernel, arguments), compiled, stats))


@dataclass
class Compiler:
    """Takes the place of `launch.launch`, too, but only compiles."""

    target: GPUTarget
    launches: list[Launch] = field(default_factory=list)

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
        compiled = compile_kernel(kernel, arguments, num_warps, constants, self.target)
        self.launches.append(Launch(kernel.fn.__name__, given_names(kernel, arguments), compiled, None))


@contextmanager
def in_place_of_launch(stand_in: Any) -> Iterator[Any]:
    """Within, backend="triton" takes CPU tensors, and `stand_in.launch` gets its kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_backend, "INTERPRETED", True)
        patch.setattr(launch, "launch", stand_in.launch)
        yield stand_in


def on_ptxsim(**options: Any) -> Any:
    return in_place_of_launch(Emulator(**options))
