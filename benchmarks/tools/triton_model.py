"""Chooses tile sides and warps of the Triton kernels by a cost model, for devices that are not there.

    python benchmarks/triton_model.py                       # print what it chooses, the published network in bfloat16
    python benchmarks/triton_model.py --channels 180 --write   # add to kernels/tuned.json

A MODEL, never a time. ptxsim runs a sample of a kernel's programs, compiled for sm_80; their bytes, matrix FLOPs,
instructions and shared-memory accesses are divided by what a device can do at best, the largest of the four counts.
Registers and shared memory of the kernel compiled for the device say how many warps are resident; with fewer than hide
the latency of arithmetic, it takes longer in proportion. What spills is refused, and so is what has more instructions
or matrix FLOPs, or asks for more sectors, than the rule: a model without caches, and that counts on no two instructions
of a warp at once, should gain by more warps only. Nor does it know what sm_80's instructions do not show of others.
"""

import argparse
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.tools.triton_resources import resources
from masked_swin.kernels.triton import autotune, tuning
from masked_swin.kernels.triton.tuning import Tiles
from tests.support.triton_on_ptxsim import (
    SM_80,
    Launch,
    Stats,
    compile_kernel,
    in_place_of_launch,
    is_constant,
    launch_triton,
    on_ptxsim,
)


class Device(NamedTuple):
    name: str
    target: GPUTarget
    units: int  # multiprocessors or compute units
    gigahertz: float
    memory: float  # GB/s
    matrix: float  # TFLOPS, 16 bits, dense
    issue: int  # instructions of 32 lanes that a unit issues in a clock
    registers: int  # of 32 bits, in a unit
    shared: int  # bytes, in a unit
    warps: int  # resident in a unit, of the target's width


DEVICES = {
    # NVIDIA A100 Tensor Core GPU Architecture (white paper), A100 80GB data sheet
    "sm_80": Device("A100 SXM 80GB", SM_80, 108, 1.41, 2039, 312, 4, 65536, 164 << 10, 64),
    # NVIDIA H100 Tensor Core GPU Architecture (white paper); the clock is that of its matrix peak
    "sm_90": Device("H100 SXM", GPUTarget("cuda", 90, 32), 132, 1.83, 3350, 989.4, 4, 65536, 228 << 10, 64),
    # As the driver of a B200 tells (pytorch/ao, pull request 4002); matrix peak of the HGX B200 data sheet
    "sm_100": Device("B200", GPUTarget("cuda", 100, 32), 148, 1.86, 7672, 2250, 4, 65536, 228 << 10, 64),
    # AMD CDNA 3 white paper, Instinct MI300X data sheet: a wave of 64 lanes issues in one clock
    "gfx942": Device("MI300X", GPUTarget("hip", "gfx942", 64), 304, 2.1, 5300, 1307.4, 2, 131072, 64 << 10, 32),
}
LATENCY = 4  # clocks until arithmetic can go on: so many warps hide it, for each instruction issued in a clock
SAMPLE = 16  # programs of a grid that are run
BATCH = 8  # images: counts are in proportion to them, so that a full device is modelled
LEAST_GAIN = 0.1  # of the modelled cost: less is not worth leaving the rule for
MORE = 1.1  # times the instructions, matrix FLOPs or sectors of the rule: more is refused


class Model:
    """Takes the place of `launch.launch`: samples the launches of one key, and leaves the others out."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.key = ""
        self.milliseconds = 0.0
        self.work = [0.0, 0.0, 0.0]  # instructions, matrix FLOPs, and sectors asked for
        self.work_by_rule: dict[str, list[float]] = {}
        self.samples: dict[str, tuple[Stats, list[int]]] = {}  # of other devices, too

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any) -> None:
        if tuning.launched_key(kernel) != self.key:
            return
        shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]
        key = repr((self.key, grid, shapes, num_warps, constants))
        if key not in self.samples:
            compiled = compile_kernel(kernel, arguments, num_warps, constants, SM_80)
            given = [argument for argument in arguments if not is_constant(argument)]
            programs = list(product(*(range(extent) for extent in (*grid, 1, 1)[:3])))
            chosen = programs[:: max(1, len(programs) // SAMPLE)]
            stats = launch_triton(compiled, grid, given, ctas=chosen)
            arguments_run = [given[int(argument.name.split()[1])] for argument in stats.arguments]
            self.samples[key] = stats, [tensor.untyped_storage().nbytes() for tensor in arguments_run]
        stats, sizes = self.samples[key]
        scale = stats.ctas_total / stats.ctas_run
        self.work[0] += scale * stats.issued_instructions
        self.work[1] += scale * stats.mma_flops
        self.work[2] += scale * sum(a.requested_read + a.requested_written for a in stats.arguments)
        compiled = compile_kernel(kernel, arguments, num_warps, constants, self.device.target)
        registers, spills = resources(Launch(self.key, [], compiled, None), self.device.target)
        if spills:
            self.milliseconds = float("inf")
            return
        width = self.device.target.warp_size
        resident = min(
            self.device.warps // num_warps,
            self.device.registers // (max(registers, 16) * width * num_warps),
            self.device.shared // max(compiled.metadata.shared, 1),
        )
        if resident == 0:
            self.milliseconds = float("inf")
            return
        self.milliseconds += self._milliseconds(stats, sizes, resident * num_warps * width // 32)

    def _milliseconds(self, stats: Stats, sizes: list[int], warps: int) -> float:
        device, scale = self.device, stats.ctas_total / stats.ctas_run
        # What every program reads again, as weights, comes from a cache.
        moved = sum(
            min(scale * a.unique_read, size) + min(scale * a.unique_written, size)
            for a, size in zip(stats.arguments, sizes, strict=True)
        )
        clocks = device.units * device.gigahertz * 1e6  # in a millisecond
        bounds = (
            moved / (device.memory * 1e6),
            scale * stats.mma_flops / (device.matrix * 1e9),
            scale * stats.issued_instructions / (device.issue * clocks),
            scale * stats.shared_wavefronts / clocks,
        )
        return max(bounds) / min(1.0, warps / (LATENCY * device.issue))

    def measure(self, run: autotune.Run, key: str, tiles: dict[str, Tiles]) -> float:
        """As `autotune.time_on_device`."""
        self.key, self.milliseconds, self.work = key, 0.0, [0.0, 0.0, 0.0]
        try:
            with tuning.trying(tiles):
                run()
        except (triton.CompilationError, AssertionError, RuntimeError, ValueError):  # no such tile
            return float("inf")
        by_rule = self.work_by_rule.setdefault(key, self.work)  # a search begins with the rule
        if any(ours > MORE * limit for ours, limit in zip(self.work, by_rule, strict=True)):
            return float("inf")
        return self.milliseconds


def check(shape: tuple[int, int, int, torch.dtype], chosen: dict[str, Tiles]) -> None:
    """Raise AssertionError unless small passes give with the chosen tiles what they give with the rules."""
    for name, run in autotune.workloads(*shape, 1, 2 * shape[2], "cpu"):
        with on_ptxsim(checks=False):
            with tuning.trying({}):
                wanted = run()
            with tuning.trying(chosen):
                found = run()
        assert autotune.close(found, wanted), f"{name}: wrong with {chosen}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=60)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="add what differs from the rules to kernels/tuned.json")
    options = parser.parse_args()
    shape = (options.channels, options.heads, options.window, getattr(torch, options.dtype))
    samples: dict[str, tuple[Stats, list[int]]] = {}
    chosen: dict[str, dict[str, Tiles]] = {architecture: {} for architecture in DEVICES}
    for name, run in autotune.workloads(*shape, BATCH, options.size, "cpu"):
        for architecture, device in DEVICES.items():
            model = Model(device)
            model.samples = samples
            with in_place_of_launch(model):
                found = autotune.search(run, model.measure, chosen[architecture], LEAST_GAIN)
            for key, (tiles, milliseconds, by_rule) in found.items():
                costs = f"modelled {milliseconds:.4f} ms, by rule {by_rule:.4f} ms"
                print(f"{device.name}, {name}: {key}: {tiles}: {costs}", flush=True)
                chosen[architecture][key] = tiles if milliseconds < by_rule else {}
    for architecture, device in DEVICES.items():
        better = {key: tiles for key, tiles in chosen[architecture].items() if tiles}
        check(shape, better)
        if options.write:
            by = f"model of {device.name}, Triton {triton.__version__}"
            entries = {key: {"tiles": tiles, "by": by} for key, tiles in better.items()}
            tuning.write_table(tuning.PACKAGE_TABLE, architecture, entries)


if __name__ == "__main__":
    main()
