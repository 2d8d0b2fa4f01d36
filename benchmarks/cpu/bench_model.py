"""The whole network against the eager public-style one: training step (batch 4 of 64x64), its memory, and inference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cpu import work
from benchmarks.cpu.measuring import bar
from benchmarks.cpu.networks import BATCH, SIZE, WIDE, our_forward, public_forward, public_network, training_step
from masked_swin import PRESETS, MaskedSwinIR
from masked_swin.kernels import CPU_LIBRARY

STEPS = {
    "published, 75% masked": PRESETS["published"],
    "published, masks off": PRESETS["swinir"],
    "SwinIR-M (C=180), masks off": WIDE,
}
MEMORY_PAIRS = 3
ROOT = Path(__file__).parents[2]


def compare_steps(report, name, config, least, *, dtype=torch.float32, compiled=False):
    torch.manual_seed(0)
    eager = training_step(*public_forward(config, compiled=compiled))
    ours = training_step(*our_forward(config, dtype))
    forward, backward = work.network(config, BATCH * SIZE[0] * SIZE[1])
    report.times(name, eager, ours, bar=least, pairs=7, work=forward + backward, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("published, 75% masked", bar(avx512=5.5, avx2=4.5)),
        ("published, masks off", bar(avx512=3.6, avx2=2.7)),
        ("SwinIR-M (C=180), masks off", bar(avx512=2.4, avx2=1.8)),
    ],
    ids=["masked", "dense", "wide"],
)
def test_training_step(report, name, least):
    compare_steps(report, f"training step, {name}", STEPS[name], least)


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_training_step_compiled(report):
    torch._dynamo.reset()
    name = "published, 75% masked"
    compare_steps(report, f"training step, {name} / torch.compile", STEPS[name], bar(avx512=5.0), compiled=True)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("published, 75% masked", bar(avx512=7.0)),
        ("published, masks off", None),
        ("SwinIR-M (C=180), masks off", bar(avx512=3.0)),
    ],
    ids=["masked", "dense", "wide"],
)
def test_training_step_bf16(report, name, least):
    compare_steps(report, f"training step, {name}, bf16 / eager fp32", STEPS[name], least, dtype=torch.bfloat16)


def test_training_step_bf16_against_fp32(report):
    """The baseline is our own step in fp32. Without bfloat16 products autocast must cost next to nothing."""
    config, least = PRESETS["published"], 1.25 if CPU_LIBRARY.bfloat16 else 0.95
    torch.manual_seed(0)
    exact, narrow = (training_step(*our_forward(config, dtype)) for dtype in (torch.float32, torch.bfloat16))
    forward, backward = work.network(config, BATCH * SIZE[0] * SIZE[1])
    options = {"bar": least, "pairs": 7, "work": forward + backward, "dtype": torch.bfloat16}
    report.times("training step, bf16 / our fp32", exact, narrow, **options)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of the memory is read from Linux")
def test_peak_memory(report):
    script = [sys.executable, "-m", "benchmarks.cpu.peak_memory"]

    def megabytes(which):
        output = subprocess.run([*script, which], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        return json.loads(output) / 1e6

    pairs = [(megabytes("eager"), megabytes("ours")) for _ in range(MEMORY_PAIRS)]
    report.row("peak memory of the training step, published, 75% masked", pairs, "MB", bar=4.0)


def test_inference(report):
    torch.manual_seed(0)
    height, width = 512, 768
    config = PRESETS["swinir"]
    public, ours = public_network(config, (height, width)).eval(), MaskedSwinIR(config).eval()
    x = torch.rand(1, 3, height, width)

    def run(network):
        with torch.no_grad():
            network(x)

    name = f"inference {width}x{height}, published, masks off"
    forward, _ = work.network(config, height * width)
    report.times(name, lambda: run(public), lambda: run(ours), bar=4.0, pairs=3, work=forward)
