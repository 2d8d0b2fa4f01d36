"""`masked-swin`, and `python -m masked_swin.train`: run the command line, and leave quietly on Ctrl-C."""

import sys

INTERRUPTED = 130  # as shells report SIGINT


def main() -> int:
    """Run the command line; return its exit code."""
    try:  # imports take seconds, in which Ctrl-C is no fault either
        from masked_swin.train.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
