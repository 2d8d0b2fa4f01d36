"""The command-line parser of every command: jsonargparse's, which also says what was probably meant."""

import difflib
import re
from typing import Any, NoReturn

import jsonargparse


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's; an unknown key, as a flag or in a file, gets the nearest known one suggested."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        unknown = re.search(r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)", message)
        if unknown is not None and "did you mean" not in message:  # a subcommand's error passes here twice
            name = unknown[1] or unknown[2]
            if close := difflib.get_close_matches(name, _names(parser), n=1):
                message = f"{message}; did you mean {close[0]}?"
        super().error(message, ex)


def _names(parser: Any) -> list[str]:
    """Of all options, "network.depths" included; subcommands have parsers of their own."""
    return [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]
