"""
Read pickles of arrays and plain types without running them: nothing is imported, and no function of the file's choice
is called.
"""

import mmap
import pickletools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import InputError, short

_SMALL = 1 << 16  # bytes; what is larger is not copied out of the file
_MOST_AXES = 32
_DEEPEST = 100  # containers within containers; releases of features have about five
_MOST_BITS = 512  # of an integer; one of a million digits could neither be converted nor printed
_LARGEST_CODE_POINT = 0x10FFFF
_MOST_SHARED = 10_000_000  # values beyond one for each byte, which only containers that are used again give
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,7}|O8?)")
_KNOWN = {"numpy.ndarray", "numpy.dtype", "_codecs.encode", "__builtin__.bytes"} | {
    f"{package}.{name}"
    for package in ("numpy.core", "numpy._core")  # before numpy 2 and since
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
}
_MARK = object()


class _Name:
    """A function or class that the file names; it is compared, and never looked up."""

    def __init__(self, name: str):
        self.name = name


class _Array:
    """An array whose state follows, or that is finished."""

    value: Any = None


class _Arguments(tuple):
    """A tuple with a part of an array in it."""


@dataclass(slots=True)
class _Nest:
    """A list, tuple or dictionary, kept so that its id remains its own."""

    container: Any
    depth: int = 1
    values: int = 1  # in it, those that it holds twice counted twice
    inside: bool = False  # another one


class _Nests:
    r"""
    How deep the containers of a file are nested, and how many values each holds, which a small file can make so many
    that printing or walking them would not end.

    Args:
        size: of the file in bytes.
    """

    def __init__(self, size: int):
        self.most = size + _MOST_SHARED
        self.known: dict[int, _Nest] = {}

    def fill(self, into: Any, items: Sequence[Any]):
        """Count items that are put into a container; raises InputError for what no release of features needs."""
        nest = self._of(into)
        for item in items:
            nest.values += 1
            if isinstance(item, list | tuple | dict):
                inner = self._of(item)
                inner.inside = True
                nest.values += inner.values
                nest.depth = max(nest.depth, inner.depth + 1)
        if nest.inside and items:  # else the depth of the other would change, too
            raise InputError("it changes a list or dictionary that is in another already, as one that holds itself")
        if nest.depth > _DEEPEST:
            raise InputError(f"it has more than {_DEEPEST} lists, tuples or dictionaries one within the other")
        if nest.values > self.most:
            raise InputError(f"it uses the same lists so often that they make up more than {self.most:,} values")

    def _of(self, container: Any) -> _Nest:
        return self.known.setdefault(id(container), _Nest(container))


class _File:
    """The bytes of the file as `pickletools` asks for them; a length that the file does not have allocates nothing."""

    def __init__(self, content: mmap.mmap):
        self.content, self.view = content, memoryview(content)
        self.readline, self.tell = content.readline, content.tell

    def read(self, size: int) -> bytes | memoryview:
        if size < _SMALL:
            return self.content.read(size)
        start = self.content.tell()
        self.content.seek(min(start + size, len(self.content)))
        return self.view[start : start + size]  # arrays share the file's memory


def read_pickle(path: str | Path) -> Any:
    r"""
    The content of a pickle that holds numpy arrays (of numbers, truth values or text) and None, truth values, numbers,
    text, bytes, lists, tuples and dictionaries. Large arrays are read-only and stay on disk until they are used.
    An array of objects becomes the list of them.

    Raises:
        FileNotFoundError: if the file does not exist.
        InputError: naming the file and what it holds, if that is anything else, or if the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No pickle at '{path}'")
    if not path.stat().st_size:
        raise InputError(f"'{path}' is empty")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last array that uses it
    try:
        return _Reader(_File(content)).run()
    except InputError as error:
        raise InputError(f"'{path}' is not read: {error}") from None
    except MemoryError:
        raise MemoryError(f"'{path}' holds more than fits into memory") from None
    except Exception as error:  # whatever a damaged file leads to
        raise InputError(f"'{path}' is not a pickle, or is damaged: {short(error, 200)}") from error


class _Reader:
    """The instructions of a pickle on a stack of plain values."""

    def __init__(self, file: _File):
        self.file = file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.nests = _Nests(len(file.content))

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.file):  # type: ignore[arg-type]  # has what is used of a file
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _VALUES:
                if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                    raise InputError(f"it has an integer of more than {_MOST_BITS} bits")
                self.stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise InputError(f"it has the instruction {opcode.name}, and only arrays and plain types are read")
        (result,) = self.stack
        return _plain(result)

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def pop_many(self, count: int) -> list[Any]:
        found = self.stack[-count:]
        if len(found) < count:
            raise ValueError("too few values")
        del self.stack[-count:]
        return found

    def put(self, key: int | None):
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def name(self, module: str, name: str):
        if f"{module}.{name}" not in _KNOWN:
            raise InputError(f"it names '{short(module, 60)}.{short(name, 60)}'; only arrays and plain types are read")
        self.stack.append(_Name(f"{module}.{name}"))

    def extend(self, items: list[Any]):
        into = self.stack[-1]
        if not isinstance(into, list):
            raise ValueError("items for what is not a list")
        items = [_plain(item) for item in items]
        self.nests.fill(into, items)
        into.extend(items)

    def update(self, items: list[Any]):
        into = self.stack[-1]
        if not isinstance(into, dict):
            raise ValueError("entries for what is not a dictionary")
        if not all(isinstance(key, _KEYS) for key in items[::2]):
            raise InputError("it has a dictionary whose keys are not text or numbers")
        values = [_plain(item) for item in items[1::2]]
        self.nests.fill(into, values)
        into.update(zip(items[::2], values, strict=True))

    def put_list(self, items: list[Any]):
        self.stack.append([])
        self.extend(items)

    def put_dictionary(self, items: list[Any]):
        self.stack.append({})
        self.update(items)

    def put_tuple(self, items: list[Any]):
        items = [item.value if isinstance(item, _Array) and item.value is not None else item for item in items]
        found = _Arguments(items) if any(isinstance(item, _PARTS) for item in items) else tuple(items)
        self.nests.fill(found, found)
        self.stack.append(found)

    def call(self):
        function, arguments = self.pop_many(2)
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise InputError("it calls what is not a constructor of arrays")
        kind = function.name.rpartition(".")[2]
        if kind == "bytes" and not arguments:  # as protocol 2 and before write empty bytes
            self.stack.append(b"")
        elif function.name == "_codecs.encode":  # and others
            text, encoding = arguments
            if encoding not in ("latin1", "latin-1"):
                raise InputError(f"it has bytes in the encoding '{short(encoding, 60)}'")
            self.stack.append(text.encode("latin-1"))
        elif function.name == "numpy.dtype":
            self.stack.append(_Dtype(arguments[0]))
        elif kind == "_reconstruct":  # its arguments say nothing: shape, type and content follow
            self.stack.append(_Array())
        elif kind == "scalar":
            dtype, content = arguments
            self.stack.append(_array(content, dtype, (), False)[()].item())
        elif kind == "_frombuffer":
            content, dtype, shape, order = arguments
            array = _Array()
            array.value = _array(content, dtype, shape, order == "F")
            self.stack.append(array)
        else:
            raise InputError(f"it calls '{function.name}'")

    def build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Dtype):
            target.order(state)
        elif isinstance(target, _Array) and target.value is None:
            _, shape, dtype, in_columns, content = state
            target.value = _array(content, dtype, shape, in_columns)
        else:
            raise InputError("it sets the state of what is not an array")


class _Dtype:
    """The type of an array's cells: numbers, truth values, text of a fixed length, or objects."""

    def __init__(self, code: Any):
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise InputError(
                f"it has an array of the type '{short(code, 60)}'; numbers, truth values and text are read"
            )
        self.code = code

    def order(self, state: Any):
        """Take the byte order from the state; its other parts are of structured types, or follow from the code."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise InputError("it has an array of a type that is not known")
        if any(part is not None for part in state[2:5]):
            raise InputError("it has an array of a structured type; numbers, truth values and text are read")
        self.code = state[1] + self.code.lstrip("<>|=")


def _array(content: Any, dtype: Any, shape: Any, in_columns: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
        raise InputError("it has an array without a type or a shape")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise InputError(f"it has an array of the shape {short(shape, 60)}")
    if "O" in dtype.code:
        if not isinstance(content, list) or len(shape) != 1:
            raise InputError("it has an array of objects that is not a list of them")
        return content
    if isinstance(content, str):  # written by Python 2
        content = content.encode("latin-1")
    cells = np.frombuffer(content, np.dtype(dtype.code)) if len(content) else np.empty(0, np.dtype(dtype.code))
    if cells.dtype.kind == "U" and cells.size and _code_points(cells).max() > _LARGEST_CODE_POINT:
        raise InputError("it has an array of text with characters that do not exist")  # numpy fails when it shows them
    return cells.reshape(shape, order="F" if in_columns else "C")


def _code_points(cells: np.ndarray) -> np.ndarray:
    return cells.view(np.dtype(np.uint32).newbyteorder(cells.dtype.byteorder))


def _plain(value: Any) -> Any:
    """The value, or the content of an array; an error for what only a constructor of arrays may be given."""
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, _Array | _Name | _Dtype | _Arguments) or value is _MARK:
        what = f"'{value.name}'" if isinstance(value, _Name) else "an unfinished array or its type"
        raise InputError(f"it holds {what} as a value; only arrays and plain types are read")
    return value


_PARTS = (_Array, _Name, _Dtype, _Arguments)
_KEYS = (str, bytes, int, float, type(None))
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK, "EMPTY_TUPLE": ()}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_STEPS: dict[str, Callable[[_Reader, Any], Any]] = {
    "EMPTY_LIST": lambda reader, _: reader.stack.append([]),
    "EMPTY_DICT": lambda reader, _: reader.stack.append({}),
    "DICT": lambda reader, _: reader.put_dictionary(reader.to_mark()),
    "LIST": lambda reader, _: reader.put_list(reader.to_mark()),
    "TUPLE": lambda reader, _: reader.put_tuple(reader.to_mark()),
    "TUPLE1": lambda reader, _: reader.put_tuple(reader.pop_many(1)),
    "TUPLE2": lambda reader, _: reader.put_tuple(reader.pop_many(2)),
    "TUPLE3": lambda reader, _: reader.put_tuple(reader.pop_many(3)),
    "APPEND": lambda reader, _: reader.extend(reader.pop_many(1)),
    "APPENDS": lambda reader, _: reader.extend(reader.to_mark()),
    "SETITEM": lambda reader, _: reader.update(reader.pop_many(2)),
    "SETITEMS": lambda reader, _: reader.update(reader.to_mark()),
    "POP": lambda reader, _: reader.stack.pop(),
    "POP_MARK": lambda reader, _: reader.to_mark(),
    "MEMOIZE": lambda reader, _: reader.put(None),
    "PUT": lambda reader, key: reader.put(key),
    "BINPUT": lambda reader, key: reader.put(key),
    "LONG_BINPUT": lambda reader, key: reader.put(key),
    "GET": lambda reader, key: reader.stack.append(reader.memo[key]),
    "BINGET": lambda reader, key: reader.stack.append(reader.memo[key]),
    "LONG_BINGET": lambda reader, key: reader.stack.append(reader.memo[key]),
    "GLOBAL": lambda reader, names: reader.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda reader, _: reader.name(*reader.pop_many(2)),
    "REDUCE": lambda reader, _: reader.call(),
    "BUILD": lambda reader, _: reader.build(),
}
