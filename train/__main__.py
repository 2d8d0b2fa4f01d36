"""`masked-swin`, `python -m masked_swin.train`: the command line; `doctor` runs even where its packages are missing."""

import sys

from masked_swin.train.doctor import report


def main() -> int:
    """Run the command line; returns its exit code."""
    if sys.argv[1:] == ["doctor"]:
        print(report())
        return 0
    try:
        from masked_swin.train.cli import main as run
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is missing; install 'masked-swin[train]'", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
