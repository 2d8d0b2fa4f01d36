"""The argument parser of the commands: jsonargparse's, with errors in plain words."""

import difflib
import re
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "pathlib.Path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "fields and values",
    "NoneType": "null",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, at least 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number, at least 0",
}


class UsageError(ArgumentError):
    """Wrong arguments, alone or together."""

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


class Parser(jsonargparse.ArgumentParser):
    """Parser of one command; an unknown key, as a flag or in a file, gets the nearest known one suggested."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        epilog = "-q, --quiet: no progress and no notes, only failures"
        name = f"masked-swin {command}"
        super().__init__(prog=name, description=description, epilog=epilog, exit_on_error=False, **options)

    def parse(self, arguments: Sequence[str]) -> jsonargparse.Namespace:
        """Parse the arguments after the command's name.

        Raises:
            UsageError: they are wrong.
        """
        try:
            return self.parse_args(list(arguments))
        except ArgumentError as error:
            raise UsageError(plain(str(error))) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r"Option '([\w.]+)' is not accepted", r"unknown key '\1'", message)
        message = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"unknown key '\1.\2'", message)
        unknown = re.search(r"unknown key '([\w.]+)'|unrecognized arguments: --([\w.]+)", message)
        if unknown is not None and "did you mean" not in message:  # an error passes here twice
            known = [flag[2:] for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            if close := difflib.get_close_matches(unknown[1] or unknown[2], known, n=1):
                message = f"{message}; did you mean {close[0]}?"
        super().error(message, ex)


def plain(message: str) -> str:
    """Return jsonargparse's message without the names of Python types and of the parser's own parts."""
    key = re.search(r'Parser key "([\w.]+)":?\s*', message)
    value = re.search(r"Got value: (.*)|Given value: (.*)|Not of type \w+: (.*?) (?:does not|invalid)", message)
    expected = list(dict.fromkeys(_expected(message)))
    if key and value and expected:
        given = next(group for group in value.groups() if group is not None)
        return f"{key[1]}: expected {' or '.join(expected)}, got {given.strip()}"
    if key:
        return f"{key[1]}: {message[key.end() :].strip()}"
    if missing := re.search(r"arguments are required: (.*)", message):
        return f"missing: {missing[1]}"
    if config := re.fullmatch(r"Unexpected config: (.*)", message, re.DOTALL):
        return f"the configuration file holds {config[1] or 'nothing'}; expected fields, such as `preset: tiny`"
    return message


def _expected(message: str) -> list[str]:
    """Name the values that the types in the message stand for."""
    found = []
    for literal, named, restricted in re.findall(
        r"Expected a typing\.Literal\[(.*?)\]|Expected a <class '([\w.]+)'>|Not of type (\w+)", message
    ):
        choices = literal.replace("'", "").split(", ") if literal else []
        name = named.rpartition(".")[2] if named.endswith(("Int", "Float")) else named or restricted
        found.append(f"one of {', '.join(choices)}" if choices else _TYPES.get(name, name))
    return found
