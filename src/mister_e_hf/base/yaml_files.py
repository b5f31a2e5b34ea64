"""Read YAML strictly: no repeated keys, no words that turn into other values, no unbounded expansion."""

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, short

_MOST_BYTES = 16 * 2**20
_MOST_VALUES = 100_000  # with aliases (`*name`) counted each time
_DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads `yes`, `on`, `010`, `1:30` and `2024-01-01` as strings, as in YAML 1.2."""

    yaml_implicit_resolvers: dict = {}

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a list or mapping cannot be a key")
            merges = key.tag == "tag:yaml.org,2002:merge"  # `<<`, which is not a value
            name, line = "<<" if merges else self.construct_object(key), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"'{short(name)}' appears twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return node

    def compose_document(self):
        node = super().compose_document()
        _check_size(node)
        return node


# PyYAML's writer quotes strings that match any of these, so that they are read back unchanged.
for _name, _pattern, _first in (
    ("null", "~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", "[-+]?(0|[1-9][0-9]*(_[0-9]+)*)", [*"-+0123456789"]),
    (
        "float",
        r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)


def _check_size(root: yaml.Node | None):
    """Refuse aliases that expand a few lines to a billion values, or to themselves."""
    values = 0
    above: list[yaml.Node] = []
    waiting: list[tuple[yaml.Node | None, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        if node is None:
            continue
        del above[depth:]
        if any(node is other for other in above):
            raise yaml.YAMLError("an anchor contains itself")
        above.append(node)
        values += 1
        if values > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES:,} values, anchors and their aliases counted")
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")
        if isinstance(node, yaml.MappingNode):
            waiting += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(each, depth + 1) for each in node.value]


def parse_yaml(text: str, source: str) -> Any:
    r"""
    The value of a text in YAML.

    Args:
        text: the text.
        source: where it comes from, for messages.

    Raises:
        InputError: if it is not YAML, repeats a key, or has too many values.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506, a safe loader
    except RecursionError as error:
        raise InputError(f"{source} is not valid YAML: it is nested more than {_DEEPEST} levels deep") from error
    except Exception as error:  # PyYAML raises errors of several kinds
        raise InputError(f"{source} is not valid YAML: {short(error)}") from error


def read_yaml(path: str | Path) -> Any:
    r"""
    The value of a YAML file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming the file, if [`parse_yaml`] refuses it or it is not text.
    """
    path = Path(path)
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"'{path}' is not a YAML file that this package reads: it has {path.stat().st_size:,} bytes")
    given = path.read_bytes()
    encoding = "utf-16" if given[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = given.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}' is not text in {encoding.removesuffix('-sig').upper()}: byte {error.start} is "
            f"0x{given[error.start]:02x}; save it as UTF-8"
        ) from error
    return parse_yaml(text, f"'{path}'")
