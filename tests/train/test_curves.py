"""curves.svg: a picture of the log that any program shows."""

import json
from pathlib import Path
from xml.etree import ElementTree

from masked_swin.train.curves import draw, read_curves, write_curves

SVG = "{http://www.w3.org/2000/svg}"


def test_curves_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        {"step": 5, "loss": 0.1, "validation_psnr": None},
        {"step": 10, "validation_psnr": 30.0, "validation_psnr/speckle:2": 20.0, "validation_psnr/a<b": 30.0},
        {"step": 20, "validation_psnr": 31.0, "validation_psnr/speckle:2": 25.0, "validation_psnr/a<b": 31.0},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "torn')
    curves = read_curves(log)
    assert curves == {"speckle:2": [(10, 20.0), (20, 25.0)], "a<b": [(10, 30.0), (20, 31.0)]}
    write_curves(curves, tmp_path / "curves.svg")
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert {"speckle:2 25.00", "a<b 31.00", "step"} <= set(texts)
    ends = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    heights = [[float(point.split(",")[1]) for point in line] for line in ends]
    assert heights[0][0] > heights[0][1] > heights[1][0] > heights[1][1]  # dB grow upwards
    widths = [[float(point.split(",")[0]) for point in line] for line in ends]
    assert widths[0] == widths[1] == sorted(widths[0])


def test_a_single_point_and_many_noises_can_be_drawn() -> None:
    assert "NaN" not in draw({"one": [(7, 20.0)]})
    many = draw({f"noise {index}": [(1, float(index)), (2, 3.0)] for index in range(12)})
    assert many.count("<polyline") == 12
    assert many.count("stroke-dasharray") == 2 * 4
    ElementTree.fromstring(draw({}))
