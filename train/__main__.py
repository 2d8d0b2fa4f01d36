"""`masked-swin`, `python -m masked_swin.train`: the command line; `doctor` runs even where its packages are missing."""

import sys

INTERRUPTED = 130  # as shells report SIGINT


def main() -> int:
    """Run the command line; returns its exit code."""
    try:  # PyTorch takes seconds to import, in which Ctrl-C is no fault either
        if sys.argv[1:2] == ["doctor"]:
            from masked_swin.train.commands import doctor

            return doctor.main(sys.argv[2:])
        try:
            from masked_swin.train.cli import main as run
        except ModuleNotFoundError as error:
            print(f"error: the package {error.name} is missing; install 'masked-swin[train]'", file=sys.stderr)
            return 1
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
