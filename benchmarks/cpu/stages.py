"""Where the time of a training step goes, by stage, from torch's profiler."""

import tempfile
from collections import defaultdict
from collections.abc import Callable
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.cpu.networks import BATCH, SIZE, public_forward, training_step
from masked_swin import PRESETS
from masked_swin.layers import SwinLayer
from masked_swin.train.config import TrainConfig
from masked_swin.train.loop import Trainer
from tests.support.public_network import PublicBlock

STAGES = ("blocks", "convolutions", "optimiser", "EMA", "loss", "loader", "rest")
MODULES = {SwinLayer: "blocks", PublicBlock: "blocks", nn.Conv2d: "convolutions", nn.LeakyReLU: "convolutions"}
OPERATORS = {
    "Optimizer.": "optimiser",
    "aten::_foreach_lerp_": "EMA",
    "masked_swin::convolution": "convolutions",  # its weights are a module's, but it is called as a function
}
BACKWARD = "autograd::engine::evaluate_function"


def eager_stages(steps: int) -> dict[str, float]:
    """Milliseconds of each stage, of the eager network (which has no loader)."""
    network, run = public_forward(PRESETS["published"])
    return _stages(network, training_step(network, run), steps)


def our_stages(steps: int) -> dict[str, float]:
    """The same of the trainer's own step, loader included."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(TrainConfig(output=folder, batch_size=BATCH, patch_size=SIZE[0], device="cpu"))
        trainer.loader.batches = _marked(trainer.loader.batches, "loader")  # type: ignore[method-assign]
        return _stages(trainer.model, trainer.train_step, steps)


def _marked(function: Callable[..., object], stage: str) -> Callable[..., object]:
    def run(*arguments: object, **options: object) -> object:
        with record_function(stage):
            return function(*arguments, **options)

    return run


def _stages(network: nn.Module, step: Callable[[], object], steps: int) -> dict[str, float]:
    for module in network.modules():
        for kind, stage in MODULES.items():
            if isinstance(module, kind):
                module.forward = _marked(module.forward, stage)
    l1_loss = _marked(torch.nn.functional.l1_loss, "loss")
    with mock.patch("torch.nn.functional.l1_loss", l1_loss):
        step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                _marked(step, "rest")()
    events = [event for event in profiler.events() if event.thread == profiler.events()[0].thread]

    def enclosing(event, wanted):
        while event is not None and not wanted(event):
            event = event.cpu_parent
        return event

    def named_stage(event) -> str:
        found = enclosing(event, lambda e: e.name in STAGES or any(map(e.name.startswith, OPERATORS)))
        if found is None or found.name in STAGES:
            return "rest" if found is None else found.name
        return next(stage for name, stage in OPERATORS.items() if found.name.startswith(name))

    # A backward function has the sequence number that the forward operator which made it was the last to see.
    forward = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.sequence_nr >= 0 and enclosing(event, lambda e: e.name.startswith(BACKWARD)) is None:
            forward[event.sequence_nr] = named_stage(event)
    total: dict[str, float] = defaultdict(float)
    for event in events:
        backward = enclosing(event, lambda e: e.name.startswith(BACKWARD))
        stage = named_stage(event) if backward is None else forward.get(backward.sequence_nr, "rest")
        total[stage] += event.self_cpu_time_total / 1e3 / steps
    return {stage: total[stage] for stage in STAGES}
