"""A whole Swin block against the eager public-style block, and its rate: 6 heads, window 8, 4 images of 64x64."""

import pytest
import torch

from benchmarks.cpu import peak
from benchmarks.cpu.block_runs import block_runs
from benchmarks.cpu.measuring import bar, seconds

BARS = {(60, 0.75, "forward"): bar(avx512=8.0), (60, 0.75, "forward+backward"): bar(avx512=7.0)}
RATES = {"forward": 0.65, "backward": 0.70}  # of the FMA peak
RATE_BARS = {"forward": bar(avx512=1.0, avx2=0.9), "backward": bar(avx512=1.0, avx2=0.85)}


@pytest.mark.parametrize("channels", [60, 180])
@pytest.mark.parametrize("masked_share", [0.0, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
def test_block(report, channels, masked_share, what):
    runs = block_runs(channels, masked_share)
    name, least = (
        f"swin_block {what}, C={channels}, {masked_share:.0%} masked",
        BARS.get((channels, masked_share, what)),
    )
    report.times(name, runs.eager[what], runs.ours[what], bar=least, work=runs.work[what])


@pytest.mark.parametrize(("channels", "masked_share"), [(60, 0.75), (180, 0.0)])
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
def test_block_bf16(report, channels, masked_share, what):
    runs = block_runs(channels, masked_share, dtype=torch.bfloat16)
    name = f"swin_block {what}, C={channels}, {masked_share:.0%} masked, bf16 / eager fp32"
    report.times(name, runs.eager[what], runs.ours[what], work=runs.work[what], dtype=torch.bfloat16)


@pytest.mark.parametrize("what", ["forward", "forward+backward"])
def test_block_visible_only(report, what):
    """Here the baseline is ours, in mode zero."""
    zero, visible = (block_runs(60, 0.75, mode=mode) for mode in ("zero", "visible"))
    name = f"swin_block {what}, C=60, 75% masked, visible-only / zero"
    report.times(name, zero.ours[what], visible.ours[what], pairs=21, work=visible.work[what])


@pytest.mark.parametrize(("channels", "masked_share"), [(60, 0.75), (60, 0.0), (180, 0.0)])
@pytest.mark.parametrize("what", RATES)
def test_rate(report, channels, masked_share, what):
    """Here the baseline is the time that the block's multiply-adds take at the bar's share of the peak."""
    runs = block_runs(channels, masked_share)
    run, macs = runs.ours[what], runs.work[what].macs
    run()
    pairs = []
    for _ in range(21):
        rate = peak.macs_per_second()
        run()  # wakes torch's threads, which slept meanwhile
        pairs.append((macs / (rate * RATES[what]) * 1e3, seconds(run) * 1e3))
    name = f"rate of swin_block {what} / {RATES[what]:.0%} of peak, C={channels}, {masked_share:.0%} masked"
    gflops = 2e-9 * rate
    least = RATE_BARS[what] if (channels, masked_share) == (60, 0.75) else None
    report.row(name, pairs, "ms", bar=least, peak_gflops=gflops)
