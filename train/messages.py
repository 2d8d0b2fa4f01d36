"""What jsonargparse says of wrong arguments, in plain words."""

import re

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "pathlib.Path": "a path",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, at least 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number, at least 0",
}


def plain(message: str) -> str:
    """The message without the names of Python types and of the parser's own parts."""
    key = re.search(r'Parser key "([\w.]+)":?\s*', message)
    value = re.search(r"Got value: (.*)|Given value: (.*)|Not of type \w+: (.*?) (?:does not|invalid)", message)
    expected = list(dict.fromkeys(_expected(message)))
    if key and value and expected:
        given = next(group for group in value.groups() if group is not None)
        return f"{key[1]}: expected {' or '.join(expected)}, got {given.strip()}"
    if key:
        return f"{key[1]}: {message[key.end() :].strip()}"
    if missing := re.search(r"arguments are required: (.*)", message):
        return f"missing: {re.sub(r'[a-z]+[.](?=[a-z])', '', missing[1])}"
    if commands := re.search(r'expected "subcommand" to be one of {(.*?)}', message):
        return f"no command given; expected one of {', '.join(re.split(r',[ ]*', commands[1]))}"
    if command := re.search(r"argument subcommand: invalid choice: (.*) \(choose from (.*)\)", message):
        return f"unknown command {command[1]}; expected one of {command[2]}"
    return message


def _expected(message: str) -> list[str]:
    """What the types named in the message ask for."""
    found = []
    for literal, named, restricted in re.findall(
        r"Expected a typing\.Literal\[(.*?)\]|Expected a <class '([\w.]+)'>|Not of type (\w+)", message
    ):
        choices = literal.replace("'", "").split(", ") if literal else []
        name = named.rpartition(".")[2] if named.endswith(("Int", "Float")) else named or restricted
        found.append(f"one of {', '.join(choices)}" if choices else _TYPES.get(name, name))
    return found
