"""Pickles are read without running anything in them; the tricks here run something in `pickle.load`."""

import collections
import os
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from mister_e_hf.base.errors import InputError
from mister_e_hf.corpora.plain_pickle import read_pickle

PLAIN = {
    "text": ["你说什么?", "", "x" * 200_000],
    "numbers": (1, -(2**70), 0.5, float("-inf"), True, None),
    "bytes": [b"\x00\xff" * 50_000, b""],
    1: {"nested": [[], {}, ()]},
}
ARRAYS = {
    "floats": np.arange(60_000, dtype=np.float32).reshape(20, 50, 60),
    "in columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big-endian": np.arange(4, dtype=">i4"),
    "half": np.arange(4, dtype=np.float16),
    "truth": np.array([True, False]),
    "texts": np.array(["a$_$1", "你好"]),
    "big-endian texts": np.array(["a$_$1", "你好"], dtype=">U5"),
    "empty": np.empty((0, 3)),
    "cut": np.arange(20.0)[::3],
}


def pickled(tmp_path: Path, content: bytes | object, protocol: int = 4) -> Path:
    path = tmp_path / "some.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_types_of_every_protocol(tmp_path, protocol):
    path = pickled(tmp_path, PLAIN | ARRAYS | {"scalar": np.float32(1.5), "id": np.str_("v")}, protocol)
    found = read_pickle(path)
    assert list(found) == [*PLAIN, *ARRAYS, "scalar", "id"]
    assert {name: found[name] for name in PLAIN} == PLAIN
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert (found["scalar"], found["id"]) == (1.5, "v")


def test_lists_and_tuples_of_arrays_and_repeated_values(tmp_path):
    array = np.arange(3)
    found = read_pickle(pickled(tmp_path, {"list": [array, array], "tuple": (array, "x"), "again": array}))
    assert found["list"][0] is found["list"][1] is found["again"] is found["tuple"][0]


def test_an_array_of_objects_is_the_list_of_them(tmp_path):
    assert read_pickle(pickled(tmp_path, np.array(["a", None, 3], dtype=object))) == ["a", None, 3]


def test_names_of_old_and_new_numpy_are_known(tmp_path):
    content = pickle.dumps(np.arange(3), 2)
    old = content.replace(b"numpy._core.", b"numpy.core.")
    assert old != content
    for each in (content, old):
        np.testing.assert_array_equal(read_pickle(pickled(tmp_path, each)), np.arange(3))


def test_large_arrays_are_not_copied_from_the_file(tmp_path):
    found = read_pickle(pickled(tmp_path, {"large": np.zeros(1_000_000)}))["large"]
    assert not found.flags.writeable and not found.flags.owndata
    base = found
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview)


class Runs:
    """What `pickle.load` would make by calling a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "system"),
        (eval, r"builtins.*\.eval"),
        (getattr, "getattr"),
        (np.load, "numpy.*load"),
        (np.fromfile, "fromfile"),
        (collections.OrderedDict, "collections.OrderedDict"),
        (pickle.loads, "pickle.loads"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("place", ["alone", "in a dictionary", "in an array of objects"])
def test_any_other_function_is_refused_by_name(tmp_path, protocol, function, named, place):
    trick = Runs(function, f"touch {tmp_path / 'ran'}")
    content = {
        "alone": trick,
        "in a dictionary": {"train": {"text": trick}},
        "in an array of objects": np.array([trick], dtype=object),
    }[place]
    path = pickled(tmp_path, content, protocol)
    with pytest.raises(InputError, match=rf"'{path}' is not read: it names '.*{named}'".replace("builtins", "_*buil")):
        read_pickle(path)
    assert not (tmp_path / "ran").exists()


def ended(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


RECONSTRUCT = short("numpy._core.multiarray") + short("_reconstruct") + b"\x93"
NDARRAY = short("numpy") + short("ndarray") + b"\x93"
ARRAY = RECONSTRUCT + NDARRAY + b"K\x00\x85" + b"C\x01b" + b"\x87R"


def dtype(code: str) -> bytes:
    return short("numpy") + short("dtype") + b"\x93" + short(code) + b"\x89\x88\x87R"


def state(shape: bytes, code: str, content: bytes) -> bytes:
    return b"(K\x01" + shape + dtype(code) + b"\x89" + content + b"tb"


HUGE = b"\x8a\x08" + struct.pack("<q", 2**60)  # LONG1
TRICKS = {
    "an instance of a class": (pickle.dumps(Path("/")), "names 'pathlib"),
    "a class itself": (pickle.dumps(np.ndarray), "holds 'numpy.ndarray' as a value"),
    "arguments for a class without a call": (ended(b"(K\x01i", b"os\nsystem\n"), "the instruction INST"),
    "a new object": (ended(NDARRAY, b"K\x03\x85\x81"), "the instruction NEWOBJ"),
    "a number of bytes": (pickle.dumps(b"", 2).replace(b")R", b"K\x05\x85R"), "it calls '__builtin__.bytes'"),
    "an array class that is called": (ended(NDARRAY, b"K\x03\x85R"), "it calls 'numpy.ndarray'"),
    "a call of text": (ended(short("eval"), b"K\x03\x85R"), "calls what is not a constructor"),
    "a call of a constructor with text": (ended(RECONSTRUCT, short("x"), b"R"), "calls what is not a constructor"),
    "a state for text": (ended(short("x"), b"}b"), "sets the state of what is not an array"),
    "a state for a dictionary": (ended(b"}", b"}b"), "sets the state of what is not an array"),
    "a persistent name": (ended(b"Psome\n"), "the instruction PERSID"),
    "an extension": (ended(b"\x82\x01"), "the instruction EXT1"),
    "a buffer from elsewhere": (ended(b"\x97"), "the instruction NEXT_BUFFER"),
    "an encoding": (
        ended(short("_codecs"), short("encode"), b"\x93", short("x"), short("rot13"), b"\x86R"),
        "bytes in the encoding 'rot13'",
    ),
    "an array without content": (ended(ARRAY), "an unfinished array"),
    "an array of objects that are bytes": (
        ended(ARRAY, state(b"K\x01\x85", "O8", b"C\x08" + b"\0" * 8)),
        "of objects",
    ),
    "an array of pointers": (ended(ARRAY, state(b"K\x01\x85", "V8", b"C\x08" + b"\0" * 8)), "of the type 'V8'"),
    "an array of dates": (ended(ARRAY, state(b"K\x01\x85", "M8", b"C\x08" + b"\0" * 8)), "of the type 'M8'"),
    "a type by its Python name": (ended(dtype("object")), "of the type 'object'"),
    "a structured array": (pickle.dumps(np.zeros(2, [("a", "f4")])), "of the type 'V4'"),
    "a huge shape": (ended(ARRAY, state(HUGE + b"\x85", "f4", b"C\x04" + b"\0" * 4)), "damaged"),
    "a negative shape": (ended(ARRAY, state(b"J\xff\xff\xff\xff\x85", "f4", b"C\x04" + b"\0" * 4)), "of the shape"),
    "a wrong shape": (ended(ARRAY, state(b"K\x02\x85", "f4", b"C\x04" + b"\0" * 4)), "damaged"),
    "huge bytes": (ended(b"\x8e" + struct.pack("<Q", 2**50), b"abc"), "damaged"),
    "huge text": (ended(b"\x8d" + struct.pack("<Q", 2**50), b"abc"), "damaged"),
    "huge writable bytes": (ended(b"\x96" + struct.pack("<Q", 2**50), b"abc"), "damaged"),
    "a huge number": (ended(b"\x8b" + struct.pack("<i", 2**31 - 1), b"abc"), "damaged"),
    "a number of many digits": (b"L" + b"9" * 50_000 + b"L\n.", "damaged"),
    "a number of many bits": (pickle.dumps(1 << 100_000), "an integer of more than 512 bits"),
    "characters that do not exist": (
        ended(ARRAY, state(b"K\x01\x85", "U1", b"C\x04\xff\xff\xff\x7f")),
        "characters that do not exist",
    ),
    "keys that take for ever": (ended(b"}", b")\x94h\x00\x86", b"K\x01s"), "keys are not text"),
    "a value that was not stored": (ended(b"h\x09"), "damaged"),
    "too few values": (ended(b"\x86"), "damaged"),
    "two values": (ended(b"NN"), "damaged"),
    "no end": (b"\x80\x04N", "damaged"),
    "a ZIP file": (b"PK\x03\x04" + b"\0" * 50, "instruction|damaged"),
    "text": (b"video_id,clip_id\n", "not read|damaged"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused(tmp_path, trick):
    content, message = TRICKS[trick]
    path = pickled(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)


def test_a_place_far_away_takes_no_memory(tmp_path):
    content = ended(b"K\x07", b"r" + struct.pack("<I", 2**32 - 1), b"0", b"j" + struct.pack("<I", 2**32 - 1))
    assert read_pickle(pickled(tmp_path, content)) == 7  # 64 GB in some versions of pickle.load


def doubled(container: bytes, append: bytes, times: int) -> bytes:
    """Containers that hold the one before twice."""
    parts = (b"\x94" + container + b"h" + bytes([number]) + append + b"h" + bytes([number]) for number in range(times))
    return b"".join(part + append for part in parts)


NESTED = {
    "lists": (b"]" * 300_000 + b"a" * 299_999, "more than 100 lists, tuples or dictionaries one within the other"),
    "tuples": (b")" + b"\x85" * 4_000_000, "more than 100 lists"),
    "dictionaries": (b"}" + b"K\x01}" * 200 + b"s" * 200, "more than 100 lists"),
    "a list of itself": (b"]\x94h\x00a", "changes a list or dictionary that is in another already"),
    "lists that hold each other": (b"]\x94]\x94h\x00ah\x01a", "changes a list"),
    "lists that grow from outside": (b"]]\x94a0h\x00Na", "changes a list"),
    "shared lists": (b"]" + doubled(b"]", b"a", 30), "the same lists so often that they make up more than 10,000,"),
    "shared tuples": (
        b")" + b"".join(b"\x94h" + bytes([number]) + b"\x86" for number in range(90)),
        "the same lists so often",
    ),
}


@pytest.mark.parametrize("kind", NESTED)
def test_what_could_not_be_printed_or_walked_is_refused_at_once(tmp_path, kind):
    content, message = NESTED[kind]
    began = time.process_time()
    with pytest.raises(InputError, match=f"is not read: it .*{message}"):
        read_pickle(pickled(tmp_path, ended(content)))
    assert time.process_time() - began < 2


def test_containers_within_each_other_and_used_again(tmp_path):
    shared: list = [[], (), {}, ()]
    content = {"a": shared, "b": [shared, shared, ((), shared)]}
    for _ in range(90):
        content = {1: [], 2: content, 3: ()}
    for protocol in range(6):
        found = read_pickle(pickled(tmp_path, content, protocol))
        assert found == content
        assert "{}" in str(found)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_raises(tmp_path, share):
    content = pickle.dumps(PLAIN | ARRAYS)
    with pytest.raises(InputError, match="damaged"):
        read_pickle(pickled(tmp_path, content[: int(share * len(content))]))


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pkl"):
        read_pickle(tmp_path / "nowhere.pkl")
