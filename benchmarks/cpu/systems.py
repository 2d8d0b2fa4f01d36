"""Parameters, multiply-adds and training speed of each system, as a table for docs/training.md.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu.systems [--threads 1] [NAME ...]

A step of the trainer is timed: forward, loss, backward, Adam and average, for a batch of 4 patches of 64x64 with
Gaussian noise. The patches are made before, so that loading is not measured. The time is that of the processor, divided
by the threads: other work on the machine counts little.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cpu import work
from benchmarks.cpu.measuring import OtherWork, machine
from masked_swin import PRESETS, MaskedSwinIR
from masked_swin.denoiser import Denoiser
from masked_swin.train.config import TrainConfig
from masked_swin.train.loop import Trainer
from masked_swin.train.sampler import Loader
from masked_swin.train.systems import SWIN_SYSTEMS, SYSTEMS

PATCH, BATCH, STEPS = 64, 4, 3
HEAD = "| system | size | parameters | MACs a pixel | patches a second |\n|---|---|---|---|---|"


def config_of(system: str, size: str, folder: Path) -> TrainConfig:
    network = {"network": PRESETS[size]} if system in SWIN_SYSTEMS else {}
    common = {"patch_size": PATCH, "batch_size": BATCH, "device": "cpu", "output": str(folder)}
    return TrainConfig(system=system, preset=size, **network, **common)  # type: ignore[arg-type]


def macs_per_pixel(model: Denoiser) -> float:
    """Multiply-adds of a pass over one patch, per pixel; of a masked network with the ratio of its masks."""
    if isinstance(model, MaskedSwinIR):
        return work.network(model.config, 1)[0].macs
    model.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, model.config.in_channels, PATCH, PATCH))
    model.train()
    return counter.get_total_flops() / 2 / PATCH**2


def patches_per_second(trainer: Trainer) -> float:
    """The median over some steps, after one that is not counted."""
    batches = trainer.loader.batches(0)

    class Ready(Loader):
        def batches(self, step: int) -> list:  # type: ignore[type-arg]
            return batches

    trainer.loader = Ready(trainer.loader.sampler, BATCH)
    times = []
    for _ in range(1 + STEPS):
        start = time.process_time()
        trainer.train_step()
        times.append((time.process_time() - start) / torch.get_num_threads())
    return BATCH / statistics.median(times[1:])


def row(system: str, size: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config_of(system, size, Path(folder)))
        count = sum(parameter.numel() for parameter in trainer.model.parameters())
        speed, macs = patches_per_second(trainer), macs_per_pixel(trainer.model)
    return f"| `{system}` | {size} | {count:,} | {macs / 1000:,.0f} k | {speed:.2g} |"


def main() -> None:
    names = (*SWIN_SYSTEMS, *SYSTEMS)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("systems", nargs="*", default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    others = OtherWork()
    print(HEAD)
    for system in options.systems:
        for size in ("published", "tiny"):
            print(row(system, size), flush=True)
    busy = others.cores()
    print(f"\n{machine()}; others used {'?' if busy is None else f'{busy:.1f}'} cores")


if __name__ == "__main__":
    main()
