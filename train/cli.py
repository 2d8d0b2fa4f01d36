"""The command line: `masked-swin COMMAND ...` runs the file of that name in commands/ and reports its errors.

Exit codes: 0 done, 1 failed (of several files: some failed), 2 wrong arguments or configuration, 130 interrupted
(Ctrl-C), 141 the reader of a pipe left, 143 terminated (SIGTERM).
"""

import os
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence

from masked_swin import __version__
from masked_swin.train import messages
from masked_swin.train.commands import COMMANDS, load

QUIET = ("-q", "--quiet")
CLOSED_PIPE = 141  # as shells report SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. `--help` and `--version` leave through SystemExit, as in argparse."""
    arguments = _with_underscores(list(sys.argv[1:] if argv is None else argv))
    if not arguments or arguments[0] not in COMMANDS:
        return _without_command(arguments)
    name = arguments[0]
    operands = arguments.index("--") if "--" in arguments else len(arguments)
    messages.set_quiet(any(flag in arguments[:operands] for flag in QUIET))
    arguments = [flag for flag in arguments[:operands] if flag not in QUIET] + arguments[operands:]
    try:
        command = load(name)
    except ModuleNotFoundError as error:
        return _fail(f"the package {error.name} is missing; install 'masked-swin[train]'")
    try:
        code = command.run(arguments[1:])
        sys.stdout.flush()  # a reader that left shows here rather than when Python exits
        return code
    except BrokenPipeError:  # `masked-swin doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except ArgumentError as error:
        return _wrong_arguments(str(error), f"masked-swin {name}")
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(str(error))


def _without_command(arguments: list[str]) -> int:
    parser = ArgumentParser(prog="masked-swin", description="Denoisers that work on noises they have never seen.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(*QUIET, action="store_true", help="of every command: no progress and no notes, only failures")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not arguments:
        return _wrong_arguments(f"no command given; expected one of {', '.join(COMMANDS)}", parser.prog)
    if arguments[0] in ("-h", "--help", "--version"):
        parser.parse_args(arguments[:1])  # leaves
    expected = ", ".join(map(repr, COMMANDS))
    return _wrong_arguments(f"unknown command {arguments[0]!r}; expected one of {expected}", parser.prog)


def _with_underscores(arguments: list[str]) -> list[str]:
    """Spell flags like fields, `--attention-mask=off` as `--attention_mask=off`; leave what follows `--`."""
    flags = arguments.index("--") if "--" in arguments else len(arguments)
    return [_with_underscore(argument) for argument in arguments[:flags]] + arguments[flags:]


def _with_underscore(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if argument.startswith("--") else argument


def _wrong_arguments(message: str, command: str) -> int:
    print(f"error: {message}\ntry: {command} --help", file=sys.stderr)
    return 2


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
