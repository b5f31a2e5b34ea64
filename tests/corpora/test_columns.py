from pathlib import Path

import pytest

from mister_e_hf.corpora.columns import TURN_COLUMNS, listed, match_columns, unused

PATH = Path("turns.csv")
MINIMAL = ["dialogue_id", "order", "text"]


def match(*names: str, **given) -> dict[str, str]:
    return {field: name for field, name in match_columns(PATH, names, TURN_COLUMNS, given).items() if name}


@pytest.mark.parametrize("field", TURN_COLUMNS)
def test_every_name_of_a_field_is_matched_however_it_is_written(field):
    for name in TURN_COLUMNS[field]:
        for form in (name, name.upper(), name.title(), name.replace("_", " "), name.replace("_", "-"), f" {name}"):
            assert match(form, "x") == {field: form}, form
    # Exactly so counts before otherwise written, and earlier names before later ones.
    first, *others = TURN_COLUMNS[field]
    for other in (first.upper(), *others):
        assert match(other, first)[field] == first


def test_no_name_is_that_of_two_fields():
    names = [name.replace("_", "") for names in TURN_COLUMNS.values() for name in names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["offset", "duration"], {"start": "offset", "duration": "duration"}),
        (["onset", "offset"], {"start": "onset", "end": "offset"}),
        (["Begin", "duration"], {"start": "Begin", "duration": "duration"}),
    ],
)
def test_offset_is_the_end_beside_onset_and_the_start_beside_a_duration(names, expected):
    assert match(*names) == expected


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (["start_ms"], "start"),
        (["startMs"], "start"),
        (["start_time", "End (frames)"], "end"),
        (["emotions"], "emotion"),
        (["emtion"], "emotion"),
        (["offset"], "start"),
        (["offset", "end"], "start"),
        (["splits"], "split"),
        (["dialoge_id"], "dialogue_id"),
        (["Texts"], "text"),
    ],
)
def test_a_column_that_may_be_meant_is_asked_about(names, field):
    with pytest.raises(
        ValueError, match=rf"turns\.csv' has no column {field}, but a column '.*columns=\{{'{field}': '"
    ):
        match(*names)
    (near,) = [name for name in names if name not in ("start_time", "end")]
    assert match(*names, **{field: near})[field] == near
    assert field not in match(*names, **{field: ""})
    assert field not in match(*names, **{field: None})


def test_two_columns_of_one_writing_are_asked_about():
    with pytest.raises(ValueError, match=r"columns \['Emotion', 'EMOTION'\]: which one is emotion\?"):
        match(*MINIMAL, "Emotion", "EMOTION")


def test_chosen_columns_are_found_in_any_spelling():
    assert match("Call ID", "turn", dialogue_id="call_id")["dialogue_id"] == "Call ID"
    with pytest.raises(ValueError, match="has no column 'kall' for dialogue_id; it has \\['Call ID'\\]"):
        match("Call ID", dialogue_id="kall")
    # A column chosen for one field is not used for another.
    assert "emotion" not in match("label", sentiment="label")


def test_columns_that_are_not_used_are_listed_without_the_numbers_of_rows():
    there = ["", "Unnamed: 0", "__index_level_0__", "text", "notes", "Unnamed: 7"]
    assert unused(there, {"text": "text", "start": None}) == ["notes", "Unnamed: 7"]
    assert len(listed([f"column {number}" * 50 for number in range(10**5)])) < 3_000
