"""Compare the record of what a folder was made from with the present settings."""

from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, reading, short
from .yaml_files import read_yaml

_NOT_SET = object()


def check_same(path: Path, record: dict, what: str, option: str) -> dict:
    r"""
    Read the record in a file, if it exists, and check that it is the same.

    Args:
        path: YAML or JSON file.
        record: present settings.
        what: what the record describes, for messages.
        option: name of the option that chooses the folder, for messages.

    Returns:
        the fields of the file; nothing if it does not exist.

    Raises:
        InputError: naming each field that differs, with both values, or if the file is damaged.
    """
    if not path.is_file():
        return {}
    with reading(path, f"the record of {what}"):
        earlier = read_yaml(path)
    if not isinstance(earlier, dict) or (missing := [name for name in record if name not in earlier]):
        lacks = f"it lacks {', '.join(missing)}" if isinstance(earlier, dict) else "it is empty or truncated"
        raise InputError(
            f"'{path}' is not a complete record of {what}: {lacks}. Restore it, remove its folder, or choose another "
            f"{option}."
        )
    if different := list(_differences(earlier, record)):
        more = f"; and {len(different) - 6} more" if len(different) > 6 else ""
        raise InputError(
            f"'{path.parent}' holds {what} with other settings: {'; '.join(different[:6])}{more}. "
            f"Choose another {option}, or remove it."
        )
    return earlier


def _differences(earlier: dict, record: dict, place: str = "") -> Iterator[str]:
    """Describe each field that differs between the earlier record and this one."""
    for name in (*record, *(name for name in earlier if place and name not in record)):
        if name == "description":
            continue  # for readers: another version may describe the same setting in other words
        one, other = earlier.get(name, _NOT_SET), record.get(name, _NOT_SET)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{place}{name}.")
        elif one != other:
            there, here = ("not set" if value is _NOT_SET else short(repr(value), 60) for value in (one, other))
            yield f"{place}{name} is {there} there and {here} here"
