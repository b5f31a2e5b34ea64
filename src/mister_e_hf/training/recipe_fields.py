"""Values of a recipe's fields: read from YAML or the command line, and checked against the type of the field."""

import difflib
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ..base.yaml_files import parse_yaml

_TRUTHS = {
    "yes": True,
    "on": True,
    "no": False,
    "off": False,
}  # words of YAML 1.1, for fields that take only a truth value


def fits(value: Any, hint: Any) -> bool:
    """
    Whether a field of this type takes the value. A whole number counts as a float, a truth value not as a number.
    """
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(fits(value, option) for option in parts)
    if kind is Literal:
        return any(value == option and type(value) is type(option) for option in parts)
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, (int, float) if kind is float else kind):
        return False
    if parts and isinstance(value, Mapping):
        return all(fits(name, parts[0]) and fits(each, parts[1]) for name, each in value.items())
    return all(fits(each, parts[0]) for each in value) if parts and isinstance(value, list | tuple) else True


def as_typed(value: Any, hint: Any) -> Any:
    """Convert a value to the type of a field: YAML reads `1e-5`, without a point, and `yes` as text."""
    if fits(value, hint):
        return value
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        read = (as_typed(value, option) for option in parts)
        return next((each for each in read if fits(each, hint)), value)
    if isinstance(value, str) and kind is float:
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, str) and kind is bool:
        return _TRUTHS.get(value.lower(), value)
    if isinstance(value, list) and kind is list and parts:
        return [as_typed(each, parts[0]) for each in value]
    if isinstance(value, dict) and kind is dict and parts:
        return {name: as_typed(each, parts[1]) for name, each in value.items()}
    return value


def read_word(word: str, field: str) -> Any:
    r"""
    Read a command-line argument as YAML, or as plain text if YAML would drop a part of it.

    Args:
        word: the argument.
        field: name of the field, for messages.

    Raises:
        InputError: if a list or mapping is not valid YAML.
    """
    if word[:1] not in "[{\"'" and (set(":#&*!|>%@`") & set(word) or word == ""):
        return word  # a path, name or pattern, of which YAML would drop a part
    return parse_yaml(word, f"--{field}: '{word}'")


def type_name(hint: Any) -> str:
    """A type as a message shows it."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType) and any(get_origin(part) is Literal for part in get_args(hint)):
        return " or ".join("null" if part is type(None) else type_name(part) for part in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: a likely correction, or all known names."""
    found = difflib.get_close_matches(str(name)[:100], known, n=1)
    return f". Did you mean '{found[0]}'?" if found else f". Known: {', '.join(sorted(known))}"
