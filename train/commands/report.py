"""The demo's page: report.html, made from report.html.j2 and the figures of one run."""

import importlib.metadata
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import jinja2

from masked_swin import ModelConfig
from masked_swin.storage import atomic_write

# Name and description of each noise on the page.
NOISE_TITLES = {
    "gaussian": ("Gaussian", "white, sigma 15: the noise both networks were trained on"),
    "speckle": ("Speckle", "multiplicative, stronger where the image is bright"),
    "salt_pepper": ("Salt and pepper", "single values replaced by black or white"),
    "poisson": ("Poisson", "photon counting, amplified"),
    "correlated": ("Correlated Gaussian", "a Gaussian field after a 3x3 mean: grain larger than a pixel"),
    "mixture": ("Mixture", "correlated, speckle, Poisson and salt and pepper together"),
    "monte_carlo": ("Monte Carlo", "of a renderer that averages few light paths, with bright outliers"),
    "camera": ("Camera", "shot and read noise of a sensor, demosaiced, white-balanced and with the sRGB curve"),
}


@dataclass(frozen=True)
class Training:
    """How one network was trained."""

    name: str
    steps: int
    planned: int
    seconds: float
    batch_size: int
    patch_size: int
    warm_started: bool
    parameters: int

    @property
    def stopped_early(self) -> bool:
        return self.steps < self.planned


@dataclass(frozen=True)
class Figure:
    """One image under one noise; `paths` are relative to the page, by "clean", "noisy", "unmasked" and "masked"."""

    image: str
    paths: dict[str, str]
    psnr: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Means over the images under one noise, by "noisy", "unmasked" and "masked"."""

    noise: str
    level: int
    in_domain: bool
    psnr: dict[str, float]
    ssim: dict[str, float]
    figures: list[Figure]


@dataclass(frozen=True)
class Completion:
    """One masked image and its completion; `hidden` is the share of masked pixels."""

    image: str
    hidden: float
    psnr: float
    paths: dict[str, str]


@dataclass(frozen=True)
class Report:
    """Everything on the page. The first comparison is the one in domain."""

    comparisons: list[Comparison]
    completions: list[Completion]
    trainings: list[Training]
    held_out: list[str]
    seed: int
    threads: int
    seconds: float
    unmasked: ModelConfig
    masked: ModelConfig


def write_report(report: Report, folder: Path) -> Path:
    """Write report.html into `folder` and return its path; the images that it shows are already there."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        report=report,
        titles=NOISE_TITLES,
        chart=_chart(report.comparisons),
        leads=_leads(report.comparisons),
        versions={
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "processor": platform.machine(),
        },
    )
    path = folder / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _leads(comparisons: list[Comparison]) -> dict[int, float]:
    """Return by level the lead of the masked network over the unmasked one in dB, mean over the unseen noises."""
    levels = sorted({row.level for row in comparisons if not row.in_domain})
    return {
        level: statistics.mean(
            row.psnr["masked"] - row.psnr["unmasked"] for row in comparisons if row.level == level and not row.in_domain
        )
        for level in levels
    }


@dataclass(frozen=True)
class _Bar:
    label: str
    in_domain: bool
    gains: dict[str, float]  # over the noisy input, dB
    widths: dict[str, float]  # percent of the longest gain, 0 for a loss


def _chart(comparisons: list[Comparison]) -> list[_Bar]:
    gains = [
        {kind: comparison.psnr[kind] - comparison.psnr["noisy"] for kind in ("unmasked", "masked")}
        for comparison in comparisons
    ]
    longest = max(max(gain.values()) for gain in gains)
    return [
        _Bar(
            label=f"{NOISE_TITLES[comparison.noise][0]}, level {comparison.level}",
            in_domain=comparison.in_domain,
            gains=gain,
            widths={kind: max(0.0, 100 * value / longest) if longest > 0 else 0.0 for kind, value in gain.items()},
        )
        for comparison, gain in zip(comparisons, gains, strict=True)
    ]
