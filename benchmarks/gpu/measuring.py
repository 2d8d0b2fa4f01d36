"""How the GPU benchmarks measure: ways to compute the same, in turn, between device events; a table, and JSON."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cpu.measuring import commit

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"
TOLERANCE = 0.05  # relative error, in norm, between ways that should compute the same in 16 bits


class Way(NamedTuple):
    """One way to compute something: `run` gives the output, with a graph back to `inputs`."""

    run: Callable[[], Tensor]
    inputs: list[Tensor]


class Comparison(NamedTuple):
    """Ways to compute the same thing; the first that runs is the baseline. `differs` names those that compute something
    else, ours begin with "masked_swin"."""

    name: str
    ways: dict[str, Way]
    differs: frozenset[str] = frozenset()


def check(comparison: Comparison) -> tuple[Comparison, dict[str, str]]:
    """The comparison without the ways of others that do not run here, and why they do not.

    Raises:
        RuntimeError: naming a way whose output or gradients are not those of the baseline.
    """
    results, reasons = {}, {}
    for name, way in comparison.ways.items():
        try:
            out = way.run()
            generator = torch.Generator(out.device).manual_seed(0)
            grad = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
            results[name] = [out.detach(), *torch.autograd.grad(out, way.inputs, grad)]
        except Exception as error:  # a compiler's are of any kind
            if name.startswith("masked_swin"):
                raise
            reasons[name] = (str(error) or type(error).__name__).splitlines()[0]
    (_, truth), *others = ((name, values) for name, values in results.items() if name not in comparison.differs)
    for name, values in others:
        for which, (value, wanted) in enumerate(zip(values, truth, strict=True)):
            error = (value.double() - wanted.double()).norm() / wanted.double().norm()
            if not error <= TOLERANCE:
                what = "the output" if which == 0 else f"gradient {which - 1}"
                raise RuntimeError(f"{comparison.name}: {what} of '{name}' differs by {error:.1%} from the baseline's")
    return comparison._replace(ways={name: comparison.ways[name] for name in results}), reasons


def measure(comparison: Comparison, rounds: int, warm_up: int = 3) -> Iterator[dict[str, Any]]:
    """A row for forward, and forward + backward, of each way; `ratio` is baseline / way, round by round."""
    for what in ("forward", "forward + backward"):
        runs = {name: _runnable(way, what) for name, way in comparison.ways.items()}
        memory = {name: _peak_memory(run) for name, run in runs.items()}  # the first run also compiles
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(-warm_up, rounds):
            for name, run in runs.items():
                microseconds = _microseconds(run)
                if turn >= 0:
                    times[name].append(microseconds)
        baseline = next(iter(times.values()))
        for name, values in times.items():
            low, median, high = statistics.quantiles(values, n=4)
            ratios = [slow / fast for slow, fast in zip(baseline, values, strict=True)]
            row = {"case": comparison.name, "what": what, "way": name, "us": median, "us_q1": low, "us_q3": high}
            yield row | {"ratio": statistics.median(ratios), "peak_bytes": memory[name], "rounds": rounds}


def _runnable(way: Way, what: str) -> Callable[[], object]:
    if what == "forward":
        return torch.no_grad()(way.run)
    grad = torch.randn_like(way.run())
    return lambda: torch.autograd.grad(way.run(), way.inputs, grad)


def _microseconds(run: Callable[[], object]) -> float:
    """Of one run, by the device's clock; by the host's where there is no device (the tests of these benchmarks)."""
    if not torch.cuda.is_available():
        before = time.perf_counter()
        run()
        return (time.perf_counter() - before) * 1e6
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end) * 1e3)


def _peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes allocated at most during the second run, above those before it."""
    run()
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def line(row: dict[str, Any]) -> str:
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:8.0f} MiB"
    times = f"{row['us']:9.0f} us [{row['us_q1']:.0f}, {row['us_q3']:.0f}]"
    return f"{row['case'] + ', ' + row['what']:56} {row['way']:24} {times:32} {row['ratio']:6.2f}x {memory}".rstrip()


def conditions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device"
    versions = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit()}
    return {"device": device, **versions, "measured": time.strftime("%Y-%m-%d %H:%M")}


def save(rows: list[dict[str, Any]], path: Path = RESULTS) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"conditions": conditions(), "rows": rows}, indent=1) + "\n")
