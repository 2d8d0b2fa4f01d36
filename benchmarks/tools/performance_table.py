"""Writes the rows of results/cpu.json into the table of docs/performance.md."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- rows of benchmarks/results/cpu.json -->\n", "<!-- end of the rows -->\n"


def table(rows: list[dict]) -> str:
    lines = ["| | ratio [quartiles] | bar | baseline | ours | of the floor |", "|---|---|---|---|---|---|"]
    for row in rows:
        spread = f"{row['ratio']:.2f} [{row['ratio_q1']:.2f}, {row['ratio_q3']:.2f}]"
        bar = "" if row["bar"] is None else f"{row['bar']:g}"
        share = f"{row['floor_share']:.0%}" if row.get("floor_share") else ""
        times = f"{row['baseline']:.4g} {row['unit']} | {row['ours']:.4g} {row['unit']}"
        lines.append(f"| {row['name']} | {spread} | {bar} | {times} | {share} |")
    machines = sorted({f"{row['machine']}, commit {row['commit']}" for row in rows})
    busiest = max(row["cores_used_by_others"] or 0.0 for row in rows)
    return "\n".join([*lines, "", *machines, f"Others used at most {busiest:.1f} cores meanwhile.", ""])


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + table(json.loads(RESULTS.read_text())) + END + after)
