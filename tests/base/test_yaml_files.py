import math

import pytest
import yaml

from mister_e_hf.base.errors import InputError
from mister_e_hf.base.yaml_files import parse_yaml, read_yaml

VALUES = {
    "words that YAML 1.1 takes for truth values": (
        "[yes, No, on, off, y, true]",
        ["yes", "No", "on", "off", "y", True],
    ),
    "words that it takes for numbers and dates": (
        "[010, 1:30, 2024-01-01, 0x10, 1e-5]",
        "010 1:30 2024-01-01 0x10 1e-5".split(),
    ),
    "numbers": ("[0, -3, +5, 1_000, .5, 1.0e-4, .inf]", [0, -3, 5, 1000, 0.5, 1e-4, math.inf]),
    "nothing": ("{a: , b: ~, c: null}", {"a": None, "b": None, "c": None}),
    "what another section has, in part": (
        "a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}",
        {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}},
    ),
    "an anchor used twice": ("[&a [1], *a, *a]", [[1], [1], [1]]),
}


@pytest.mark.parametrize(("text", "value"), VALUES.values(), ids=VALUES)
def test_values_are_read_as_in_yaml_1_2(text, value):
    assert parse_yaml(text, "it") == value


def test_written_values_are_read_back():
    words = [
        "no",
        "010",
        "08",
        "1e-5",
        "1.5e3",
        "-.5",
        "1:30",
        "2024-01-01",
        "",
        "~",
        "=",
        "0x1F",
        "+1",
        "1_0",
        ".inf",
    ]
    given = {"words": words, "numbers": [1e-05, 0.1, math.inf, 1e300, 10**30, -3, True, None], "n": {"a b": {"c": []}}}
    assert parse_yaml(yaml.safe_dump(given), "it") == given


def bomb(levels: int) -> str:
    text = "&b0 [l,l,l,l,l,l,l,l,l,l]"
    for level in range(1, levels):
        text = f"&b{level} [{text},{','.join([f'*b{level - 1}'] * 9)}]"
    return text


WRONG = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", "'a' appears twice, in lines 1 and 3"),
    "a key of a mapping within twice": ("x: {a: 1, 'a': 1}", "'a' appears twice"),
    "a key that equals another": ("1: a\n1.0: b\n", "appears twice"),
    "a merge twice": ("a: &a {}\nb: {<<: *a, <<: *a}", "'<<' appears twice"),
    "a list for a key": ("? [a]\n: b\n", "a list or mapping cannot be a key"),
    "a mapping that holds itself": ("corpus: {vectors: &v {speech: x, more: *v}}", "contains itself"),
    "a list that holds itself below": ("- &b [[[*b]]]", "contains itself"),
    "anchors for 10^9 values": (bomb(9), "more than 100,000 values"),
    "3,000 nested lists": ("[" * 3000 + "]" * 3000, "nested more than 50 levels"),
    "100 nested lists": ("[" * 100 + "]" * 100, "nested more than 50 levels"),
    "a tag with code": ("!!python/object/apply:os.system [x]", "constructor"),
    "a tag whose text does not fit": ("!!timestamp x", "is not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "single document"),
    "half a list": ("[a", "is not valid YAML"),
    "a NUL": ("a: \0", "special characters"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_invalid_yaml_raises(text, message, tmp_path):
    with pytest.raises(InputError, match="^it is not valid YAML: .*") as error:
        parse_yaml(text, "it")
    assert message in str(error.value) and len(str(error.value)) < 500
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="recipe.yaml") as error:
        read_yaml(path)
    assert message in str(error.value)


def test_encodings_of_a_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("a: é\n", encoding=encoding)
        assert read_yaml(path) == {"a": "é"}
    for given in (b"hello\xff", "a: é\n".encode("latin-1"), b"\xff\xfea"):
        path.write_bytes(given)
        with pytest.raises(InputError, match="recipe.yaml' is not text in UTF-.*save it as UTF-8"):
            read_yaml(path)
    path.write_bytes(b"#" * (16 * 2**20 + 1))
    with pytest.raises(InputError, match="16,777,217 bytes"):
        read_yaml(path)
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yaml")
