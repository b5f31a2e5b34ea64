"""The record of what a folder was made from, compared with what is asked for now."""

from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, reading, short
from .yaml_files import read_yaml

_NOT_SET = object()


def check_same(path: Path, record: dict, what: str, option: str) -> dict:
    r"""
    What the record in a file (YAML or JSON) says already; nothing if there is none.

    Raises:
        InputError: if that is something else, naming each field that differs with both values, or the file is damaged.
    """
    if not path.is_file():
        return {}
    with reading(path, f"the record of {what}"):
        earlier = read_yaml(path)
    if not isinstance(earlier, dict) or (missing := [name for name in record if name not in earlier]):
        lacks = f"it has no {', '.join(missing)}" if isinstance(earlier, dict) else "it is empty or cut off"
        raise InputError(
            f"'{path}' is not the whole record of {what}: {lacks}. Restore it, remove its folder, or choose another {option}."
        )
    if different := list(_differences(earlier, record)):
        more = f"; and {len(different) - 6} more" if len(different) > 6 else ""
        raise InputError(
            f"'{path.parent}' holds {what} with other settings: {'; '.join(different[:6])}{more}. "
            f"Choose another {option}, or remove it."
        )
    return earlier


def _differences(earlier: dict, record: dict, place: str = "") -> Iterator[str]:
    """`field: value there, value here` of each field of the record that the earlier one has otherwise."""
    for name in (*record, *(name for name in earlier if place and name not in record)):
        if name == "description":
            continue  # for readers: another version may describe the same setting in other words
        one, other = earlier.get(name, _NOT_SET), record.get(name, _NOT_SET)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{place}{name}.")
        elif one != other:
            there, here = ("not set" if value is _NOT_SET else short(repr(value), 60) for value in (one, other))
            yield f"{place}{name} is {there} there and {here} here"
