"""The figures of docs/performance.md: how the cost of a block grows, and where the time of a training step goes.

    python -m benchmarks.tools.plot_cost [--quick] [--redraw]

Measures for some minutes into results/cost.json, and draws docs/cost.svg and docs/stages.svg from it. --quick measures
too little to be shown to anyone, --redraw nothing at all.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from benchmarks.cpu.block_runs import block_runs
from benchmarks.cpu.measuring import commit, interleaved, machine, ratio
from benchmarks.cpu.stages import STAGES, eager_stages, our_stages

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cost.json"
FIGURES = ROOT / "docs"
BASE = {"batch": 4, "side": 64, "channels": 60, "masked_share": 0.75}
SWEEPS = {
    "batch": [1, 2, 4, 8, 16],
    "side": [32, 64, 128, 256],
    "channels": [30, 60, 120, 180, 240],
    "masked_share": [0.0, 0.25, 0.5, 0.75, 0.95],
}
AXES = {
    "batch": "images in the batch",
    "side": "side of the images (pixels)",
    "channels": "channels",
    "masked_share": "share of masked tokens",
}
PARTS = ("forward", "backward")
COLOURS = {
    ("eager", "forward"): "#b9b9b9",
    ("eager", "backward"): "#6f6f6f",
    ("ours", "forward"): "#6baed6",
    ("ours", "backward"): "#08519c",
}


def measure(quick: bool) -> dict:
    """Milliseconds of the block by sweep, value and part, and of the training step by stage."""
    cost = {}
    for sweep, values in SWEEPS.items():
        cost[sweep] = []
        for value in values[:2] if quick else values:
            runs = block_runs(**{**BASE, sweep: value})
            point = {"value": value}
            for part in PARTS:
                pairs = list(interleaved(runs.eager[part], runs.ours[part], 2 if quick else 7))
                point |= {f"eager {part}": ratio(pairs)["baseline"] * 1e3, f"ours {part}": ratio(pairs)["ours"] * 1e3}
            cost[sweep].append(point)
            print(sweep, point, flush=True)
    steps = 1 if quick else 5
    stages = {"eager": eager_stages(steps), "ours": our_stages(steps)}
    return {"cost": cost, "stages": stages, "machine": f"{machine()}, commit {commit()}"}


def draw_cost(measured: dict, path: Path) -> None:
    figure, panels = plt.subplots(1, len(SWEEPS), figsize=(12, 4), sharey=True, layout="constrained")
    for panel, (sweep, points) in zip(panels, measured["cost"].items(), strict=True):
        values = [point["value"] for point in points]
        for (who, part), colour in COLOURS.items():
            panel.plot(values, [point[f"{who} {part}"] for point in points], "o-", color=colour, markersize=3.5)
        panel.set(xlabel=AXES[sweep], yscale="log", xscale="linear" if sweep == "masked_share" else "log")
        label = "{:.0%}" if sweep == "masked_share" else "{:g}"
        panel.set_xticks(values, [label.format(value) for value in values])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(axis="y", color="#e6e6e6")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("time of one block (ms)")
    for who, part in COLOURS:
        end = measured["cost"]["masked_share"][-1]
        panels[-1].annotate(
            f"{who}, {part}",
            (end["value"], end[f"{who} {part}"]),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[who, part],
            annotation_clip=False,
        )
    base = "otherwise batch 4 of 64x64, 60 channels, 75 % masked, 6 heads, window 8, fp32"
    _finish(figure, f"{base}\n{measured['machine']}", path)


def draw_stages(measured: dict, path: Path) -> None:
    figure, panel = plt.subplots(figsize=(9, 4), layout="constrained")
    for row, stage in enumerate(STAGES):
        times = {who: measured["stages"][who][stage] for who in ("eager", "ours")}
        shown = {who: time for who, time in times.items() if time > 0}
        panel.plot(list(shown.values()), [row] * len(shown), color="#dddddd", zorder=1)
        for who, time in shown.items():
            share = time / sum(measured["stages"][who].values())
            left = time == min(shown.values()) and len(shown) > 1
            panel.plot(time, row, "o", color=COLOURS[who, "backward"])
            panel.annotate(
                f"{time:,.{0 if time > 10 else 1}f} ms, {share:.1%}",
                (time, row),
                (-8 if left else 8, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=9,
                color=COLOURS[who, "backward"],
            )
    totals = {who: sum(stages.values()) for who, stages in measured["stages"].items()}
    for who, y in (("eager", 1.06), ("ours", 1.01)):
        panel.text(
            0, y, f"{who}: {totals[who]:.0f} ms a step", color=COLOURS[who, "backward"], transform=panel.transAxes
        )
    panel.set(xscale="log", xlabel="time in a training step (ms), and share of the step")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_yticks(range(len(STAGES)), STAGES)
    panel.invert_yaxis()
    panel.margins(x=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    base = "published network, 75 % masked, batch 4 of 64x64, fp32; loader: that of our trainer"
    _finish(figure, f"{base}\n{measured['machine']}", path)


def _finish(figure: plt.Figure, caption: str, path: Path) -> None:
    figure.supxlabel(caption, fontsize=8, color="#555555", x=0.01, ha="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--redraw", action="store_true")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    plt.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "masked_swin",
        "font.size": 10,
        "font.family": "sans-serif",
    }
    if not arguments.redraw:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(measure(arguments.quick), indent=1) + "\n")
    FIGURES.mkdir(exist_ok=True)
    measured = json.loads(RESULTS.read_text())
    draw_cost(measured, FIGURES / "cost.svg")
    draw_stages(measured, FIGURES / "stages.svg")
