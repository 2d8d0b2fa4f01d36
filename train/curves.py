"""curves.svg: the validation PSNR of each noise over the steps, drawn from log.jsonl without other packages."""

import json
import math
from html import escape
from pathlib import Path

from masked_swin.storage import atomic_write

CURVES_FILE = "curves.svg"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 420, 60, 200, 20, 45
# Colours that the colour-blind tell apart (Okabe and Ito); more than eight noises repeat them with dashes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#b8a800")

Curves = dict[str, list[tuple[int, float]]]  # (step, dB) by noise


def read_curves(log: Path, prefix: str = "validation_psnr/") -> Curves:
    """Return the validation figures of a log; lines that are torn are left out."""
    curves: Curves = {}
    for line in log.read_text(errors="replace").splitlines():
        try:
            figures = json.loads(line)
        except ValueError:
            continue
        for name, value in figures.items():
            if name.startswith(prefix) and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name[len(prefix) :], []).append((int(figures["step"]), float(value)))
    return curves


def write_curves(curves: Curves, path: Path) -> None:
    """Draw the curves as an SVG file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(draw(curves).encode())


def draw(curves: Curves) -> str:
    """Return the picture: steps to the right, dB upwards, a legend at the right."""
    points = [point for curve in curves.values() for point in curve]
    steps, values = [step for step, _ in points], [value for _, value in points]
    x_ticks, y_ticks = _ticks(min(steps, default=0), max(steps, default=1)), _ticks(*_bounds(values))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for tick in y_ticks:
        parts.append(f'<path d="M{left} {y(tick):.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path d="M{left} {_TOP}V{bottom}H{right}" fill="none" stroke="#444"/>')
    parts.append(f'<text x="{(left + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    parts.append(f'<text x="14" y="{bottom / 2}" transform="rotate(-90 14 {bottom / 2})">PSNR, dB</text>')
    for index, (name, curve) in enumerate(curves.items()):
        dashes = f' stroke-dasharray="{3 * (index // len(_COLOURS))} 3"' if index >= len(_COLOURS) else ""
        stroke = f'stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="2" fill="none"{dashes}'
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in sorted(curve))
        parts.append(f'<polyline points="{line}" {stroke}/>')
        height = _TOP + 12 + 18 * index
        parts.append(f'<path d="M{right + 12} {height - 4}h20" {stroke}/>')
        parts.append(f'<text x="{right + 38}" y="{height}">{escape(name)} {sorted(curve)[-1][1]:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _bounds(values: list[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers, the first at most `low` and the last at least `high`."""
    raw = max(high - low, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]
