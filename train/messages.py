"""What a command reports of single files."""

import sys


def report(**lines_by_label: list[str]) -> None:
    """Print each line to stderr after its label, as in "failed: photo.png: truncated"."""
    for label, lines in lines_by_label.items():
        for line in lines:
            print(f"{label}: {line}", file=sys.stderr)
