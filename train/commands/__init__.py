"""The commands of `masked-swin`, one file each: COMMANDS names them, `load` imports the one that is wanted.

A command's file holds its arguments and `run(arguments)`, which returns the exit code. To add a command, add a file and
a line in COMMANDS.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

__all__ = ["COMMANDS", "Command", "load"]

COMMANDS = {
    "train": "train a network; resumes a run found in its output folder",
    "import-options": "translate an option file of the public code",
    "denoise": "denoise a file or a folder of images",
    "noise": "seeded noisy copies of a folder of images, with a manifest",
    "evaluate": "PSNR, SSIM and LPIPS of results, or of a network on noisy images",
    "export": "write a network as an ONNX file",
    "doctor": "what runs on this machine, why the rest does not, and a self-test",
    "demo": "train two small networks and write a report",
}


class Command(Protocol):
    """The file of a command."""

    def run(self, arguments: Sequence[str]) -> int:
        """Run the command with the arguments after its name; return the exit code."""


def load(name: str) -> Command:
    """Import the file of a command.

    Raises:
        ModuleNotFoundError: a package that this command needs is not installed.
    """
    return cast(Command, import_module(f"{__name__}.{name.replace('-', '_')}"))
